"""Processes of a test's own, each a fork of one that has imported what a loop imports: seconds each, otherwise."""

import multiprocessing
from multiprocessing.context import ForkServerContext

# What a loop imports on first use: by the first optimizer, the check's figures, the dataset and TensorBoard.
_LATE = (
    "torch._dynamo",
    "torchmetrics",
    "transformers.models.llama.modeling_llama",
    "scipy.stats",
    "pandas",
    "torch.utils.tensorboard",
)


def get_context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["worldloop.loop.run", "worldloop.config.loading", *_LATE])
    return context
