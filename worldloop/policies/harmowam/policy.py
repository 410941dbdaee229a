"""HarmoWAM (arXiv:2605.10942): imagine, then act by one of two experts.

A frozen planner imagines the next frames. The predictive expert makes a chunk of actions by flow matching, from the
frame now and the planner's tokens; it is precise where it has data. The reactive expert reads each planned frame by
inverse dynamics; it goes wherever the planner can. A gate on the frame now chooses between them.

    frame now -> stems, instruction, proprio, indicator -> tokens --+-> gate
    planner -> tokens of the next frame ----------------------------+-> predictive expert -> actions
            -> planned frames, pooled tokens -> reactive expert -> actions

Departures:

1. The planner is the loop's own, in place of a pretrained Wan2.2; image tokens come from small stems, in place of
   DINOv2, and are trained with the experts.
2. The reactive expert compares each planned frame with the one before. Inverse dynamics needs both, as `executability`
   found.
3. The gate's labels: a change of the gripper as in the paper, or, where no gripper moves, a hand near the object.
4. The planner's noise is fixed, so that one observation has one plan, up to the last bits, in training and in acting.
5. RECAP's indicator (arXiv:2511.14759) is added to the instruction that the predictive expert sees.

Shapes: B rows, H actions a chunk, A action dimensions, M planned frames, N tokens of C channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.core import images, randomness
from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import (
    AdvantageConditionedPolicy,
    GatedPolicy,
    ImitationSource,
    Metrics,
    PlannedPolicy,
    Planner,
)
from worldloop.core.types import ActionChunk, ImitationBatch, Observation
from worldloop.networks import flow
from worldloop.networks.augment import augment_frames
from worldloop.networks.instruction import InstructionEncoder
from worldloop.networks.views import ViewModules
from worldloop.policies.harmowam.config import HarmoWAMConfig
from worldloop.policies.harmowam.experts import Gate, PredictiveExpert, ReactiveExpert
from worldloop.policies.image_stem import ImageStem
from worldloop.policies.robot_dimensions import choose_proprio, find_action_range

UNKNOWN = -1
PLANS_AT_ONCE = 64  # observations that `prepare` plans from together; a change changes the last bits


@dataclass(frozen=True)
class Plan:
    """``frames``, camera -> u8 [B, M, h, w, 3]; ``features`` [B, N, F], the planner's tokens of the first of them."""

    frames: dict[str, Tensor]
    features: Tensor


