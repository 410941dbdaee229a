"""Moved: this module is now `worldloop.envs`."""

raise ImportError("worldloop.gym_env is now worldloop.envs: write `import worldloop.envs`")
