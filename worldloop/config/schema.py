"""The run's configuration: one tree of frozen dataclasses, YAML in ``configs/``, ``key=value`` on the command line.

Each part is defined beside the class it configures and checks itself. An unknown key or a bad value is a
`WorldloopError` that names the key and what is allowed.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from worldloop.core.errors import WorldloopError, first_line
from worldloop.factory.config import SIMULATORS, PolicyConfig, SimulatorConfig
from worldloop.sans.clips import ClipSamplingConfig
from worldloop.simulators.perturbations import SCRIPTED_VARIANTS
from worldloop.stages import STAGES, distil_world_model, seed_dataset
from worldloop.world_model.config import WorldModelConfig

RUNTIMES = ("ray", "inline")


@dataclass(frozen=True)
class ResourcesConfig:
    """What the loop may use. No result depends on ``num_simulators`` or on the runtime; on ``num_workers`` only in the
    order in which floats are added.
    """

    device: str = "auto"  # auto | cpu | cuda: where networks train and imagine
    num_threads: int = 2  # processor threads of training and imagination
    num_simulators: int = 2  # simulator processes; 0 simulates in the stage's own process (inline only)
    cpus_per_simulator: float = 0.0  # what Ray reserves for a simulator actor; 0 shares the trainer's processors
    num_workers: int = 1  # data-parallel workers of training stages (Ray Train); divides num_microbatches
    shard_world_model: bool = False  # no worker holds the trained world model whole (FSDP2): for one that does not fit
    trainer_cpus: float = 1.0  # what Ray reserves for the stage actor, and for each worker of a training stage
    trainer_gpus: float = 0.0  # the same
    rows_at_once: int = 0  # imagined together at most; 0: all, and half of them wherever a GPU's memory is too small
    keep_every_s: float = 300.0  # seconds after which a training stage keeps what it has done; 0: never
    max_retries: int = 3  # of what a process was at when it died, a simulator's block or (with Ray) the stage
    ray_address: str = ""  # cluster to join; "" takes RAY_ADDRESS, or starts a local one

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"resources.device {self.device!r} is not one of auto, cpu, cuda")
        if self.shard_world_model and self.num_workers < 2:
            raise ValueError("resources.shard_world_model needs resources.num_workers of at least 2")
        if self.num_workers < 1 or self.keep_every_s < 0 or self.rows_at_once < 0:
            raise ValueError(
                "resources.num_workers must be at least 1, resources.keep_every_s and rows_at_once at least 0"
            )
        if self.num_threads < 1 or self.num_simulators < 0 or self.max_retries < 0:
            raise ValueError(
                "resources.num_threads must be at least 1, resources.num_simulators and max_retries at least 0"
            )


@dataclass(frozen=True)
class LoopConfig:
    """A run's settings; `make_schema` gives the class that has a section for every stage besides, see `section`."""

    run_name: str = ""  # folder of the run under run_root; "" takes the config file's name
    run_root: str = "runs"  # where runs are kept; must be absolute in a Ray job
    mirror: str = ""  # store that the run is copied to after every stage, e.g. s3://bucket/runs; "": none
    runtime: str = "ray"  # ray | inline (no Ray: everything in and below this process)
    seed: int = 0  # of everything that is drawn, except validation and evaluation states
    num_iterations: int = 2  # iterations after iteration 0, the clone
    num_microbatches: int = 1  # parts of every training batch, gone through one after the other and shared by ranks
    chunk_length: int = 5  # actions per policy call; a multiple of the simulator's actions_per_frame
    simulator: SimulatorConfig = field(default_factory=SimulatorConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    clips: ClipSamplingConfig = field(default_factory=ClipSamplingConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)

    def section[T](self, kind: type[T]) -> T:
        """The section of type ``kind``, e.g. ``config.section(clone_policy.Config)``."""
        section = self.sections()[kind]
        assert isinstance(section, kind)
        return section

    def sections(self) -> dict[type, object]:
        """The sections by type."""
        values: list[object] = [getattr(self, f.name) for f in fields(self)]
        values.append(self.simulator.recorded)
        return {type(value): value for value in values if is_dataclass(value)}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its sections, since `make_schema` makes its class anew in every process."""
        return _restore, ({f.name: getattr(self, f.name) for f in fields(self)},)

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ValueError(f"runtime {self.runtime!r} is not one of {', '.join(RUNTIMES)}")
        if self.num_iterations < 0 or self.chunk_length < 1:
            raise ValueError("num_iterations must be at least 0 and chunk_length at least 1")
        if "://" in self.run_root:
            raise ValueError(
                f"run_root {self.run_root!r} must be a folder; mirror={self.run_root} keeps a copy of the run there"
            )
        if self.mirror and "://" not in self.mirror:
            raise ValueError(f"mirror {self.mirror!r} must be an address, e.g. s3://bucket/runs or file:///backup/runs")
        if "@" in self.mirror:
            raise ValueError("mirror must hold no credentials, which the run would store: put them in the environment")
        self._check_microbatches()
        if self.simulator.kind == "recorded" and self.num_iterations != 1:
            raise ValueError(
                f"num_iterations is {self.num_iterations}, allowed with simulator.kind recorded: 1, since nothing is "
                "collected that a second one could learn from"
            )
        per_frame = getattr(getattr(self.simulator, self.simulator.kind, None), "actions_per_frame", 1)
        if self.chunk_length % per_frame:
            raise ValueError(
                f"chunk_length {self.chunk_length} must be a multiple of simulator.{self.simulator.kind}."
                f"actions_per_frame {per_frame}"
            )
        distillation = self.section(distil_world_model.Config)
        teacher, student = self.world_model.num_sampler_steps, distillation.num_sampler_steps
        if distillation.num_steps and (teacher % student or teacher == student):
            raise ValueError(
                f"distil_world_model.num_sampler_steps {student} must divide world_model.num_sampler_steps {teacher} "
                "and be fewer"
            )
        episodes = self.section(seed_dataset.Config).episodes
        for variant in episodes if self.simulator.kind in SIMULATORS else ():
            if variant not in SCRIPTED_VARIANTS:
                raise ValueError(
                    f"seed_dataset.episodes: {variant!r} is not one of the scripted variants "
                    f"{', '.join(SCRIPTED_VARIANTS)}"
                )

    def _check_microbatches(self) -> None:
        parts, workers = self.num_microbatches, self.resources.num_workers
        if parts < 1 or parts % workers:
            raise ValueError(f"num_microbatches {parts} must be a multiple of resources.num_workers {workers}")
        if workers > 1 and self.runtime != "ray":
            raise ValueError(f"resources.num_workers {workers} needs runtime ray, not {self.runtime}")
        for name, stage in STAGES.items():
            section = self.section(stage.Config)
            for key in getattr(stage.Config, "MICRO_BATCHED", ()):
                if getattr(section, key) % parts:
                    raise ValueError(f"{name}.{key} {getattr(section, key)} is no multiple of num_microbatches {parts}")


def make_schema() -> type[LoopConfig]:
    """`LoopConfig` with a section for every stage of `STAGES`, also for one that was added there a moment ago."""
    return _make_schema(tuple((name, stage.Config) for name, stage in STAGES.items()))


@cache
def _make_schema(sections: tuple[tuple[str, type], ...]) -> type[LoopConfig]:
    members = [(name, kind, field(default_factory=kind)) for name, kind in sections]
    return make_dataclass("LoopConfig", members, bases=(LoopConfig,), frozen=True)


def _restore(sections: dict[str, Any]) -> LoopConfig:
    return make_schema()(**sections)


def load_config(path: Path, overrides: Sequence[str] = ()) -> LoopConfig:
    """Read YAML, apply ``key=value`` overrides, check everything. Raises `WorldloopError` with one clear line.

    ``extends: other.yaml``, relative to the file, takes over everything of another config except its ``run_name``.
    """
    parts = _read(path)
    for override in overrides:
        if "=" not in override or override.startswith("="):
            raise WorldloopError(f"override {override!r} is not of the form key=value")
    config = build_config([*parts, OmegaConf.from_dotlist(list(overrides))], str(path))
    if not config.run_name:
        config = build_config([*parts, OmegaConf.from_dotlist([*overrides, f"run_name={path.stem}"])], str(path))
    return config


def _read(path: Path, extended_by: tuple[Path, ...] = ()) -> list[DictConfig]:
    """The YAML at ``path``, after what it extends."""
    if path.resolve() in extended_by:
        raise WorldloopError(f"config {path} extends itself")
    if not path.is_file():
        by = f", which {extended_by[-1]} extends," if extended_by else ""
        raise WorldloopError(f"config {path}{by} does not exist")
    try:
        loaded = OmegaConf.load(path)
    except Exception as error:  # YAML parsers raise many kinds; all of them mean the same to a user
        raise WorldloopError(f"config {path} is not YAML: {first_line(error)}") from error
    if not isinstance(loaded, DictConfig):
        raise WorldloopError(f"config {path} is not a mapping of keys to values")
    if "extends" not in loaded:
        return [loaded]
    base = loaded.pop("extends")
    if not isinstance(base, str):
        raise WorldloopError(f"config {path}: extends must be the name of a config, got {base!r}")
    parts = _read(path.parent / base, (*extended_by, path.resolve()))
    for part in parts:
        part.pop("run_name", None)
    return [*parts, loaded]


def build_config(parts: Sequence[Any], origin: str) -> LoopConfig:
    """Merge ``parts`` over the defaults, later ones winning."""
    schema = OmegaConf.structured(make_schema())
    _make_writable(schema)
    try:
        merged = OmegaConf.merge(schema, *parts)
        result = OmegaConf.to_object(merged)
    except ConfigKeyError as error:
        raise WorldloopError(f"{origin}: {_explain_unknown_key(error)}") from error
    except OmegaConfBaseException as error:
        message = first_line(error)
        raise WorldloopError(f"{origin}: bad value for {error.full_key or 'a key'}: {message}") from error
    except (ValueError, TypeError) as error:
        raise WorldloopError(f"{origin}: {error}") from error
    assert isinstance(result, LoopConfig)
    return result


def _make_writable(node: Any) -> None:
    """OmegaConf makes nodes of frozen dataclasses read-only, which would refuse the merge."""
    OmegaConf.set_readonly(node, False)
    for key in node:
        if OmegaConf.is_dict(node._get_node(key)):
            _make_writable(node._get_node(key))


def _explain_unknown_key(error: ConfigKeyError) -> str:
    key = str(error.full_key or error.key)
    cls: Any = make_schema()
    for part in key.split(".")[:-1]:
        cls = get_type_hints(cls).get(part, cls) if is_dataclass(cls) else cls
    known = [f.name for f in fields(cls)] if is_dataclass(cls) else []
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], known, n=1)
    hint = f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(known)}"
    return f"unknown key {key}{hint}"


def to_yaml(config: LoopConfig) -> str:
    """The resolved configuration, as stored in each run directory."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


# A run may be continued with other resources: no result depends on these keys.
_FREE_KEYS = ("runtime", "resources", "run_root", "run_name", "mirror")


def list_settings(config: LoopConfig) -> dict[str, Any]:
    """``section.key`` -> value of what differs from the defaults, and the seed."""
    defaults, values = _flatten(to_yaml(make_schema()())), _flatten(to_yaml(config))
    return {k: v for k, v in values.items() if k == "seed" or v != defaults.get(k)}


def _flatten(yaml: str) -> dict[str, Any]:
    def walk(node: Any, prefix: str) -> dict[str, Any]:
        if isinstance(node, dict):
            return {k: v for key, child in node.items() for k, v in walk(child, f"{prefix}{key}.").items()}
        return {prefix.rstrip("."): node}

    return walk(OmegaConf.to_container(OmegaConf.create(yaml)), "")


def find_differences(stored: str, other: str) -> list[str]:
    """Keys whose values differ between two stored YAMLs, of those that results depend on, as ``key (old -> new)``.

    A key that an earlier worldloop did not have counts as its default, which is what that did.
    """

    defaults, old, new = (_flatten(yaml) for yaml in (to_yaml(make_schema()()), stored, other))
    old, new = defaults | old, defaults | new
    keys = [k for k in dict.fromkeys([*old, *new]) if k.split(".")[0] not in _FREE_KEYS]
    return [f"{k} ({old.get(k)} -> {new.get(k)})" for k in keys if old.get(k) != new.get(k)]
