import os
import signal

import pytest

from worldloop.reporting.progress import TerminalDisplay, remember_interrupt


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_at_once_and_again_at_the_next_progress(sent: signal.Signals) -> None:
    before = signal.getsignal(sent)
    display = TerminalDisplay()
    with remember_interrupt():
        with pytest.raises(KeyboardInterrupt) as at_once:
            os.kill(os.getpid(), sent)
        display.open("fit", 10, "step")
        with pytest.raises(KeyboardInterrupt) as again:
            display.advance(1, {})
    assert at_once.value.args == again.value.args == (sent,)
    assert signal.getsignal(sent) is before
    display.advance(1, {})


def test_an_interrupt_keeps_its_signal_when_a_library_raises_its_own() -> None:
    def run(sent: signal.Signals | None) -> None:
        with remember_interrupt():
            try:
                if sent is not None:
                    os.kill(os.getpid(), sent)
            finally:
                raise KeyboardInterrupt

    for sent, expected in ((signal.SIGTERM, (signal.SIGTERM,)), (None, ())):
        with pytest.raises(KeyboardInterrupt) as raised:
            run(sent)
        assert raised.value.args == expected
