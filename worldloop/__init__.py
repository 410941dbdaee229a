"""worldloop: closed-loop co-training of a video world model and a robot policy."""

__version__ = "0.1.0"
