"""Align the video model with what a robot can do, by reinforcement learning on a reward from inverse dynamics (EVA).

``mode: plan`` aligns the planner by executability, ``mode: follow`` the world model by how well its video follows its
actions. The aligned model takes the place of the other only if held-out video is not worse, by an inverse dynamics
model that the training has not used.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from worldloop.core.randomness import make_row_keys
from worldloop.core.statistics import Rate
from worldloop.evaluation.plans import PlanJudgement, find_successes, judge_plans, plan_successes
from worldloop.executability.inverse_dynamics import InverseDynamics
from worldloop.policies.planner.policy import PlannerPolicy
from worldloop.stages.alignment import follow, plan
from worldloop.stages.alignment.config import AlignmentConfig as Config
from worldloop.stages.alignment.objective import AlignmentObjective, Mode
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState
from worldloop.training.optimizer import Optimizer
from worldloop.training.trainer import Trainer
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.planner import VideoPlanner
from worldloop.world_model.tracing import Sampling

NAME = "align_world_model"


def takes_part(config: Config, schedule: Schedule) -> bool:
    return config.enabled and not schedule.is_first and schedule.uses_inverse_dynamics and schedule.uses_world_model


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    return {"plan": align_planner, "follow": align_world_model}[config.mode](state, config, context)


def align_planner(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Set ``state.planner`` to the aligned planner's policy, if it is kept."""
    policy = context.models.load_policy(state.planner)
    assert isinstance(policy, PlannerPolicy)
    assert isinstance(policy.planner, VideoPlanner)
    planner = policy.planner.to(context.device)
    inverse_dynamics = context.models.load_inverse_dynamics(state.inverse_dynamics).to(context.device)
    judge = context.models.load_inverse_dynamics(state.inverse_dynamics_judge).to(context.device)
    sampling = choose_sampling(config, planner.config.num_sampler_steps)
    before = judge_planner(planner, judge, state, config, context)
    mode = plan.PlanMode(
        planner,
        deepcopy(planner).requires_grad_(False),
        inverse_dynamics.requires_grad_(False),
        context.open_clips(state.dataset, "train"),
        config,
        sampling,
        context.seed,
    )
    release(planner, planner.world_model)
    planner.unknown_actions.requires_grad_(True)
    planner.unknown_proprio.requires_grad_(True)
    aligned = train(planner, mode, sampling, state, config, context)
    after = judge_planner(aligned, judge, state, config, context)
    fault = f"no held-out success has {config.num_frames} frames to judge by"
    if before is not None and after is not None:
        context.reporter.log(f"plans before: {before}; after: {after}")
        fault = plan.find_fault(before, after, config)
    path = f"{state.planner}_aligned"
    context.models.save_planner_policy(aligned, inverse_dynamics, path)
    success: dict[str, dict[str, float]] = {}
    has_simulator = bool(state.clone)
    if config.num_states and has_simulator and context.setup.data_parallel.is_main:
        planners = {"before": state.planner, "after": path}
        rates = {when: act(policy, state, config, context) for when, policy in planners.items()}
        success = {when: rate.to_dict() for when, rate in rates.items()}
        context.reporter.log(f"the planner succeeds in {rates['before']}, aligned in {rates['after']}")
        if not fault and rates["after"].k < rates["before"].k:
            fault = f"the aligned planner succeeds in {rates['after'].k} states, before in {rates['before'].k}"
    fault = context.setup.data_parallel.all_gather(fault)[0]  # all ranks must decide alike, whatever their rounding
    figures = {"before": before and before.to_dict(), "after": after and after.to_dict(), "success": success or None}
    state = finish(state, config, context, figures, fault)
    return state if fault and config.gate else replace(state, planner=path)


def act(policy: str, state: LoopState, config: Config, context: StageContext) -> Rate:
    """Success of ``policy`` on fresh validation states, the same for every policy. Its steps only judge."""
    simulation = context.simulation
    states = simulation.draw_fresh_states("validation", config.num_states, NAME, state.iteration)
    episodes = simulation.judge(
        states, block_size=config.block_size, purpose=NAME, iteration=state.iteration, policy=policy
    )
    return Rate.of(np.array([episode.is_success for episode in episodes]))


