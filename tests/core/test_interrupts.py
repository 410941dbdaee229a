import os
import signal
from collections.abc import Iterator

import pytest

from worldloop.core import interrupts
from worldloop.core.interrupts import (
    answer_signals,
    ask_to_end,
    finish_step,
    raise_if_interrupted,
    take_checkpoint_request,
    wants_checkpoint,
)


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    interrupts.forget()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_at_once_and_stays_until_it_is_answered(sent: signal.Signals) -> None:
    before = signal.getsignal(sent)
    with answer_signals():
        with pytest.raises(KeyboardInterrupt) as at_once:
            os.kill(os.getpid(), sent)
        with pytest.raises(KeyboardInterrupt) as again:
            raise_if_interrupted()
    assert at_once.value.args == again.value.args == (sent,)
    assert signal.getsignal(sent) is before
    raise_if_interrupted()


def test_an_interrupt_keeps_its_signal_when_a_library_raises_its_own() -> None:
    def run(sent: signal.Signals | None) -> None:
        with answer_signals():
            try:
                if sent is not None:
                    os.kill(os.getpid(), sent)
            finally:
                raise KeyboardInterrupt

    for sent, expected in ((signal.SIGTERM, (signal.SIGTERM,)), (None, ())):
        with pytest.raises(KeyboardInterrupt) as raised:
            run(sent)
        assert raised.value.args == expected


def test_a_step_is_finished_first_and_sees_that_a_checkpoint_is_wanted() -> None:
    done = []
    with answer_signals(), pytest.raises(KeyboardInterrupt) as raised, finish_step():  # noqa: PT012
        with finish_step():  # a training within a training step
            os.kill(os.getpid(), signal.SIGTERM)
        done.append(wants_checkpoint())
    assert done == [True]
    assert raised.value.args == (signal.SIGTERM,)


def test_a_second_signal_ends_a_step() -> None:
    done = []
    with answer_signals(), pytest.raises(KeyboardInterrupt), finish_step():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        done.append("more")
    assert not done


def test_a_step_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "GRACE_S", 1)
    with answer_signals(), pytest.raises(KeyboardInterrupt) as raised, finish_step():  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
        signal.pause()  # never reached
    assert raised.value.args == (signal.SIGTERM,)


def test_usr1_asks_for_one_checkpoint_and_ends_nothing() -> None:
    with answer_signals():
        assert not wants_checkpoint()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert wants_checkpoint()
        assert take_checkpoint_request()
        assert not take_checkpoint_request()
        raise_if_interrupted()


def test_a_process_can_be_asked_to_end() -> None:
    with pytest.raises(KeyboardInterrupt) as raised, finish_step():
        ask_to_end()
    assert raised.value.args == (signal.SIGTERM,)


def test_the_time_limit_of_a_step_ends_with_it() -> None:
    with answer_signals(), pytest.raises(KeyboardInterrupt), finish_step():
        os.kill(os.getpid(), signal.SIGTERM)
    signal.alarm(30)
    interrupts.end_grace()
    assert signal.alarm(0) == 0
