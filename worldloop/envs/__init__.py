"""Gymnasium environments of a world model: importing this package registers ``worldloop/WorldModel-v0``.

``import mani_skill.envs`` does the same for ManiSkill's. ``import worldloop`` does not register it, because importing
Gymnasium would delay the command line by half a second.
"""

import gymnasium

gymnasium.register(
    id="worldloop/WorldModel-v0",
    entry_point="worldloop.envs.make:make_env",
    vector_entry_point="worldloop.envs.make:make_vector_env",
)
