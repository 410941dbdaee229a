"""Improve the policy: by GRPO inside the world model, by RECAP, or by imitating every success in SANS (the control).

RECAP and imitation run once in an iteration, GRPO several times. Its first run makes the policy that it starts from:
one that imitates every success in SANS (World-VLA-Loop starts from the clone; ``restart_from`` chooses). Each further
run is a round of updates and leaves a candidate. After every run `check_closed_loop` may find that the world model is
not trusted any more for the newest policy; then no round follows. A round goes on from the averaged weights of the
newest candidate, the policy that was checked, with a fresh optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
from torch import Tensor

from worldloop.core.errors import WorldloopError, require_choice, require_range
from worldloop.core.interfaces import AdvantageConditionedPolicy, LikelihoodPolicy, Policy
from worldloop.core.randomness import derive_seed
from worldloop.core.success import Calibrations, Trust
from worldloop.core.types import OUTCOMES, SOURCES, Observation
from worldloop.policies.imitation import LabelledImitationSource, WithImagined, fit_by_conditioned_imitation
from worldloop.rl.advantages import compute_group_advantages
from worldloop.rl.grpo import GrpoConfig, GrpoObjective
from worldloop.rl.recap import LabelledChunks, label_first_chunks
from worldloop.rl.reward_context import RewardContext
from worldloop.rl.rewards import score_rollout
from worldloop.rollout.groups import GroupedImagination, GroupSettings
from worldloop.sans.advantages import read_labels
from worldloop.sans.imitation import EVERY_SUCCESS, EpisodeSelection, ImitationDataset, LabelledImitation
from worldloop.stages import clone_policy, label_advantages
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_directory import name_checkpoint
from worldloop.storage.run_state import LoopState
from worldloop.training.optimizer import Optimizer
from worldloop.training.resume import TrainingSetup
from worldloop.training.trainer import Trainer
from worldloop.value.critic import Critic, average_value
from worldloop.value.returns import choose_threshold

NAME = "improve_policy"
STARTS = ("policy", "clone", "successes")


@dataclass(frozen=True)
class Config(GrpoConfig):
    TRAINS: ClassVar[bool] = True
    MICROBATCHED: ClassVar[tuple[str, ...]] = ("groups_per_update", "minibatch_size")

    method: str = "grpo"  # grpo (in the world model) | recap | recap_imagined (and imagined chunks) | imitate_successes
    restart_from: str = "successes"  # successes (clone of all in SANS), policy (the current) or clone (iteration 0's)
    mid_episode_share: float = 0.25  # share of groups that start in the middle of a policy episode, in [0, 1]
    imagination_horizon: int = 6  # most chunks of an imagined rollout; drift grows with each chunk
    truncates_uncertain: bool = False  # end a rollout, as a failure, at its first uncertain frame (floor_db)
    num_candidates: int = 3  # rounds, among which the updates are divided; each gives a candidate for promotion
    num_imitation_steps: int = 900  # optimizer steps of imitating successes (the clone has fewer episodes)
    num_recap_steps: int = 2700  # optimizer steps of recap, which imitates all episodes and learns three indicators
    guidance: float = 1.0  # recap acts by log pi_u + guidance (log pi_c - log pi_u); 1: conditioned on good actions
    indicator_dropout: float = 0.3  # recap learns without the indicator this often, 0 to 1
    num_imagined_groups: int = 240  # recap_imagined: real states, from each of which group_size chunks are imagined
    imagined_share: float = 0.25  # recap_imagined: share of a batch that is imagined, 0 to 1

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("improve_policy.method", self.method, tuple(METHODS))
        require_choice("improve_policy.restart_from", self.restart_from, STARTS)
        for name in ("imagination_horizon", "num_imitation_steps", "num_recap_steps", "num_imagined_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"improve_policy.{name} must be at least 1, got {getattr(self, name)}")
        if not 1 <= self.num_candidates <= self.num_updates:
            bounds = f"1..num_updates = {self.num_updates}"
            raise ValueError(f"improve_policy.num_candidates must be in {bounds}, got {self.num_candidates}")
        require_range("improve_policy.mid_episode_share", self.mid_episode_share, 0, 1)
        require_range("improve_policy.guidance", self.guidance, 0)
        require_range("improve_policy.indicator_dropout", self.indicator_dropout, 0, 1)
        require_range("improve_policy.imagined_share", self.imagined_share, 0, 1)


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.has_simulator


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Make ``state.start``, or add a candidate to ``state.candidates``, by ``config.method``."""
    return METHODS[config.method].run(state, config, context)


