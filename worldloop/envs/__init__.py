"""Gymnasium environments of a world model: importing this package registers ``worldloop/WorldModel-v0``.

As ``import mani_skill.envs`` does for ManiSkill's. `worldloop` itself does not: Gymnasium costs the command line half a
second.
"""

import gymnasium

gymnasium.register(
    id="worldloop/WorldModel-v0",
    entry_point="worldloop.envs.make:make_env",
    vector_entry_point="worldloop.envs.make:make_vector_env",
)
