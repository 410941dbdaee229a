"""worldloop: closed-loop co-training of a video world model and a robot policy."""

from typing import TYPE_CHECKING, Any

from worldloop.core.version import __version__

if TYPE_CHECKING:
    from worldloop.factory.pretrained import from_pretrained, save_pretrained

__all__ = ["__version__", "from_pretrained", "save_pretrained"]


def __getattr__(name: str) -> Any:
    """The public functions, imported when they are first used: the command line must start without torch."""
    if name not in ("from_pretrained", "save_pretrained"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from worldloop.factory import pretrained

    return getattr(pretrained, name)
