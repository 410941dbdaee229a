import numpy as np
import pytest

from worldloop.core.success import Trust, classify_outcome

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


@pytest.mark.parametrize(("is_trusted", "reason"), [(True, "too low"), (False, "")])
def test_trust_is_refused_with_a_reason_and_given_without(is_trusted: bool, reason: str) -> None:
    with pytest.raises(ValueError, match="reason"):
        Trust(is_trusted, reason)