def align_world_model(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Set ``state.world_model`` to the aligned one, if it is kept."""
    model = context.models.load_world_model(state.world_model).to(context.device)
    inverse_dynamics = context.models.load_inverse_dynamics(state.inverse_dynamics).to(context.device)
    judge = context.models.load_inverse_dynamics(state.inverse_dynamics_judge).to(context.device)
    sampling = choose_sampling(config, model.config.num_sampler_steps)
    held_out = context.open_clips(state.dataset, "validation", model.spec)
    before = follow.judge_following(model, judge, held_out, config, context.seed)
    clips = context.open_clips(state.dataset, "train", model.spec)
    reference = deepcopy(model).requires_grad_(False)
    mode = follow.FollowMode(model, reference, inverse_dynamics.requires_grad_(False), clips, config)
    release(model, model)
    aligned = train(model, mode, sampling, state, config, context)
    after = follow.judge_following(aligned, judge, held_out, config, context.seed)
    context.reporter.log(
        f"held-out video: following {before.following} -> {after.following}, PSNR {before.psnr_db.value:.2f} -> "
        f"{after.psnr_db.value:.2f} dB"
    )
    fault = context.setup.data_parallel.all_gather(follow.find_fault(before, after, config))[0]
    path = f"{state.world_model}_aligned"
    context.models.save_world_model(aligned, path)
    state = finish(state, config, context, {"before": before.to_dict(), "after": after.to_dict()}, fault)
    # the next fit goes on from the teacher, which is not aligned
    return state if fault and config.gate else replace(state, world_model=path)


def choose_sampling(config: Config, num_sampler_steps: int) -> Sampling:
    if config.algorithm == "flow_grpo":
        return Sampling(num_sampler_steps, config.random_steps, config.noise_level)
    return Sampling(num_sampler_steps)


def release(whole: nn.Module, model: VideoWorldModel) -> None:
    """Train nothing of ``whole`` but the denoiser of ``model``, where it is trained at all."""
    whole.requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("denoiser.") and name not in model.frozen)


def train[ModuleT: nn.Module](
    module: ModuleT, mode: Mode, sampling: Sampling, state: LoopState, config: Config, context: StageContext
) -> ModuleT:
    """Run the updates; returns the module with averaged weights."""
    key = (context.seed, state.iteration, NAME, config.mode)
    trainer = Trainer(
        module.eval(),
        partial(Optimizer, learning_rate=config.learning_rate, num_steps=None, weight_decay=0.0, warmup_steps=4),
        context.setup,
        context.reporter,
        name=NAME,
        unit="update",
        first_step=(state.iteration - 1) * config.num_updates,
        ema_decay=config.ema_decay,
    )
    objective = AlignmentObjective(
        mode,
        config,
        sampling,
        context.setup.make_generators(*key),
        key=key,
        num_microbatches=context.setup.num_microbatches,
        device=context.device,
        max_batch=context.max_imagination_batch,
    )
    return trainer.fit(objective, config.num_updates).eval()


def judge_planner(
    planner: VideoPlanner, judge: InverseDynamics, state: LoopState, config: Config, context: StageContext
) -> PlanJudgement | None:
    """The planner's videos beside held-out successes; ``None`` if none is long enough."""
    episodes = find_successes(context.open_cache(state.dataset), config.num_frames, follow.NUM_JUDGED)
    if not episodes:
        return None
    keys = make_row_keys(len(episodes), context.seed, state.iteration, f"{NAME}/judge")
    return judge_plans(plan_successes(planner, episodes, config.num_frames, keys), judge)


def finish(state: LoopState, config: Config, context: StageContext, figures: dict[str, Any], fault: str) -> LoopState:
    """Log and record whether the aligned model, which has been saved, is kept; drop the training checkpoint."""
    context.setup.drop_checkpoint(NAME)
    kept = "the aligned model is kept" + (f", though {fault}" if fault else "")
    context.reporter.log(f"alignment refused: {fault}" if fault and config.gate else kept)
    is_kept = not (fault and config.gate)
    verdict = {"mode": config.mode, "accepted": not fault, "reason": fault or None, "kept": is_kept}
    return state.record(alignment=figures | verdict)
