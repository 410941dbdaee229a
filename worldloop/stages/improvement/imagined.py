"""A round of imitation inside the world model: the policy imitates what succeeds there.

It acts several times from each start, and goes on from its weights by imitating the rollouts whose success is declared:
rejection sampling, as in RAFT (arXiv:2304.06767). That needs no likelihood, so any policy that samples can learn so.

Departures:

1. A share of every batch are successes in the real simulator.
2. All starts in which a rollout succeeds count equally, however many of their rollouts do, and all tasks likewise.
3. A round's learning rate decays from ``learning_rate``, and the last weights count, not averaged ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldloop.core.interfaces import Policy
from worldloop.core.types import ImitationBatch, Rollout
from worldloop.policies.imitation import UNKNOWN, WithImagined, fit_by_imitation
from worldloop.rl.advantages import shuffle_rows
from worldloop.rollout.groups import GroupedImagination
from worldloop.sans.imitation import EVERY_SUCCESS, ImitationDataset
from worldloop.sans.interaction import find_interaction
from worldloop.stages import clone_policy
from worldloop.stages.context import StageContext
from worldloop.stages.improvement.config import NAME, ImprovementConfig
from worldloop.stages.improvement.groups import open_groups
from worldloop.stages.improvement.rounds import count_steps
from worldloop.storage.run_state import LoopState
from worldloop.training.resume import TrainingSetup


def imitate_imagined(
    state: LoopState, config: ImprovementConfig, context: StageContext, tasks: tuple[str, ...], path: str
) -> LoopState:
    """One round in ``tasks`` from ``state.newest``, into the checkpoint ``path``; returns its figures.

    If no imagined rollout succeeds, the round imitates real successes alone.
    """
    policy = context.models.load_policy(state.newest).to(context.device).eval()
    policy.temperature = config.temperature
    key = (context.seed, state.iteration, NAME, state.num_rounds)
    setup = TrainingSetup(device=context.device)  # every rank imagines the same
    at_once = config.groups_per_update // context.setup.num_microbatches
    num_times = -(-config.num_imagined_groups // at_once)
    groups = open_groups(
        policy, state, config, context, tasks, key, setup, setup.make_generators(*key), num_groups=at_once
    )
    successes = imagine_successes(groups, num_times, policy, config.shuffle_rewards, context)
    del groups  # and with it the world model, before the fit
    share = f"{successes.num_solved} of {num_times * at_once} starts"
    context.reporter.log(f"imagined success {successes.success_rate:.3f}, at least one in {share}")

    cache = context.open_cache(state.dataset)
    interaction = find_interaction(cache, context.spec, policy.interaction)
    real = ImitationDataset(cache, EVERY_SUCCESS, policy.spec.robot.camera_names, interaction=interaction)
    chunks = successes.chunks
    if chunks is not None and interaction is not None:  # nobody knows of imagined chunks
        chunks = replace(chunks, is_interaction=torch.full((len(chunks.valid),), UNKNOWN))
    tuned = fit_by_imitation(
        policy,
        real if chunks is None else WithImagined(real, chunks, successes.weights, config.imagined_share),
        replace(
            context.config_of(clone_policy.Config),
            num_steps=config.num_imitation_steps,
            learning_rate=config.learning_rate,
        ),
        context.setup.make_generators(*key, "imitation"),
        context.setup,
        context.reporter,
        name=NAME,
        first_step=count_steps(state, config),
        is_new=False,
    )
    context.models.save_policy(tuned, path)
    context.setup.drop_checkpoint(NAME)
    before = state.recorded("imagined_success_in_training", {"first_update": successes.success_rate})
    return state.record(
        imagined_success_in_training=before | {"last_update": successes.success_rate},
        imagined_frames=state.recorded("imagined_frames", 0) + successes.num_frames,
    )


@dataclass(frozen=True)
class ImaginedSuccesses:
    """The action chunks of imagined rollouts that succeed.

    - ``chunks`` of n rows, ``None`` if no rollout succeeds; ``weights`` f32 [n]: how often each is to be drawn
    - ``num_solved``: starts from which at least one rollout succeeds
    - ``success_rate``: share of the rollouts that succeed; ``num_frames``: frames of all
    """

    chunks: ImitationBatch | None
    weights: Tensor
    num_solved: int
    success_rate: float
    num_frames: int


def imagine_successes(
    groups: GroupedImagination, num_times: int, policy: Policy, shuffles: bool, context: StageContext
) -> ImaginedSuccesses:
    """Imagine ``groups`` from ``num_times`` times other starts; keep what leads to a success, for ``policy``.

    With ``shuffles`` as many rollouts are kept, but at random: a control.
    """
    parts: list[ImitationBatch] = []
    starts: list[Tensor] = []
    tasks: list[str] = []
    num_rows = num_successes = num_solved = num_frames = 0
    actions_per_frame = context.spec.actions_per_frame
    with context.reporter.progress(num_times * groups.settings.num_groups, "imagined group") as progress:
        for number in range(num_times):
            rollout = groups.imagine(number, 0)
            success = rollout.success
            num_rows, num_successes = num_rows + len(success), num_successes + int(success.sum())
            num_solved += len(rollout.group_id[success].unique())
            num_frames += int(rollout.valid[:, ::actions_per_frame].sum())
            if shuffles:
                success = success[shuffle_rows(len(success), groups.generators[0])]
            for batch, rows in cut_chunks(rollout, success, policy.imitation_length, policy.spec.robot.camera_names):
                parts.append(batch)
                starts.append(rollout.group_id[rows] + number * groups.settings.num_groups)
                tasks += batch.observation.task
            progress.advance(groups.settings.num_groups, success=num_successes / num_rows)
    if not parts:
        return ImaginedSuccesses(None, torch.zeros(0), 0, 0.0, num_frames)
    weights = weigh_starts_equally(torch.cat(starts), tasks)
    return ImaginedSuccesses(ImitationBatch.cat(parts), weights, num_solved, num_successes / num_rows, num_frames)


def cut_chunks(
    rollout: Rollout, keep: Tensor, length: int, cameras: Sequence[str]
) -> Iterator[tuple[ImitationBatch, Tensor]]:
    """For every chunk of ``rollout`` what follows from its observation, ``length`` actions, and the rows that it is of.

    Of the rows ``keep`` bool [B], those that have not ended. Past a row's end actions are invalid.
    """
    actions = torch.cat([chunk.actions for chunk in rollout.chunks], dim=1)
    valid, total = rollout.valid, actions.shape[1]
    for c, observation in enumerate(rollout.observations):
        first = c * (total // len(rollout.chunks))
        rows = (keep & valid[:, first]).nonzero()[:, 0]
        if len(rows):
            place = torch.arange(first, first + length)
            at = place.clamp(max=total - 1)
            is_valid = valid[rows][:, at] & (place < total)
            seen = replace(observation.rows(rows).with_cameras(cameras), sim_state=None)
            yield ImitationBatch(seen, actions[rows][:, at], is_valid), rows


def weigh_starts_equally(starts: Tensor, tasks: Sequence[str]) -> Tensor:
    """Weights f32 [n] of rows, from the start int64 [n] and the task of each.

    Their sum is 1 for each task, and the same for each start of a task.
    """
    _, inverse, counts = starts.unique(return_inverse=True, return_counts=True)
    weights = 1 / counts[inverse]
    for task in set(tasks):
        own = torch.tensor([name == task for name in tasks])
        weights[own] /= weights[own].sum()
    return weights
