"""The run's configuration: one tree of frozen dataclasses.

Each section is defined beside the class it configures, and checks itself: a bad value is a ``ValueError`` that names
the key and what is allowed. `worldloop.config.loading` reads it from YAML and ``key=value``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from urllib.parse import parse_qs, urlsplit

from worldloop.core.interfaces import GatedPolicy, PlannedPolicy
from worldloop.core.sections import add_sections
from worldloop.executability.inverse_dynamics import InverseDynamicsConfig
from worldloop.factory.build import is_policy
from worldloop.factory.config import PolicyConfig, SimulatorConfig
from worldloop.sans.clips import ClipSamplingConfig
from worldloop.sans.recordings import RecordingConfig
from worldloop.simulators import SIMULATORS
from worldloop.simulators.perturbations import SCRIPTED_VARIANTS
from worldloop.stages import (
    STAGES,
    align_world_model,
    check_closed_loop,
    clone_policy,
    distil_world_model,
    evaluate_policy,
    fit_inverse_dynamics,
    fit_planner,
    fit_world_model,
    refit_world_model,
    seed_dataset,
)
from worldloop.storage.retention import RetentionConfig
from worldloop.value.config import ValueConfig
from worldloop.world_model.config import WorldModelConfig

RUNTIMES = ("ray", "inline")
SOURCES = ("simulator", "recording", "robot")
MIRROR_OPTIONS = ("region", "scheme", "endpoint_override", "tls_ca_file_path")
MAX_NAME = 200  # characters of run_name; file systems allow names of 255 bytes


@dataclass(frozen=True)
class ResourcesConfig:
    """Resources that the loop may use.

    No result depends on ``num_simulators`` or on the runtime. ``num_workers`` changes only the order in which floats
    are added.
    """

    device: str = "auto"  # auto | cpu | cuda: where networks train and imagine
    num_threads: int = 2  # CPU threads of training and imagination
    num_simulators: int = 2  # simulator processes; 0 (runtime inline only): simulate in the stage's own process
    cpus_per_simulator: float = 0.0  # CPUs that Ray reserves per simulator actor; 0: they share the trainer's CPUs
    num_workers: int = 1  # data-parallel workers of training stages (Ray Train); must divide num_microbatches
    shard_world_model: bool = False  # each worker holds a share of the trained world model (FSDP2): for a large one
    trainer_cpus: float = 1.0  # CPUs that Ray reserves for the stage actor, or for each training worker
    trainer_gpus: float = 0.0  # GPUs, reserved in the same way; 0: none
    max_imagination_batch: int = 0  # most rows imagined together; 0: all, halved when CUDA runs out of memory
    checkpoint_every_s: float = 300.0  # seconds between checkpoints within a training stage; 0: none
    max_retries: int = 3  # retries of a simulator's block, or (with Ray) of a stage, after its process died
    block_timeout_s: float = 3600.0  # seconds after which a stuck simulator is replaced; 0: never
    cluster_grows: bool = False  # true: an autoscaler may add nodes, so do not refuse what the present ones cannot hold
    show_prints: bool = False  # true: show what code prints in Ray's actors
    ray_address: str = ""  # cluster to join; "": RAY_ADDRESS, or a local cluster that the run starts

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"resources.device {self.device!r} is not one of auto, cpu, cuda")
        if self.shard_world_model and self.num_workers < 2:
            raise ValueError("resources.shard_world_model needs resources.num_workers of at least 2")
        if self.num_workers < 1 or self.checkpoint_every_s < 0 or self.max_imagination_batch < 0:
            raise ValueError(
                "resources.num_workers must be at least 1, resources.checkpoint_every_s and "
                "max_imagination_batch at least 0"
            )
        if self.num_threads < 1 or self.num_simulators < 0 or self.max_retries < 0 or self.block_timeout_s < 0:
            raise ValueError(
                "resources.num_threads must be at least 1, resources.num_simulators, max_retries and block_timeout_s "
                "at least 0"
            )


@add_sections(STAGES)
@dataclass(frozen=True)
class LoopConfig:
    """A run's settings, and one section for every name of `worldloop.stages.STAGES`, see `section`."""

    run_name: str = ""  # folder of the run under run_root; "": the config file's name
    run_root: str = "runs"  # folder of all runs; must be absolute in a Ray job
    mirror: str = ""  # store that the run is copied to, e.g. s3://bucket/runs; "": none
    runtime: str = "ray"  # ray | inline (no Ray: this process and processes that it starts)
    seed: int = 0  # seed of all random numbers, except for validation and evaluation states
    num_iterations: int = 2  # iterations after iteration 0, which clones the first policy
    num_microbatches: int = 1  # microbatches per training batch; workers share them, a worker runs its own in turn
    chunk_length: int = 5  # actions per policy call; a multiple of the simulator's actions_per_frame
    source: str = "simulator"  # simulator | recording | robot (begins with a recording): where episodes come from
    simulator: SimulatorConfig = field(default_factory=SimulatorConfig)
    recording: RecordingConfig = field(default_factory=RecordingConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    world_model: WorldModelConfig = field(default_factory=WorldModelConfig)
    value: ValueConfig = field(default_factory=ValueConfig)
    inverse_dynamics: InverseDynamicsConfig = field(default_factory=InverseDynamicsConfig)
    clips: ClipSamplingConfig = field(default_factory=ClipSamplingConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)

    def section[T](self, kind: type[T]) -> T:
        """The section of type ``kind``, e.g. ``config.section(clone_policy.Config)``."""
        section = self.sections()[kind]
        assert isinstance(section, kind)
        return section

    def sections(self) -> dict[type, object]:
        """The sections by type."""
        values = [getattr(self, f.name) for f in fields(self)]
        return {type(value): value for value in values if is_dataclass(value)}

    def __post_init__(self) -> None:
        if self.runtime not in RUNTIMES:
            raise ValueError(f"runtime {self.runtime!r} is not one of {', '.join(RUNTIMES)}")
        if self.num_iterations < 0 or self.chunk_length < 1:
            raise ValueError("num_iterations must be at least 0 and chunk_length at least 1")
        if self.run_name in (".", "..") or "/" in self.run_name or len(self.run_name) > MAX_NAME:
            raise ValueError(
                f"run_name {self.run_name!r} must be the name of one folder, of at most {MAX_NAME} characters; "
                "run_root says where it is"
            )
        if "://" in self.run_root:
            raise ValueError(
                f"run_root {self.run_root!r} must be a folder; mirror={self.run_root} keeps a copy of the run there"
            )
        if self.mirror:
            _check_mirror(self.mirror)
        self._check_microbatches()
        self._check_source()
        distillation = self.section(distil_world_model.Config)
        teacher, student = self.world_model.num_sampler_steps, distillation.num_sampler_steps
        if distillation.num_steps and (teacher % student or teacher == student):
            raise ValueError(
                f"distil_world_model.num_sampler_steps {student} must divide world_model.num_sampler_steps {teacher} "
                "and be fewer"
            )
        if self.section(fit_world_model.Config).inverse_dynamics_weight and self.world_model.codec != "pixel":
            raise ValueError(
                "fit_world_model.inverse_dynamics_weight reads pixels: set it to 0 with world_model.codec "
                f"{self.world_model.codec}"
            )
        self._check_alignment()
        self._check_cloning()
        if self.section(refit_world_model.Config).num_steps:
            replaying = self.section(check_closed_loop.Config)
            if not (replaying.num_states and replaying.num_training_states):
                raise ValueError(
                    "refit_world_model learns from replays: set check_closed_loop.num_states and "
                    "check_closed_loop.num_training_states above 0, or refit_world_model.num_steps=0"
                )
            if distillation.num_steps:
                raise ValueError(
                    "refit_world_model would leave the student behind: set refit_world_model.num_steps=0 or "
                    "distil_world_model.num_steps=0"
                )

    def _check_source(self) -> None:
        if self.source not in SOURCES:
            raise ValueError(f"source {self.source!r} is not one of {', '.join(SOURCES)}")
        is_recording = self.source == "recording"
        if is_recording and self.num_iterations != 1:
            raise ValueError(
                f"num_iterations is {self.num_iterations}, allowed with source recording: 1, since nothing is "
                "collected that a second one could learn from"
            )
        has_simulator = self.source == "simulator"
        name = f"simulator.{self.simulator.kind}" if has_simulator else "recording"
        section = self.simulator.chosen_section() if has_simulator else self.recording
        per_frame = getattr(section, "actions_per_frame", 1)
        if self.chunk_length % per_frame:
            raise ValueError(
                f"chunk_length {self.chunk_length} must be a multiple of {name}.actions_per_frame {per_frame}"
            )
        most, asked = getattr(section, "NUM_EVALUATION_STATES", None), self.section(evaluate_policy.Config).num_states
        if most is not None and asked > most:
            raise ValueError(
                f"evaluate_policy.num_states is {asked}, allowed with {name}: at most {most}, which it has"
            )
        seeding = self.section(seed_dataset.Config)
        if seeding.held_out_side and self.num_iterations:
            raise ValueError(
                "seed_dataset.held_out_side holds nothing out of what later iterations collect: set num_iterations=0"
            )
        if seeding.demonstrations and not has_simulator:
            raise ValueError(
                "seed_dataset.demonstrations go with a simulator: set source=simulator, or without one "
                "seed_dataset.demonstrations=false"
            )
        episodes = seeding.episodes
        for variant in episodes if self.simulator.kind in SIMULATORS else ():
            if variant not in SCRIPTED_VARIANTS:
                raise ValueError(
                    f"seed_dataset.episodes: {variant!r} is not one of the scripted variants "
                    f"{', '.join(SCRIPTED_VARIANTS)}"
                )

    def _check_cloning(self) -> None:
        """Raise ``ValueError`` if nothing is cloned, and the policy is none that could act without."""
        if self.section(clone_policy.Config).num_steps or ":" in self.policy.kind:
            return
        keeps = getattr(self.policy.chosen_section(), "keeps_statistics", False)
        if not keeps:  # only a policy with a path can keep them
            raise ValueError(
                "clone_policy.num_steps=0 keeps a pretrained policy as it is: set policy.kind=lerobot, "
                "policy.lerobot.path and policy.lerobot.keeps_statistics=true, or clone_policy.num_steps above 0"
            )

    @property
    def reads_recording(self) -> bool:
        """Whether episodes of the section `recording` are read, as the only ones or as demonstrations."""
        return self.source != "simulator" or self.section(seed_dataset.Config).demonstrations

    @property
    def uses_planner(self) -> bool:
        """Whether a planner is fitted: it was asked for, is aligned, or the policy builds on it."""
        alignment = self.section(align_world_model.Config)
        is_aligned = alignment.enabled and alignment.mode == "plan"
        return self.section(fit_planner.Config).enabled or is_aligned or self.policy_is_planned

    @property
    def policy_is_planned(self) -> bool:
        """Whether the policy builds on a planner; `WorldloopError` if its class cannot be found."""
        return self.source == "simulator" and is_policy(self.policy, PlannedPolicy)  # type: ignore[type-abstract]

    @property
    def policy_is_gated(self) -> bool:
        """Whether the policy chooses between experts; `WorldloopError` if its class cannot be found."""
        return self.source == "simulator" and is_policy(self.policy, GatedPolicy)  # type: ignore[type-abstract]

    @property
    def uses_inverse_dynamics(self) -> bool:
        """Whether inverse dynamics models are fitted: they were asked for, or another stage needs one."""
        return (
            self.section(fit_inverse_dynamics.Config).enabled
            or self.uses_planner
            or self.section(align_world_model.Config).enabled
            or self.section(fit_world_model.Config).inverse_dynamics_weight > 0
        )

    def _check_alignment(self) -> None:
        """The settings of `align_world_model` that concern other sections."""
        alignment, planner = self.section(align_world_model.Config), self.section(fit_planner.Config)
        if not alignment.enabled:
            return
        if self.world_model.codec != "pixel":
            raise ValueError(
                "align_world_model rewards pixels: set align_world_model.enabled=false with world_model.codec "
                f"{self.world_model.codec}"
            )
        if self.resources.shard_world_model:
            raise ValueError(
                "align_world_model and fit_planner hold whole world models: set resources.shard_world_model=false"
            )
        if alignment.mode == "plan":
            alignment.check_sampler(planner.num_sampler_steps, "fit_planner.num_sampler_steps")
        else:
            distillation = self.section(distil_world_model.Config)
            alignment.check_sampler(self.world_model.num_sampler_steps, "world_model.num_sampler_steps")
            if distillation.num_steps:
                alignment.check_sampler(distillation.num_sampler_steps, "distil_world_model.num_sampler_steps")

    def _check_microbatches(self) -> None:
        parts, workers = self.num_microbatches, self.resources.num_workers
        if parts < 1 or parts % workers:
            raise ValueError(f"num_microbatches {parts} must be a multiple of resources.num_workers {workers}")
        if workers > 1 and self.runtime != "ray":
            raise ValueError(f"resources.num_workers {workers} needs runtime ray, not {self.runtime}")
        for name, stage in STAGES.items():
            section = self.section(stage.Config)
            if not getattr(section, "enabled", True):
                continue
            for key in getattr(stage.Config, "MICROBATCHED", ()):
                if getattr(section, key) % parts:
                    raise ValueError(f"{name}.{key} {getattr(section, key)} is no multiple of num_microbatches {parts}")


def _check_mirror(address: str) -> None:
    """Raise ``ValueError`` unless ``address`` is that of a store, without credentials. The address is never shown."""
    if "://" not in address:
        raise ValueError("mirror must be an address, e.g. s3://bucket/runs or file:///backup/runs")
    parts = urlsplit(address)
    is_place = parts.scheme in ("abfs", "abfss") or parts.username == "anonymous"  # a container, or nobody
    options = parse_qs(parts.query, keep_blank_values=True)
    unknown = [key for key in options if key not in MIRROR_OPTIONS]
    hides_login = any("@" in host for host in options.get("endpoint_override", []))
    if parts.password is not None or (parts.username is not None and not is_place) or unknown or hides_login:
        raise ValueError(
            "mirror must hold no credentials, which the run would store: put them in the environment. After ? may "
            f"come {', '.join(MIRROR_OPTIONS)}"
        )
