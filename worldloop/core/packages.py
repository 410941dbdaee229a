"""Packages that worldloop does without until a setting or a command needs them, and the extra that brings each."""

from __future__ import annotations

from importlib.util import find_spec

from worldloop.core.errors import WorldloopError

# Import name -> extra of pyproject.toml. What is not listed comes with the base install.
EXTRAS = {
    "mani_skill": "sim",
    "sapien": "sim",
    "metaworld": "metaworld",
    "mujoco": "metaworld",
    "libero": "libero",
    "robosuite": "libero",
    "pyarrow": "data",
    "pandas": "data",
    "PIL": "data",
    "av": "data",
    "obstore": "data",
    "huggingface_hub": "data",
    "transformers": "policy",
    "torchvision": "policy",
    "lerobot": "lerobot",
    "draccus": "lerobot",
    "ray": "ray",
    "tensorboard": "dashboard",
    "matplotlib": "dashboard",
    "torchmetrics": "dashboard",
    "jinja2": "dashboard",
    "diffusers": "cosmos",
    "peft": "cosmos",
    "pygame": "human",
}


def require_packages(*names: str) -> None:
    """Raise `WorldloopError` with the remedy unless all packages are installed. ``names`` are those of `EXTRAS`."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        extras = ",".join(dict.fromkeys(EXTRAS[name] for name in missing))
        are = "is" if len(missing) == 1 else "are"
        raise WorldloopError(f"{', '.join(missing)} {are} not installed: pip install -e '.[{extras}]' in the clone")


def require_importable(error: ImportError) -> None:
    """Raise `WorldloopError` with the remedy if ``error`` is the lack of a package of `EXTRAS`."""
    name = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and name in EXTRAS:
        require_packages(name)
