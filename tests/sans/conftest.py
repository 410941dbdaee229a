"""What the tests of SANS share: episodes made by hand, and an empty store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hand_episodes import build_episode

from worldloop.core.types import Episode
from worldloop.sans.store import SansStore

MakeEpisode = Callable[..., Episode]


def assert_equal_episodes(actual: Episode, expected: Episode) -> None:
    """Bit for bit, dtypes included."""
    assert actual.meta == expected.meta
    assert (actual.terminated, actual.truncated) == (expected.terminated, expected.truncated)
    assert sorted(actual.frames) == sorted(expected.frames)
    pairs = [(actual.frames[k], expected.frames[k]) for k in expected.frames]
    names = ("proprio", "actions", "valid", "rewards", "success", "distances_m", "sim_state")
    pairs += [(getattr(actual, name), getattr(expected, name)) for name in names]
    for got, want in pairs:
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert got.tobytes() == want.tobytes()


@pytest.fixture
def make_episode() -> MakeEpisode:
    return build_episode


@pytest.fixture
def assert_same() -> Callable[[Episode, Episode], None]:
    return assert_equal_episodes


@pytest.fixture
def store(tmp_path: Path) -> SansStore:
    return SansStore(tmp_path / "sans")
