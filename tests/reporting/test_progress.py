import pytest
from tqdm import tqdm

from worldloop.core import interrupts
from worldloop.reporting.progress import BAR, RemoteDisplay, TerminalDisplay


@pytest.mark.parametrize("display", [TerminalDisplay(), RemoteDisplay()], ids=["terminal", "remote"])
def test_progress_ends_what_was_interrupted(display: TerminalDisplay | RemoteDisplay) -> None:
    display.open("fit", 10, "step")
    display.advance(1, {})
    interrupts.ask_to_end()
    try:
        with pytest.raises(KeyboardInterrupt):
            display.advance(1, {})
    finally:
        interrupts.forget()
    display.advance(1, {})


@pytest.mark.parametrize(
    ("label", "unit", "figure"),
    [("fit_world_model", "proprio step", "loss_proprio"), ("improve_policy", "update", "imagined_success_rate")],
)
def test_the_figures_are_seen_on_80_columns(label: str, unit: str, figure: str) -> None:
    bar = tqdm.format_meter(90, 120, 60.0, ncols=80, prefix=label, unit=unit, postfix=f"{figure} 0.125", bar_format=BAR)
    assert f"90/120 {unit}s, 00:20 left, {figure} 0.125" in bar
    assert len(bar) <= 80