class HarmoWAM(PlannedPolicy, AdvantageConditionedPolicy, GatedPolicy):
    """A chunk's ``trace["interaction"]`` f32 [B] is the gate's probability of an interaction.

    Initial weights come from torch's global generator. Call `prepare` once before cloning. There is no exact
    likelihood, so GRPO cannot improve it. Guidance acts on the predictive expert's velocity, u + b (c - u).
    """

    Config = HarmoWAMConfig
    proprio_mean: Tensor
    proprio_std: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(self, config: HarmoWAMConfig, planner: Planner, chunk_length: int) -> None:
        super().__init__()
        assert isinstance(planner, nn.Module)
        self.config = config
        self.planner: nn.Module = planner.eval().requires_grad_(False)
        self.spec, self.normalisation = planner.spec, planner.normalisation
        self.chunk_length, self.temperature, self.version = chunk_length, 1.0, ""
        self.interaction = config.interaction
        robot, width = self.spec.robot, config.width
        self.num_planned = chunk_length // self.spec.actions_per_frame
        self.stems = ViewModules(
            {
                camera.name: ImageStem(
                    camera,
                    num_frames=1,
                    channels=config.stem_channels,
                    num_tokens=config.num_image_tokens,
                    num_keypoints=config.num_keypoints,
                    width=width,
                )
                for camera in robot.cameras
            }
        )
        num_image_tokens = len(robot.cameras) * config.num_image_tokens
        self.proprio_index = choose_proprio(robot, config.proprio_prefixes, "policy.harmowam.proprio_prefixes")
        index = list(self.proprio_index)
        self.register_buffer("proprio_mean", self.normalisation.proprio_mean.float()[index].clone())
        self.register_buffer("proprio_std", self.normalisation.proprio_std.float()[index].clone())
        low, high = find_action_range(robot, config.action_low, config.action_high, config.full_range_actions)
        self.register_buffer("action_low", torch.tensor(low))
        self.register_buffer("action_high", torch.tensor(high))
        self.instruction = InstructionEncoder(width)
        self.proprio = nn.Sequential(nn.Linear(len(index), width), nn.SiLU(), nn.Linear(width, width))
        self.indicator = nn.Parameter(torch.randn(2, width))  # of actions that are not good, and of good ones
        feature_dim = planner.feature_dim if config.uses_features else 0
        self.features = nn.Sequential(nn.LayerNorm(feature_dim), nn.Linear(feature_dim, width)) if feature_dim else None
        shape = (robot.action_dim, width, config.num_layers, config.num_heads)
        self.predictive = PredictiveExpert(chunk_length, *shape)
        self.reactive = ReactiveExpert(
            robot.cameras, feature_dim, self.spec.actions_per_frame, robot.action_dim, width, config.num_keypoints
        )
        self.gate = Gate(num_image_tokens, width)
        self._plans: dict[bytes, Plan] = {}

    def train(self, mode: bool = True) -> HarmoWAM:
        """The planner stays in evaluation mode, which also forgets all plans."""
        super().train(mode)
        self.planner.eval()
        if not mode:
            self._plans.clear()
        return self

    def prepare(self, dataset: ImitationSource) -> None:
        """Fit backgrounds and contrast to the frames of ``dataset``, and plan from its observations.

        Plans are made in blocks of a fixed order, since a plan's last bits depend on its batch: a resumed training has
        the same ones. ``ValueError`` for a missing camera.
        """
        frames = {}
        for camera, stored in dataset.images().items():
            frames[camera] = images.to_network(stored)
        for camera, stem in self.stems.items():
            if camera not in frames:
                raise ValueError(f"the episodes to imitate have no camera {camera!r}: they have {', '.join(frames)}")
            stem.fit(frames[camera])
        self.reactive.set_backgrounds(frames)
        for block in dataset.observations(PLANS_AT_ONCE):
            if len(self._plans) >= self.config.num_cached_plans:
                break
            self._keep_plans(block.with_cameras(self.spec.robot.camera_names))

    @torch.no_grad()
    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        """See `Actor.act`. Each expert works only for the rows in which it has a say."""
        seen = observation.with_cameras(self.spec.robot.camera_names)
        tokens = self._see(seen.to(self.proprio_mean.device))
        interaction = torch.sigmoid(self.gate(tokens))
        share = self.choose(seen, interaction).to(tokens.device)
        actions = torch.zeros(len(seen), self.chunk_length, self.spec.robot.action_dim, device=tokens.device)
        for part, is_reactive in ((share, False), (1 - share, True)):
            rows = part.nonzero()[:, 0]
            if len(rows) == 0:
                continue
            own = seen.rows(rows.cpu())
            plan = self._plan(own, needs_frames=is_reactive)
            if is_reactive:
                decided = self.reactive(self._make_video(own, plan), plan.features)
            else:
                key = None if noise_key is None else noise_key[rows.to(noise_key.device)]
                decided = self._predict(own, tokens[rows], plan, key)
            actions[rows] += part[rows, None, None] * decided
        middle, half = (self.action_high + self.action_low) / 2, (self.action_high - self.action_low) / 2
        chosen = (actions.clamp(-1, 1) * half + middle).cpu()
        return ActionChunk(chosen, trace={"interaction": interaction.cpu()}, policy_version=self.version)

    @torch.no_grad()
    def tell_interaction(self, observation: Observation) -> Tensor:
        """See `GatedPolicy`."""
        seen = observation.with_cameras(self.spec.robot.camera_names)
        return torch.sigmoid(self.gate(self._see(seen.to(self.proprio_mean.device))))

    def choose(self, observation: Observation, interaction: Tensor) -> Tensor:
        """The predictive expert's share of the actions, f32 [B] in [0, 1], from the gate's word in [0, 1]."""
        if self.config.acts_by == "gate":
            return (interaction >= 0.5).float()
        return torch.full_like(interaction, {"predictive": 1.0, "reactive": 0.0, "average": 0.5}[self.config.acts_by])

    def compute_imitation_loss(self, batch: ImitationBatch, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """See `Policy`; needs ``batch.is_interaction``, else `WorldloopError`."""
        return self.compute_conditioned_loss(batch, torch.full((len(batch.valid),), UNKNOWN), generator)

    def compute_conditioned_loss(
        self, batch: ImitationBatch, is_good: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """L_pred + reactive_weight L_react + gate_weight L_gate, the paper's loss of its second stage.

        The planner shows successes, so that where chunks are labelled the reactive expert learns from good ones alone.
        """
        if batch.is_interaction is None:
            raise WorldloopError("HarmoWAM's gate needs labels: the batch does not say what is an interaction")
        seen = batch.observation.with_cameras(self.spec.robot.camera_names)
        plan = self._recall_plans(seen)
        shift, brightness = self.config.augment_shift_px, self.config.augment_brightness
        varied = replace(seen, frames=augment_frames(seen.frames, shift, brightness, generator))
        tokens = self._see(varied)
        target = 2 * (batch.actions - self.action_low) / (self.action_high - self.action_low) - 1

        def average(error: Tensor, valid: Tensor = batch.valid) -> Tensor:
            """Of [B, H, A], over valid actions."""
            return (error.mean(2) * valid).sum() / valid.sum().clamp_min(1)

        device = target.device
        t = torch.rand(len(target), generator=generator).to(device)
        noise = torch.randn(target.shape, generator=generator).to(device)
        memory = self._remember(varied, tokens, plan, is_good.to(device))
        velocity = self.predictive(flow.interpolate(noise, target, t), t, memory)
        predictive = average((velocity - (target - noise)).square())
        read = self.reactive(self._make_video(seen, plan), plan.features)
        teaches = is_good == 1 if (is_good != UNKNOWN).any() else torch.ones_like(is_good, dtype=torch.bool)
        taught = batch.valid & teaches.to(device)[:, None]
        reactive = average(functional.smooth_l1_loss(read, target, beta=0.1, reduction="none"), taught)
        known = (batch.is_interaction != UNKNOWN).float()
        label = batch.is_interaction.clamp_min(0).float()
        logit = self.gate(tokens)
        error = functional.binary_cross_entropy_with_logits(logit, label, reduction="none")
        gate = (error * known).sum() / known.sum().clamp_min(1)
        loss = predictive + self.config.reactive_weight * reactive + self.config.gate_weight * gate
        agrees = ((logit >= 0) == (label > 0.5)).float()
        return loss, {
            "loss_predictive": float(predictive.detach()),
            "loss_reactive": float(reactive.detach()),
            "loss_gate": float(gate.detach()),
            "gate_accuracy": float((agrees * known).sum() / known.sum().clamp_min(1)),
            "reactive_error": float(average((read.detach() - target).abs(), taught)),
        }

    def _see(self, observation: Observation) -> Tensor:
        """Tokens [B, N, C] of the frame now, of all cameras."""
        return torch.cat([stem(images.to_network(observation.frames[c][:, -1:])) for c, stem in self.stems.items()], 1)

    def _remember(self, observation: Observation, tokens: Tensor, plan: Plan, is_good: Tensor) -> Tensor:
        """What the predictive expert attends to: ``tokens``, instruction with indicator, proprio, planner's tokens."""
        if observation.proprio is None:
            raise WorldloopError("HarmoWAM needs proprio, and the observation has none")
        proprio = observation.proprio.to(tokens.device)[:, list(self.proprio_index)]
        proprio = ((proprio - self.proprio_mean) / self.proprio_std.clamp_min(1e-6)).clamp(-5, 5)
        indicators = torch.cat([torch.zeros_like(self.indicator[:1]), self.indicator])
        told = self.instruction(observation.instruction) + indicators[is_good + 1]
        parts = [tokens, told[:, None], self.proprio(proprio)[:, None]]
        if self.features is not None:
            parts.append(self.features(plan.features.float()))
        return torch.cat([part.to(tokens.dtype) for part in parts], dim=1)

    def _predict(self, observation: Observation, tokens: Tensor, plan: Plan, noise_key: Tensor | None) -> Tensor:
        """Actions f32 [B, H, A] of the predictive expert, by Euler steps; without a key from no noise at all."""
        shape = (self.chunk_length, self.spec.robot.action_dim)
        if noise_key is None:
            actions = torch.zeros(len(tokens), *shape, device=tokens.device)
        else:
            actions = randomness.row_normal(noise_key, observation.env_step, shape).to(tokens.device)
            actions = actions * self.temperature
        b = self.guidance
        signs = [UNKNOWN] if b == 0 else [1] if b == 1 else [UNKNOWN, 1]
        rows = torch.ones(len(tokens), dtype=torch.long, device=tokens.device)
        memories = [self._remember(observation, tokens, plan, sign * rows) for sign in signs]
        num_steps = self.config.num_denoising_steps
        for step in range(num_steps):
            t = torch.full((len(tokens),), step / num_steps, device=tokens.device)
            velocities = [self.predictive(actions, t, memory) for memory in memories]
            velocity = velocities[0] if len(velocities) == 1 else velocities[0] + b * (velocities[1] - velocities[0])
            actions = actions + velocity / num_steps
        return actions

    def _plan(self, observation: Observation, needs_frames: bool) -> Plan:
        """What the planner imagines; without ``needs_frames`` only its tokens.

        In its own precision, also where the experts learn in another one.
        """
        planner: Planner = self.planner  # type: ignore[assignment]
        key = torch.zeros(len(observation), dtype=torch.long)
        with torch.autocast(self.proprio_mean.device.type, enabled=False):
            frames = planner.plan(observation, key, self.num_planned) if needs_frames else {}
            features = planner.features(observation) if self.config.uses_features else None
        if features is None:
            features = torch.zeros(len(observation), 0, 0, device=self.proprio_mean.device)
        return Plan(frames, features.to(torch.bfloat16).float())

    @torch.no_grad()
    def _keep_plans(self, observation: Observation) -> None:
        """Plan from the rows of ``observation``, in one batch, and keep the plans."""
        made = self._plan(observation, needs_frames=True)
        for row in range(len(observation)):
            frames = {camera: stored[row].cpu() for camera, stored in made.frames.items()}
            self._plans[_digest(observation, row)] = Plan(frames, made.features[row].to(torch.bfloat16).cpu())

    def _recall_plans(self, observation: Observation) -> Plan:
        """The plans of a training batch. One that is not kept is made alone, whatever else is in the batch."""
        plans = []
        for row in range(len(observation)):
            key = _digest(observation, row)
            if key not in self._plans:
                self._keep_plans(observation.rows([row]))
            plans.append(self._plans[key])
        while len(self._plans) > self.config.num_cached_plans:
            self._plans.popitem()  # the newest: those of `prepare` stay
        features = torch.stack([plan.features for plan in plans]).to(self.proprio_mean.device).float()
        return Plan({c: torch.stack([plan.frames[c] for plan in plans]) for c in plans[0].frames}, features)

    def _make_video(self, observation: Observation, plan: Plan) -> dict[str, Tensor]:
        """The frame now and the planned ones, camera -> [B, M + 1, 3, h, w] in [-1, 1]."""
        device = self.proprio_mean.device
        return {
            camera: images.to_network(torch.cat([observation.frames[camera][:, -1:].cpu(), frames], 1).to(device))
            for camera, frames in plan.frames.items()
        }


def _digest(observation: Observation, row: int) -> bytes:
    """A key of what the planner sees in ``row``."""
    digest = hashlib.blake2b(observation.instruction[row].encode(), digest_size=16)
    for _, frames in sorted(observation.frames.items()):
        digest.update(frames[row].cpu().numpy().tobytes())
    return digest.digest()
