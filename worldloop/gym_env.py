"""The name that `worldloop.envs` had."""

raise ImportError("worldloop.gym_env is now worldloop.envs: write `import worldloop.envs`")
