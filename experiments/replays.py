"""Imagined rollouts of a policy and their replays, to be imagined again with other models or other parts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from worldloop.core.specs import SimulatorSpec
from worldloop.core.success import Calibrations
from worldloop.core.types import Episode, Observation, Split
from worldloop.evaluation.replayed_rollouts import ReplayedRollouts, replay_imagination
from worldloop.stages import improve_policy
from worldloop.stages.context import StageContext
from worldloop.world_model.model import VideoWorldModel


def replay_policy(
    context: StageContext,
    world_model: VideoWorldModel,
    checkpoint: str,
    purpose: str,
    *,
    num_states: int,
    group_size: int,
    swap_with: str = "",
    split: Split = "validation",
    calibrations: Calibrations | None = None,
) -> ReplayedRollouts:
    """Replayed rollouts of the policy in ``checkpoint`` from fresh states of ``split``, as long as those of GRPO.

    A threshold of the loop applies to their scores only with the loop's ``calibrations``.
    """
    improvement = context.config_of(improve_policy.Config)
    policy = context.models.load_policy(checkpoint).eval()
    policy.temperature = improvement.temperature
    return replay_imagination(
        policy,
        checkpoint,
        world_model,
        calibrations or Calibrations(),
        context.simulation,
        context.simulation.draw_fresh_states(split, num_states, purpose),
        group_size=group_size,
        num_chunks=improvement.imagination_horizon,
        temperature=improvement.temperature,
        block_size=10,
        iteration=1,
        key=(context.seed, purpose),
        swap_with=swap_with,
    )


class Replays:
    """Replayed rollouts as tensors [n, C + 1] from the first frame on; one frame per chunk. Ended rows stand still."""

    def __init__(self, episodes: Sequence[Episode], num_chunks: int, spec: SimulatorSpec) -> None:
        def stack(arrays: Sequence[np.ndarray]) -> Tensor:
            rows = [np.concatenate([a, np.repeat(a[-1:], max(num_chunks + 1 - len(a), 0), axis=0)]) for a in arrays]
            return torch.from_numpy(np.stack([row[: num_chunks + 1] for row in rows]))

        self.num_chunks, self.spec = num_chunks, spec
        self.frames = {c: stack([e.frames[c] for e in episodes]) for c in spec.robot.camera_names}
        self.proprio = stack([e.proprio for e in episodes]).float()
        objects = [m for m in spec.tasks[0].landmarks if m.source == "sim_state"]
        places = [[e.sim_state[:, list(m.columns)] * m.metres_per_unit for m in objects] for e in episodes]
        self.landmarks = stack([np.concatenate(of_episode, axis=1) for of_episode in places]).float()
        self.actions = stack([e.actions for e in episodes])[:, :num_chunks]
        solved = [np.logical_or.accumulate((e.success & e.valid).any(1)) for e in episodes]
        self.solved = stack([np.concatenate([[False], flags]) for flags in solved])
        self.is_running = stack([np.arange(num_chunks + 1) <= e.num_frame_steps for e in episodes])
        metas = [episode.meta for episode in episodes]
        self.task, self.instruction = tuple(m.task for m in metas), tuple(m.instruction for m in metas)

    def observe(self, number: int) -> Observation:
        """The true observation after ``number`` chunks."""
        rows = torch.tensor([0, max(number - 1, 0), number])
        return Observation(
            frames={camera: images[:, rows] for camera, images in self.frames.items()},
            proprio=self.proprio[:, number],
            task=self.task,
            instruction=self.instruction,
            env_step=torch.full((len(self.task),), number * self.spec.actions_per_frame),
        )

    def imagine(
        self, world_model: VideoWorldModel, first: int, true_proprio: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Success probability [n, C] of the frames, imagined from the true frame ``first`` on, and errors.

        Frames before it have the true outcome. An error is the mean distance in metres between the imagined and the
        true position of the ``hand``, by frame, over rows that still run; of the ``object`` as well if the model
        carries on where it is.
        """
        state = world_model.start(self.observe(first), torch.arange(len(self.task)))
        (hand,) = [m for m in self.spec.tasks[0].landmarks if m.name == "effector"]
        probability = [self.solved[:, i + 1].float() for i in range(first)]
        hand_m, object_m = [], []
        for chunk in range(first, self.num_chunks):
            truth = self.proprio[:, chunk + 1]
            if true_proprio:
                known = world_model.normalise(truth, self.landmarks[:, chunk + 1])
                world_model.predict_low_dim = lambda *_, known=known: known[:, None]  # type: ignore[method-assign]
            state, imagined = world_model.imagine(state, self.actions[:, chunk])
            probability.append(torch.sigmoid(imagined.success_logit[:, 0]))
            runs = self.is_running[:, chunk + 1]
            apart = (imagined.proprio[:, 0] - truth)[:, list(hand.columns)].norm(dim=1) * hand.metres_per_unit
            hand_m.append(apart[runs].mean())
            _, places = world_model.denormalise(state.low_dim)
            if places.shape[1]:
                object_m.append((places - self.landmarks[:, chunk + 1]).norm(dim=1)[runs].mean())
        if true_proprio:
            del world_model.predict_low_dim
        solved_before = self.solved[:, first] if first else torch.zeros(len(self.task), dtype=torch.bool)
        scores = torch.stack(probability, 1)
        scores[solved_before] = 1.0
        errors = {"hand": torch.stack(hand_m)} | ({"object": torch.stack(object_m)} if object_m else {})
        return scores, errors

    def read_truth(self, world_model: VideoWorldModel) -> Tensor:
        """Probability [n, C] that the frame reader of the success head gives to the true frames."""
        logits = []
        with torch.no_grad(), world_model.autocast():
            instruction = world_model.instruction(self.instruction)
            latents = world_model.encode(self.frames)
            first = {camera: z[:, 0] for camera, z in latents.items()}
            for number in range(1, self.num_chunks + 1):
                frame = {camera: z[:, number] for camera, z in latents.items()}
                low_dim = world_model.normalise(self.proprio[:, number], self.landmarks[:, number])
                logits.append(world_model.success_head.read_frame(first, frame, low_dim, instruction))
        return torch.sigmoid(torch.stack(logits, 1).float())
