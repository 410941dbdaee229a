"""Log-probabilities of SmolVLA by random denoising steps, which GRPO needs.

A flow policy's sample follows an ordinary differential equation from noise to actions, and has no tractable density.
With `policy.lerobot.sde_level` above 0 all steps but the first are random instead (Flow-GRPO, arXiv:2505.05470, section
4.1; for policies ReinFlow, arXiv:2505.22094). The density of such a path, given its first point, is a product of normal
densities: exact, and cheap to compute again for other weights.

Departures:

1. The padding of the action vector, which SmolVLA's loss ignores, follows the line from noise to zero on which it was
   trained. It does not depend on the weights, so it has no part in the density.
2. ReinFlow learns the noise; here its level is a setting. Without a noise key there is none: `act` is then LeRobot's.

Shapes: B rows, H actions a chunk, A action dimensions, D the padded ones, n denoising steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import LikelihoodPolicy
from worldloop.core.randomness import make_row_generators
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import ActionChunk, Normalisation, Observation
from worldloop.networks import flow
from worldloop.policies.lerobot.config import LeRobotConfig
from worldloop.policies.lerobot.policy import LeRobotPolicy


@dataclass(frozen=True)
class _Prefix:
    """What SmolVLA's action expert attends to: its cache, and which of its tokens are there, bool [B, L]."""

    cache: Any
    mask: Tensor


class LeRobotFlowPolicy(LeRobotPolicy, LikelihoodPolicy):
    """A SmolVLA whose chunks tell how they came about: ``trace["path"]`` f32 [B, n, H, D], the points after each step.

    The log-probability of an action is that of its part of the path, under ``temperature``, which scales the noise.
    Raises `WorldloopError` unless the policy is a SmolVLA with chunks of ``chunk_length`` and two steps or more.
    """

    def __init__(
        self, config: LeRobotConfig, spec: SimulatorSpec, normalisation: Normalisation, chunk_length: int
    ) -> None:
        super().__init__(config, spec, normalisation, chunk_length)
        theirs = self._parts.config
        if theirs.type != "smolvla" or theirs.adapt_to_pi_aloha or theirs.num_steps < 2:
            raise WorldloopError(
                f"policy.lerobot.sde_level needs a smolvla of 2 denoising steps or more, and this is LeRobot's "
                f"{theirs.type}: set policy.lerobot.sde_level=0"
            )
        if self.actions_per_row > 1:
            raise WorldloopError(
                "policy.lerobot.sde_level needs a policy that makes single actions, and this one makes rows of "
                f"{self.actions_per_row}: set policy.lerobot.sde_level=0"
            )
        if self.horizon != chunk_length:
            raise WorldloopError(
                f"policy.lerobot.sde_level needs chunks that are executed whole: set "
                f"policy.lerobot.config.chunk_size={chunk_length}, chunk_length, in place of {self.horizon}"
            )
        self.num_steps = int(theirs.num_steps)

    @torch.no_grad()
    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        """See `Actor.act`; without keys the chunk is LeRobot's own, and has no log-probabilities."""
        if noise_key is None:
            return super().act(observation, None)
        was_training = self.policy.training
        self.policy.eval()
        width, A = self._parts.config.max_action_dim, self.spec.robot.action_dim
        shape = (self.num_steps, self.chunk_length, width)
        drawn = [torch.randn(shape, generator=g) for g in make_row_generators(noise_key, observation.env_step)]
        noise = (self.temperature * torch.stack(drawn)).to(self._device)
        prefix = self._see(observation)
        point, path, log_probs = noise[:, 0], [], torch.zeros(len(noise), self.chunk_length, device=self._device)
        for step in range(self.num_steps):
            mean, std = self._step(prefix, point, step)
            reached = mean if step == 0 else mean + std * noise[:, step, :, :A]
            if step > 0:
                log_probs += self._log_density(reached, mean, std)
            point = torch.cat([reached, noise[:, 0, :, A:] * (1 - (step + 1) / self.num_steps)], dim=-1)
            path.append(point)
        self.policy.train(was_training)
        actions = self._clip(self._parts.postprocessor(point[..., :A]))
        return ActionChunk(actions, log_probs.cpu(), {"path": torch.stack(path, 1).cpu()}, self.version)

    def log_prob(self, observation: Observation, chunk: ActionChunk) -> Tensor:
        """Log-density f32 [B, H] of each action's part of the path of ``chunk``, with gradients."""
        if "path" not in chunk.trace:
            raise ValueError("the action chunk has no trace['path']; it was not made by random denoising steps")
        path, prefix = chunk.trace["path"].to(self._device), self._see(observation)
        log_probs = path.new_zeros(len(path), self.chunk_length)
        for step in range(1, self.num_steps):
            mean, std = self._step(prefix, path[:, step - 1], step)
            log_probs = log_probs + self._log_density(path[:, step, :, : self.spec.robot.action_dim], mean, std)
        return log_probs

    def _step(self, prefix: _Prefix, point: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mean f32 [B, H, A] and standard deviation (without the temperature) of the point after ``step``."""
        A, rows = self.spec.robot.action_dim, len(point)
        t, t_next = (torch.full((rows,), number / self.num_steps, device=point.device) for number in (step, step + 1))
        # LeRobot's time runs from 1 (noise) to 0 (actions), and its velocity points to the noise.
        velocity = -self.policy.model.denoise_step(  # type: ignore[operator, union-attr]
            prefix_pad_masks=prefix.mask, past_key_values=prefix.cache, x_t=point, timestep=1 - t
        )[..., :A]
        known = point[..., :A]
        data = flow.data_from_velocity(known, velocity, t)
        if step == 0:  # the level of the noise is infinite there
            return flow.euler_step(known, data, t, t_next), torch.zeros_like(known)
        return flow.sde_step(known, data, t, t_next, self.config.sde_level)

    def _log_density(self, reached: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """f32 [B, H], summed over action dimensions."""
        std = self.temperature * std
        each = -((reached - mean) ** 2) / (2 * std**2) - std.log() - 0.5 * math.log(2 * math.pi)
        return each.sum(-1)

    def _see(self, observation: Observation) -> _Prefix:
        """Images, instruction and proprio, seen by the language model once for all steps."""
        from lerobot.policies.common.vla_utils import make_att_2d_masks
        from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS

        policy: Any = self.policy
        batch = self.preprocess(observation)
        images, image_masks = policy.prepare_images(batch)
        tokens, mask = batch[OBS_LANGUAGE_TOKENS], batch[OBS_LANGUAGE_ATTENTION_MASK]
        embedded, present, attention = policy.model.embed_prefix(
            images, image_masks, tokens, mask, state=policy.prepare_state(batch)
        )
        _, cache = policy.model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(present, attention),
            position_ids=torch.cumsum(present, dim=1) - 1,
            past_key_values=None,
            inputs_embeds=[embedded, None],
            use_cache=policy.config.use_cache,
        )
        return _Prefix(cache, present)
