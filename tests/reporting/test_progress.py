import pytest

from worldloop.core import interrupts
from worldloop.reporting.progress import RemoteDisplay, TerminalDisplay


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
