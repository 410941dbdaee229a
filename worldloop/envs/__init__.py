"""Gymnasium environments of a world model: importing this package registers ``worldloop/WorldModel-v0``.

``import mani_skill.envs`` does the same for ManiSkill's. ``import worldloop`` does not register it, because importing
Gymnasium would delay the command line by half a second.
"""

import os
import sys

import gymnasium


def _use_one_thread_after_a_fork() -> None:
    """The threads of a parent's torch are gone in a forked child, which would wait for them for ever.

    Gymnasium's `AsyncVectorEnv` forks by default.
    """
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


os.register_at_fork(after_in_child=_use_one_thread_after_a_fork)
gymnasium.register(
    id="worldloop/WorldModel-v0",
    entry_point="worldloop.envs.make:make_env",
    vector_entry_point="worldloop.envs.make:make_vector_env",
)
