"""How stages open the dataset: verified against its hashes, from the decoded cache."""

from __future__ import annotations

import torch

from worldloop.core.types import Observation, Split
from worldloop.sans.cache import VersionCache
from worldloop.sans.clips import ClipDataset
from worldloop.stages.context import Context

NUM_STARTS = 64  # observations that the checkpoint of a checked world model carries


def open_clips(context: Context, version: str, split: Split) -> ClipDataset:
    """Clips of ``split`` in the SANS version called ``version``; a corrupt shard is refused by name."""
    return ClipDataset(open_cache(context, version), split, context.spec.camera)


def open_cache(context: Context, version: str) -> VersionCache:
    """The decoded cache of ``version``; of several workers the first makes it, where it has to be made."""
    workers = context.workers
    if not workers.is_first:
        workers.wait()
    cache = context.store.open_cache(context.store.version(version))
    if workers.is_first:
        workers.wait()
    return cache


def choose_starts(dataset: ClipDataset) -> Observation:
    """First observations of the latest episodes of ``dataset``, the policy's own where there are any.

    An environment that is made of a checkpoint alone starts from these.
    """
    episodes = dataset.episode_index(source="policy")
    episodes = (episodes if len(episodes) else dataset.episode_index())[-NUM_STARTS:]
    return dataset.observation(torch.stack([episodes, torch.zeros_like(episodes)], dim=1))
