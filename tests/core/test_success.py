import numpy as np
import pytest
import torch
from torch import Tensor

from worldloop.core.success import Trust, classify_outcome, confirm, declare, find_highest_confirmed

RADIUS = 0.1


@pytest.mark.parametrize(
    ("success", "distances", "start", "expected"),
    [
        (True, [0.05, 0.0], 0.1, ("success", 0.0)),
        (False, [0.08, 0.05, 0.06], 0.1, ("near_success", 0.05)),
        (False, [0.10, 0.095, 0.10], 0.1, ("failure", 0.095)),  # PushCube: starts at 2r, 5 mm of progress
        (False, [0.09], 0.1, ("near_success", 0.09)),  # exactly 10 mm of progress
        (False, [0.15, 0.12], 0.3, ("failure", 0.12)),  # progress, but further than 2r from the centre
        (False, [0.1], 0.3, ("near_success", 0.1)),  # exactly at 2r from the centre
        (False, [0.2, 0.25], 0.1, ("failure", 0.1)),  # pushed away: the start was nearest
        (False, [0.0, 0.03], 0.1, ("near_success", 0.0)),  # reached the region, but the simulator says no
    ],
)
def test_outcome_rule(success: bool, distances: list[float], start: float, expected: tuple[str, float]) -> None:
    outcome, margin_m = classify_outcome(success, np.array(distances, np.float32), start, RADIUS)
    assert outcome == expected[0]
    assert margin_m == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.parametrize(("distances", "radius"), [([], 0.1), ([np.nan], 0.1), ([0.1], 0.0)])
def test_nonsense_is_refused(distances: list[float], radius: float) -> None:
    with pytest.raises(ValueError, match=r"distances_m|success_radius_m"):
        classify_outcome(False, np.array(distances, np.float32), 0.1, radius)


def test_a_task_without_distances_has_no_near_success() -> None:
    unknown = np.full(3, np.nan)
    assert classify_outcome(True, unknown, float("nan"), 0.0) == ("success", 0.0)
    outcome, margin_m = classify_outcome(False, unknown, float("nan"), 0.0)
    assert outcome == "failure"
    assert np.isnan(margin_m)
    with pytest.raises(ValueError, match="must be finite"):
        classify_outcome(False, np.array([0.1, np.nan]), 0.2, 0.1)


@pytest.mark.parametrize(("is_trusted", "reason"), [(True, "too low"), (False, "")])
def test_trust_is_refused_with_a_reason_and_given_without(is_trusted: bool, reason: str) -> None:
    with pytest.raises(ValueError, match="reason"):
        Trust(is_trusted, reason)


# --- imagined success ---------------------------------------------------------------------------------------------


def declare_in_parts(shows: Tensor, is_last: Tensor, confirm_frames: int, sizes: list[int]) -> Tensor:
    """bool [B, M]: `declare` over frames that arrive in parts of ``sizes``."""
    recent, declared = torch.zeros(len(shows), confirm_frames, dtype=torch.bool), []
    for part, last in zip(shows.split(sizes, 1), is_last.split(sizes, 1), strict=True):
        now, recent = declare(part, last, recent)
        declared.append(now)
    return torch.cat(declared, dim=1).cummax(1).values


def test_confirm_by_hand() -> None:
    values = torch.tensor([[3.0, 1.0, 2.0, 5.0]])
    assert torch.equal(confirm(values, 0), values)
    assert confirm(values, 1).tolist() == [[1.0, 1.0, 2.0, 5.0]]
    assert confirm(values, 2).tolist() == [[1.0, 1.0, 2.0, 5.0]]
    assert confirm(values, 9).tolist() == [[1.0, 1.0, 2.0, 5.0]]


@pytest.mark.parametrize(
    ("confirm_frames", "shows", "declared"),
    [
        (0, "010000", "011111"),
        (1, "010110", "000011"),
        (2, "011011", "000001"),  # two frames on end at the limit
        (2, "000001", "000001"),  # one frame is enough there
        (2, "011010", "000000"),
        (9, "111110", "000000"),
    ],
)
@pytest.mark.parametrize("sizes", [[6], [1] * 6, [4, 2]])
def test_a_success_is_declared_by_hand(confirm_frames: int, shows: str, declared: str, sizes: list[int]) -> None:
    """Six frames, of which the last is that of the time limit."""
    frames = torch.tensor([[frame == "1" for frame in shows]])
    found = declare_in_parts(frames, torch.arange(6)[None] == 5, confirm_frames, sizes)
    assert "".join(str(int(frame)) for frame in found[0].tolist()) == declared


@pytest.mark.parametrize("confirm_frames", [0, 1, 2, 3, 20])
def test_a_stream_declares_what_a_whole_episode_confirms(confirm_frames: int) -> None:
    """At the last of the frames that confirm the first confirmed one, however the stream is cut into chunks."""
    B, M = 400, 12
    generator = torch.Generator().manual_seed(confirm_frames)
    length = torch.randint(1, M + 1, (B, 1), generator=generator)
    frame = torch.arange(M).expand(B, M)
    valid = frame < length
    shows = (torch.rand(B, M, generator=generator) < 0.6) & valid
    is_confirmed = confirm(shows.float().masked_fill(~valid, torch.inf), confirm_frames).bool() & valid
    at = (frame + confirm_frames).minimum(length - 1).masked_fill(~is_confirmed, M).amin(1, keepdim=True)
    assert 0 < int((at < M).sum()) < B
    for sizes in ([M], [1] * M, [5, 4, 3], [2] * 6):
        declared = declare_in_parts(shows, frame >= length - 1, confirm_frames, sizes)
        assert torch.equal(declared, frame >= at)
    highest = find_highest_confirmed(shows.float(), valid, confirm_frames)
    assert torch.equal(declared.any(1), highest == 1)
