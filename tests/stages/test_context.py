"""What stages open together."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hand_episodes import build_episode

from worldloop.sans.store import SansStore
from worldloop.stages.context import StageContext


@pytest.mark.parametrize("is_main", [True, False])
def test_ranks_meet_after_every_shard(tmp_path: Path, is_main: bool) -> None:
    """Or a rank would wait for the hashes of the whole dataset, longer than ranks wait for one another."""
    store = SansStore(tmp_path)
    store.snapshot("v000", [store.append([build_episode(number)], f"shard{number}") for number in range(3)])
    for part in store.list_cache_parts(also_used=True):
        shutil.rmtree(part)
    there: list[int] = []
    meet = SimpleNamespace(is_main=is_main, barrier=lambda: there.append(len(store.list_cache_parts(also_used=True))))
    setup: Any = SimpleNamespace(data_parallel=meet)
    nothing: Any = None
    context = StageContext(0, 1, nothing, store, nothing, nothing, setup, nothing)
    assert len(context.open_cache("v000")) == 3
    assert there == ([1, 2, 3] if is_main else [0, 0, 0])
