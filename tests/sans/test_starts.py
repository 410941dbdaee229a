"""Which episodes a checked world model can be started from."""

from types import SimpleNamespace

import numpy as np
import torch

from worldloop.core.types import Observation
from worldloop.sans.starts import NUM_STARTS, choose_starts


class FakeDataset:
    """The episodes of a `ClipDataset` by task and source; an observation has its number as ``env_step``."""

    def __init__(self, episodes: list[tuple[str, str]]) -> None:
        self.episodes = episodes
        metas = [SimpleNamespace(task=task) for task, _ in episodes]
        self.cache = SimpleNamespace(metas=metas, steps=self.steps)

    def episode_index(self, **wanted: str) -> torch.Tensor:
        rows = [{"task": task, "source": source} for task, source in self.episodes]
        hits = [i for i, row in enumerate(rows) if all(row[key] == value for key, value in wanted.items())]
        return torch.tensor(hits, dtype=torch.long)

    def steps(self, name: str, episode: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Two actions a frame, (number of the episode, 0 or 1)."""
        assert name == "actions"
        assert not row.any()
        return np.stack([[[e, 0], [e, 1]] for e in episode]).astype(np.float32)

    def observation(self, index: torch.Tensor) -> Observation:
        assert not index[:, 1].any()
        tasks = tuple(self.episodes[e][0] for e in index[:, 0].tolist())
        frames = {"base": torch.zeros(len(index), 1, 2, 2, 3, dtype=torch.uint8)}
        return Observation(frames, None, task=tasks, instruction=tasks, env_step=index[:, 0])


def test_starts_are_spread_evenly_over_the_tasks() -> None:
    push = [("push", "expert")] * 3 + [("push", "policy")] * 100
    dataset = FakeDataset([*push, *[("reach", "expert")] * 40])
    starts, actions = choose_starts(dataset)  # type: ignore[arg-type]
    assert starts.task == ("push",) * (NUM_STARTS // 2) + ("reach",) * (NUM_STARTS // 2)
    # The latest of each; the policy's own where it has any.
    assert starts.env_step.tolist() == [*range(103 - NUM_STARTS // 2, 103), *range(143 - NUM_STARTS // 2, 143)]
    assert torch.equal(actions, torch.stack([starts.env_step, torch.zeros_like(starts.env_step)], 1).float())
    alone, _ = choose_starts(FakeDataset(push))  # type: ignore[arg-type]
    assert alone.env_step.tolist() == list(range(103 - NUM_STARTS, 103))
