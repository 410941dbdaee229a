"""worldloop: closed-loop co-training of a video world model and a robot policy."""

__version__ = "0.1.0"


def register_environments() -> None:
    """Make ``gymnasium.make("worldloop/WorldModel-v0", checkpoint=...)`` and ``make_vec`` known; done at import."""
    import gymnasium

    gymnasium.register(
        id="worldloop/WorldModel-v0",
        entry_point="worldloop.build:make_env",
        vector_entry_point="worldloop.build:make_vector_env",
    )


register_environments()