def imitate_successes(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """The one candidate imitates every success in SANS."""
    candidate = name_checkpoint(state.iteration, "policy")
    _imitate(state, config, context, candidate)
    return replace(state, start=candidate, newest=candidate, candidates=(candidate,))


def run_recap(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """RECAP (arXiv:2511.14759, section IV): the one candidate imitates all episodes, told which actions were good.

    It starts from new weights. It then acts as if told that its next actions are good. With method ``recap_imagined`` a
    share of each batch are chunks that the policy samples from real states, labelled by what they lead to in the world
    model.
    """
    candidate = name_checkpoint(state.iteration, "policy")
    if not context.models.has(candidate):
        version = context.store.version(state.dataset)
        labels = read_labels(context.models.run_dir / state.labels, version.fingerprint)
        if labels.critics != label_advantages.hash_critics(state, context):
            raise WorldloopError(
                f"the labels in {state.labels} are of other critics than {', '.join(state.critics)}: they were made "
                "anew since; delete the run directory and run again"
            )
        policy = context.models.new_policy(version.normalisation, derive_seed(context.seed, state.iteration, NAME))
        assert isinstance(policy, AdvantageConditionedPolicy)
        everything = EpisodeSelection(sources=SOURCES, outcomes=OUTCOMES)
        episodes = ImitationDataset(context.open_cache(state.dataset), everything, policy.spec.robot.camera_names)
        cloning = replace(context.config_of(clone_policy.Config), num_steps=config.num_recap_steps)
        source: LabelledImitationSource = LabelledImitation(episodes, labels)
        imagined = imagine_chunks(state, config, context) if config.method == "recap_imagined" else None
        if imagined is not None:
            source = WithImagined(source, imagined.chunks, imagined.is_good, config.imagined_share)
        policy = fit_by_conditioned_imitation(
            policy,
            source,
            cloning,
            context.setup.make_generators(context.seed, state.iteration, f"{NAME}/recap"),
            context.setup,
            context.reporter,
            name=NAME,
            first_step=state.iteration * config.num_recap_steps,
            indicator_dropout=config.indicator_dropout,
        )
        policy.guidance = config.guidance
        context.models.save_policy(policy, candidate)
    context.setup.drop_checkpoint(NAME)
    return replace(state, start=candidate, newest=candidate, candidates=(candidate,))


def imagine_chunks(state: LoopState, config: Config, context: StageContext) -> LabelledChunks | None:
    """Imagine ``group_size`` chunks of the current policy from each of ``num_imagined_groups`` real states.

    Each is followed by more chunks, up to ``imagination_horizon``. The return of a group's member is a declared success
    or else what the critics expect at its end; `label_first_chunks` labels the first chunk by it. ``None`` if the world
    model is trusted in no task.
    """
    tasks = tuple(task for task in context.spec.task_ids if state.trust.get(task, Trust(True)).is_trusted)
    if not tasks:
        context.reporter.log("no chunks are imagined: the world model is trusted in no task")
        return None
    world_model = context.models.load_world_model(state.world_model).to(context.device).for_imagination()
    policy = context.models.load_policy(state.policy).to(context.device).eval()
    policy.temperature = config.temperature
    calibrations = state.calibrations or Calibrations()
    key = (context.seed, state.iteration, "recap_imagined")
    setup = TrainingSetup(device=context.device)
    settings = GroupSettings(
        num_groups=config.num_imagined_groups,
        tasks=tasks,
        group_size=config.group_size,
        mid_episode_share=1.0,
        imagination_horizon=config.imagination_horizon,
        truncates_uncertain=False,
        max_imagination_batch=context.max_imagination_batch,
        key=key,
    )
    dataset = context.open_clips(state.dataset, "train")
    groups = GroupedImagination(
        policy, world_model, calibrations, dataset, settings, setup, setup.make_generators(*key)
    )
    rollout = groups.imagine(0, 0)
    critics = [context.models.load_critic(path).to(context.device) for path in state.critics]
    judging = RewardContext(context.spec, calibrations, value_as_return(critics, rollout.steps[-1].observation))
    returns, _ = score_rollout(rollout, {"success": 1.0}, judging)
    advantages = compute_group_advantages(returns, rollout.group_id, config.min_group_std, normalises=False)
    context.reporter.log(
        f"imagined {int(advantages.keep.sum())} chunks to learn from; {advantages.num_dropped} of "
        f"{config.num_imagined_groups} real states tell nothing"
    )
    positive_share = context.config_of(label_advantages.Config).positive_share
    task = np.array(rollout.observations[0].task)
    thresholds = {
        name: choose_threshold(advantages.advantages.numpy()[advantages.keep.numpy() & (task == name)], positive_share)
        for name in np.unique(task[advantages.keep.numpy()]).tolist()
    }
    return label_first_chunks(rollout, advantages, thresholds, policy.spec.robot.camera_names)


def run_grpo(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Choose where GRPO starts, then one round of it in the tasks in which the last check trusts the world model.

    With ``restart_from: successes`` the policy that imitates all successes is a candidate too, even without GRPO.
    """
    if not state.start:
        return choose_start(state, config, context)
    distrusted = {task: trust.reason for task, trust in state.trust.items() if not trust.is_trusted}
    tasks = tuple(task for task in context.spec.task_ids if task not in distrusted)
    if distrusted:
        context.reporter.log(f"improved without: {describe_distrust(distrusted, len(context.spec.tasks))}")
    path = name_checkpoint(state.iteration, f"policy_after_{divide_updates(config)[state.num_rounds + 1]:03d}")
    state = improve_in_imagination(state, config, context, tasks, path)
    return replace(state, candidates=(*state.candidates, path), newest=path, num_rounds=state.num_rounds + 1)


def choose_start(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Set ``state.start``; with ``restart_from: successes`` it is a new policy and the first candidate."""
    start = {"clone": state.clone, "policy": state.policy}.get(config.restart_from, "")
    candidates: tuple[str, ...] = ()
    if not start:
        start = name_checkpoint(state.iteration, "policy_of_successes")
        _imitate(state, config, context, start)
        candidates = (start,)
    return note_distrust(replace(state, start=start, newest=start, candidates=candidates), context)


def note_distrust(state: LoopState, context: StageContext) -> LoopState:
    """Record and log why GRPO leaves tasks out, or ends; nothing if every task is trusted."""
    distrusted = {task: trust.reason for task, trust in state.trust.items() if not trust.is_trusted}
    if not distrusted:
        return state
    reason = describe_distrust(distrusted, len(context.spec.tasks))
    if state.is_distrusted:
        what = "no further round" if state.num_rounds else "no GRPO"
        context.reporter.log(f"{what}, {describe_candidates(state.candidates)}: {reason}")
    return state.record(improvement_skipped=reason)


def describe_candidates(candidates: tuple[str, ...]) -> str:
    """What is left for promotion to choose from."""
    if not candidates:
        return "the policy stays"
    names = [candidate.rsplit("/", 1)[-1] for candidate in candidates]
    return f"the only candidate is {names[0]}" if len(names) == 1 else f"the candidates are {', '.join(names)}"


def divide_updates(config: Config) -> tuple[int, ...]:
    """The updates done after 0, 1, ... rounds, e.g. (0, 14, 28): evenly divided."""
    return tuple(np.linspace(0, config.num_updates, config.num_candidates + 1).round().astype(int).tolist())


@dataclass(frozen=True)
class Method:
    """A way to improve a policy: what it does, what it needs, and the interface a policy must have.

    - ``uses_world_model``: it imagines; ``in_rounds``: it does so in rounds, with a check in the closed loop after each
    - ``uses_advantages``: it learns from the labels of `label_advantages`
    """

    run: Callable[[LoopState, Config, StageContext], LoopState]
    interface: type[Policy]
    uses_world_model: bool = False
    in_rounds: bool = False
    uses_advantages: bool = False


METHODS = {
    "grpo": Method(run_grpo, LikelihoodPolicy, uses_world_model=True, in_rounds=True),  # type: ignore[type-abstract]
    "recap": Method(run_recap, AdvantageConditionedPolicy, uses_advantages=True),  # type: ignore[type-abstract]
    "recap_imagined": Method(
        run_recap,
        AdvantageConditionedPolicy,  # type: ignore[type-abstract]
        uses_world_model=True,
        uses_advantages=True,
    ),
    "imitate_successes": Method(imitate_successes, Policy),  # type: ignore[type-abstract]
}


def _imitate(state: LoopState, config: Config, context: StageContext, path: str) -> None:
    """Clone every success in SANS into the checkpoint ``path``."""
    cloning = replace(context.config_of(clone_policy.Config), num_steps=config.num_imitation_steps)
    clone_policy.imitate(state, cloning, context, EVERY_SUCCESS, path)


def describe_distrust(reasons: dict[str, str], num_tasks: int) -> str:
    """Why tasks are left out, from task -> reason; with one task just the reason."""
    return "; ".join(reason if num_tasks == 1 else f"{task}: {reason}" for task, reason in reasons.items())


def count_updates(state: LoopState, config: Config) -> int:
    """The updates of GRPO so far, over all iterations."""
    return (state.iteration - 1) * config.num_updates + divide_updates(config)[state.num_rounds]


def improve_in_imagination(
    state: LoopState, config: Config, context: StageContext, tasks: tuple[str, ...], path: str
) -> LoopState:
    """One round of GRPO in ``tasks`` from ``state.newest``, into the checkpoint ``path``; returns its figures."""
    policy, reference = (load_likelihood_policy(start, config, context) for start in (state.newest, state.start))
    world_model = context.models.load_world_model(state.world_model).to(context.device).for_imagination()
    calibrations = state.calibrations or Calibrations()
    dataset = context.open_clips(state.dataset, "train")
    paths = state.critics if config.uses_value else ()
    critics = [context.models.load_critic(path).to(context.device) for path in paths]
    setup = context.setup
    key = (context.seed, state.iteration, NAME, state.num_rounds)
    generators = setup.make_generators(*key)
    groups = GroupedImagination(
        policy,
        world_model,
        calibrations,
        dataset,
        GroupSettings(
            num_groups=config.groups_per_update // setup.num_microbatches,
            tasks=tasks,
            group_size=config.group_size,
            mid_episode_share=config.mid_episode_share,
            imagination_horizon=config.imagination_horizon,
            truncates_uncertain=config.truncates_uncertain,
            max_imagination_batch=context.max_imagination_batch,
            key=key,
        ),
        setup,
        generators,
    )
    done, end = divide_updates(config)[state.num_rounds : state.num_rounds + 2]
    trainer = Trainer(
        policy,
        partial(Optimizer, learning_rate=config.learning_rate, num_steps=None, weight_decay=0.0, warmup_steps=4),
        setup,
        context.reporter,
        name=NAME,
        unit="update",
        first_step=count_updates(state, config),
        ema_decay=config.ema_decay,
    )
    objective = GrpoObjective(
        policy,
        reference.eval(),
        config,
        groups.imagine,
        generators,
        calibrations=calibrations,
        num_microbatches=setup.num_microbatches,
        data_parallel=setup.data_parallel,
        device=context.device,
        value=partial(value_as_return, critics) if critics else None,
    )
    context.models.save_policy(trainer.fit(objective, end - done), path)
    setup.drop_checkpoint(NAME)
    first, last = objective.history.first_success, objective.history.last_success
    context.reporter.log(f"imagined success {first:.3f} -> {last:.3f} over {end - done} updates")
    before = state.recorded("imagined_success_in_training", {"first_update": first})
    return state.record(
        imagined_success_in_training=before | {"last_update": last},
        imagined_frames=state.recorded("imagined_frames", 0) + int(objective.history.num_frames),
    )


def value_as_return(critics: Sequence[Critic], observation: Observation) -> Tensor:
    """The mean value of ``critics`` plus 1, f32 [B] in [0, 1]: as a return, of which a success gives 1.

    With ``value.target=outcome`` it is a probability of success. With ``recap`` a failure is worth up to .5.
    """
    return average_value(critics, observation) + 1


def load_likelihood_policy(path: str, config: Config, context: StageContext) -> LikelihoodPolicy:
    policy = context.models.load_policy(path).to(context.device)
    if not isinstance(policy, LikelihoodPolicy):
        raise WorldloopError(
            f"improve_policy.method grpo needs exact log-probabilities, and {type(policy).__name__} is no "
            "LikelihoodPolicy: use improve_policy.method=imitate_successes, or give it log_prob"
        )
    policy.temperature = config.temperature
    return policy
