import pytest
from tqdm import tqdm

from worldloop.core import interrupts
from worldloop.reporting.progress import BAR, RemoteDisplay, TerminalDisplay, wrap


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


def test_a_long_line_is_split_between_words() -> None:
    line = "  on_policy: psnr_db 20.6, moving_psnr_db_first_frame 8.6, on-policy"
    assert wrap(line, 40).splitlines() == [
        "  on_policy: psnr_db 20.6,",
        "      moving_psnr_db_first_frame 8.6,",
        "      on-policy",
    ]
    assert wrap(line, 80) == line
    assert wrap("x" * 90, 80) == "x" * 90
    commands = f"to continue:\n    worldloop sans add {'x' * 80}"
    assert wrap(commands, 80) == commands


def test_lines_are_wrapped_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for is_terminal, rows in ((True, 2), (False, 1)):
        display = TerminalDisplay()
        monkeypatch.setattr(display, "_is_terminal", is_terminal)
        display.log("word " * 20)
        assert len(capsys.readouterr().err.splitlines()) == rows
