"""How stages open the dataset: verified against its hashes, from the decoded cache."""

from __future__ import annotations

from worldloop.sans.clips import ClipDataset
from worldloop.stages.context import Context
from worldloop.types import Split


def open_clips(context: Context, version: str, split: Split) -> ClipDataset:
    """Clips of ``split`` in the SANS version called ``version``; a corrupt shard is refused by name."""
    cache = context.store.open_cache(context.store.version(version))
    return ClipDataset(cache, split, context.spec.camera)
