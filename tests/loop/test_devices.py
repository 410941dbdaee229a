from worldloop.loop.run import note_device
from worldloop.storage.run_state import LoopState


def test_a_run_that_goes_on_on_another_device_says_so_and_records_both() -> None:
    said: list[str] = []
    state = note_device(LoopState(), "cpu", said.append)
    state = note_device(state, "cpu", said.append)
    assert said == []
    assert state.records[0]["devices"] == ["cpu"]
    state = note_device(state, "cuda", said.append)
    assert said == ["  the run began on cpu and goes on on cuda: not repeatable bit by bit"]
    assert state.records[0]["devices"] == ["cpu", "cuda"]
    assert note_device(state, "cuda", said.append).records == state.records
    assert len(said) == 1
