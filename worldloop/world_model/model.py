"""The action-conditioned video world model: video, success and proprio from one forward pass.

World-VLA-Loop (arXiv:2602.06508) trains a video denoiser with a reward head on its features; here any `Denoiser`
does, and a proprio head goes ahead of it. Shapes: B rows, K context frames, M target frames, L frames per denoiser
call, s actions per frame, S proprio, A action, H = M s actions of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from worldloop.core.context_frames import fill_context, shift_frames
from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import ImaginedChunk, WorldModelOutput
from worldloop.core.randomness import row_normal
from worldloop.core.types import Clip, Normalisation, Observation, SimulatorSpec
from worldloop.networks import flow
from worldloop.networks.instruction import InstructionEncoder
from worldloop.world_model import CODECS, DENOISERS, losses
from worldloop.world_model.codec import Codec
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.denoiser import Conditioning, Denoiser, DenoiserOutput
from worldloop.world_model.heads import ErrorHead, ProprioHead, SuccessHead
from worldloop.world_model.pretrained import T5Instruction, load_transformer, read_cosmos_config
from worldloop.world_model.sampler import sample
from worldloop.world_model.state import ImaginationState
from worldloop.world_model.variation import vary_context, vary_judged

INSTRUCTION_DIM = 32
POSITIVE_RATE_DECAY = 0.99
LEAST_REACH = 3.0  # standard deviations from the mean that imagined proprio may always go


@dataclass(frozen=True)
class _Step:
    """One frame's losses and its detached prediction."""

    terms: losses.FrameLosses
    next_latent: Tensor
    next_proprio: Tensor
    is_prediction: Tensor


class VideoWorldModel(nn.Module):
    """`WorldModel` over a codec, a denoiser and heads for proprio, success and its own error.

    The state dict, ``config``, ``spec`` and ``normalisation`` make it up completely. ``forward`` is `compute_loss`,
    so that a data-parallel wrapper sees every gradient.
    """

    proprio_mean: Tensor
    proprio_std: Tensor
    action_low: Tensor
    action_high: Tensor
    positive_rate: Tensor
    proprio_reach: Tensor

    def __init__(self, config: WorldModelConfig, spec: SimulatorSpec, normalisation: Normalisation) -> None:
        super().__init__()
        self.config = config
        self.spec = spec
        denoiser_config, published = config.denoiser_config(), {}
        if config.pretrained:
            denoiser_config = read_cosmos_config(config.pretrained, denoiser_config)
        self.codec: Codec = CODECS[config.codec](spec.image_size, config.pretrained)
        self.instruction: InstructionEncoder | T5Instruction
        if config.pretrained:
            self.instruction = T5Instruction(config.pretrained, config.text_tokens)
            published = {"transformer": load_transformer(config.pretrained, config.lora_rank)}
        else:
            self.instruction = InstructionEncoder(INSTRUCTION_DIM)
        stacked = spec.actions_per_frame * spec.action_dim
        self.proprio_head = ProprioHead(spec.proprio_dim, stacked, self.codec.channels)
        sizes = (self.codec.channels, self.codec.size, spec.proprio_dim, spec.action_dim, spec.actions_per_frame)
        self.denoiser: Denoiser = DENOISERS[config.denoiser](denoiser_config, *sizes, INSTRUCTION_DIM, **published)
        self.success_head = SuccessHead(
            self.denoiser.feature_dim, self.codec.channels, self.codec.size, spec.proprio_dim
        )
        self.error_head = ErrorHead(self.denoiser.feature_dim)
        self.register_buffer("proprio_mean", normalisation.proprio_mean.clone().float())
        self.register_buffer("proprio_std", normalisation.proprio_std.clone().float())
        self.register_buffer("action_low", torch.tensor(spec.action_low))
        self.register_buffer("action_high", torch.tensor(spec.action_high))
        self.register_buffer("positive_rate", torch.tensor(0.5))
        self.register_buffer("proprio_reach", torch.full((spec.proprio_dim,), LEAST_REACH))
        self.frozen = frozenset(name for name, parameter in self.named_parameters() if not parameter.requires_grad)

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without what is frozen, which ``config.pretrained`` has."""
        return {name: value for name, value in self.state_dict().items() if name not in self.frozen}

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.proprio_mean, self.proprio_std)

    @property
    def num_context_frames(self) -> int:
        return self.denoiser.num_context_frames

    @property
    def device(self) -> torch.device:
        return self.proprio_mean.device

    def for_imagination(self) -> Self:
        """This model with nothing to train and, where autocast would cast weights at every call, those cast for good.

        It imagines bit for bit what it did before; it is not to be trained or saved any more.
        """
        if self.config.precision == "bf16":
            for part in (self.denoiser, self.proprio_head, self.success_head, self.error_head):
                for module in part.modules():
                    if type(module) in (nn.Linear, nn.Conv2d):  # what derives from them may compute with its weights
                        module.to(torch.bfloat16)
        return self.eval().requires_grad_(False)

    def forward(
        self, clip: Clip, generator: torch.Generator, teacher: VideoWorldModel | None = None
    ) -> WorldModelOutput:
        return self.compute_loss(clip, generator, teacher)

    def compute_loss(
        self, clip: Clip, generator: torch.Generator, teacher: VideoWorldModel | None = None
    ) -> WorldModelOutput:
        """The joint loss of M frames, each predicted from the one before; of ``teacher`` instead of the real frames,
        see `lead`, where there is one.

        From the second frame on the context is the model's own detached prediction, of frame and proprio, where that
        was made without a look at the target, else the real one. ``generator`` is a CPU generator; only valid frames
        count. The proprio head gets no gradient here, see `compute_proprio_loss`; buffers are left to `take_in`.
        """
        clip = clip.to(self.device)
        context = self.codec.encode(clip.context)
        targets = self.codec.encode(clip.frames)
        proprio = self.normalisation.normalise(clip.context_proprio)
        real_proprio = self.normalisation.normalise(clip.proprio)
        with self._autocast():
            instruction = self.instruction(clip.instruction)
        steps: list[_Step] = []
        for m in range(targets.shape[1]):
            target = targets[:, m], real_proprio[:, m]
            step = self._train_step(clip, m, context, *target, proprio, instruction, generator, teacher)
            steps.append(step)
            own = step.is_prediction
            latent = torch.where(own[:, None, None, None], step.next_latent, targets[:, m])
            context = shift_frames(context, latent)
            proprio = torch.where(own[:, None], step.next_proprio, real_proprio[:, m])
        return self._gather(clip, steps)

    @torch.no_grad()
    def measure(self, clip: Clip) -> tuple[Tensor, Tensor]:
        """What `take_in` needs of a batch, or of a part of one: success frames and valid frames, [2], whose sums over
        the parts count, and how far normalised proprio goes, [S], whose maximum does.
        """
        valid = clip.valid.float()
        counts = torch.stack([(clip.success * valid).sum(), valid.sum()]).to(self.device)
        proprio = self.normalisation.normalise(clip.proprio.to(self.device))
        return counts, (proprio.abs() * valid[..., None].to(self.device)).amax(dim=(0, 1))

    @torch.no_grad()
    def take_in(self, counts: Tensor, reach: Tensor) -> None:
        """Before the losses of every training batch: the share of success frames, averaged over batches, balances
        the success loss; imagined proprio may go as far as real proprio did.
        """
        self.positive_rate.lerp_(counts[0] / counts[1].clamp_min(1), 1 - POSITIVE_RATE_DECAY)
        self.proprio_reach.copy_(torch.maximum(self.proprio_reach, reach))

    def compute_proprio_loss(self, clip: Clip) -> Tensor:
        """Mean absolute error of normalised proprio over M frames, unrolled on the head's own predictions.

        The images are the real ones, and gradients flow through the unrolled steps; only valid frames count.
        """
        clip = clip.to(self.device)
        images = self.codec.encode(torch.cat([clip.context[:, -1:], clip.frames[:, :-1]], dim=1))
        proprio = self.normalisation.normalise(clip.context_proprio)
        error = torch.zeros_like(clip.valid, dtype=torch.float32)
        for m in range(clip.valid.shape[1]):
            proprio = self.proprio_head(proprio, self._scale_actions(clip.actions[:, m]), images[:, m])
            error[:, m] = (proprio - self.normalisation.normalise(clip.proprio[:, m])).abs().mean(1)
        return (error * clip.valid).sum() / clip.valid.sum().clamp_min(1)

    def start(self, context: Observation, noise_key: Tensor) -> ImaginationState:
        """Start from an observation with one frame or more; what is missing is filled up, see `fill_context`."""
        if context.proprio is None:
            raise WorldloopError("the world model needs proprio in its context: use an observation that has it")
        frames = fill_context(context.frames.to(self.device), self.num_context_frames)
        with torch.no_grad():
            instruction = self.instruction(context.instruction).float()
        return self.restore(
            {
                "context": self.codec.encode(frames),
                "proprio": self.normalisation.normalise(context.proprio.to(self.device)),
                "instruction": instruction.contiguous(),
                "noise_key": noise_key.clone(),
                "step": torch.zeros_like(noise_key),
            }
        )

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> ImaginationState:
        """Inverse of `ImaginationState.to_tensors`, which may come from another device."""
        on_device = {name: tensors[name].to(self.device) for name in ("context", "proprio", "instruction")}
        with self._autocast():
            memory = self.denoiser.remember(on_device.pop("context"), on_device["instruction"])
        return ImaginationState(memory=memory, noise_key=tensors["noise_key"], step=tensors["step"], **on_device)

    @torch.no_grad()
    def imagine(self, state: ImaginationState, actions: Tensor) -> tuple[ImaginationState, ImaginedChunk]:
        """Roll ``actions`` f32 [B, H, A] in environment units forward; H is a multiple of s. No gradients."""
        B, H, A = actions.shape
        s = self.spec.actions_per_frame
        if len(state) != B or H % s or self.spec.action_dim != A:
            raise ValueError(
                f"actions {tuple(actions.shape)} for {len(state)} rows, {s} per frame, {self.spec.action_dim} wide"
            )
        per_frame = self._scale_actions(actions.to(self.device)).reshape(B, H // s, s, A)
        frames, proprios, logits, psnrs = [], [], [], []
        for m in range(H // s):
            state, logit, psnr_db = self._imagine_frame(state, per_frame[:, m])
            frames.append(self.codec.decode(state.context[:, -1]))
            proprios.append(state.proprio * self.proprio_std + self.proprio_mean)
            logits.append(logit)
            psnrs.append(psnr_db)
        stacked = (torch.stack(values, 1) for values in (frames, proprios, logits, psnrs))
        return state, ImaginedChunk(*stacked)

    def features(self, context: Observation) -> Tensor:
        """Tokens f32 [B, N, F] of what follows the context when no action moves the robot, with gradients."""
        state = self.start(context, torch.zeros(len(context), dtype=torch.long))
        shape = (len(context), self.spec.actions_per_frame, self.spec.action_dim)
        actions = torch.zeros(shape, device=self.device)
        with self._autocast():
            instruction = self.instruction(context.instruction)
            conditioning, _ = self._condition(state.context, state.proprio, actions, instruction)
            memory = self.denoiser.remember(state.context, instruction)
            noisy = torch.zeros_like(state.context[:, -1:])
            output = self.denoiser(noisy, torch.zeros(len(context), device=self.device), memory, conditioning)
        return output.features[:, 0].float()

    @torch.no_grad()
    def lead(
        self,
        noisy: Tensor,
        step: Tensor,
        num_steps: int,
        context: Tensor,
        proprio: Tensor,
        actions: Tensor,
        instruction: tuple[str, ...],
    ) -> Tensor:
        """What a student that samples in ``num_steps`` has to predict at its ``step`` int64 [B] of ``noisy`` [B, ...].

        From there this model takes as many of its own steps as the student's one covers; the result is the data
        [B, ...] with which one Euler step ends in the same place (progressive distillation, arXiv:2202.00512, section
        3, on this flow path, all halvings at once). ``num_steps`` divides ``config.num_sampler_steps``.
        """
        own = self.config.num_sampler_steps
        covered = own // num_steps
        with self._autocast():
            embedded = self.instruction(instruction)
            conditioning, _ = self._condition(context, proprio, actions, embedded)
            memory = self.denoiser.remember(context, embedded)
            reached = noisy
            for i in range(covered):
                t, t_next = ((step * covered + k) / own for k in (i, i + 1))
                output = self.denoiser(reached[:, None], t, memory, conditioning)
                reached = flow.euler_step(reached, output.data[:, 0].float(), t, t_next)
        return flow.data_from_velocity(noisy, (reached - noisy) * num_steps, step / num_steps)

    def _imagine_frame(self, state: ImaginationState, actions: Tensor) -> tuple[ImaginationState, Tensor, Tensor]:
        """One frame further by ``actions`` [B, s, A] in [-1, 1]; then the success logit and the expected PSNR, [B]."""
        if self.config.num_sampler_steps == 1 and self.denoiser.ignores_noise:
            noise = torch.zeros_like(state.context[:, :1])
        else:
            shape = tuple(state.context.shape[2:])
            noise = row_normal(state.noise_key, state.step, shape).to(self.device)[:, None]
        with self._autocast():
            conditioning, next_proprio = self._condition(state.context, state.proprio, actions, state.instruction)

            outputs: list[DenoiserOutput] = []

            def denoise(noisy: Tensor, t: Tensor) -> DenoiserOutput:
                outputs.append(self.denoiser(noisy, t, state.memory, conditioning))
                return outputs[-1]

            output = sample(denoise, noise, self.config.num_sampler_steps)
            frames = output.data.clamp(-self.codec.limit, self.codec.limit)
            logit = self.success_head(output.features, state.context[:, 0], frames, next_proprio[:, None])[:, 0]
            psnr_db = self.error_head(outputs[0].features)[:, 0]  # it learned from what noise alone begins with
            memory = self.denoiser.shift(state.memory, frames[:, 0].float(), state.instruction)
        moved = ImaginationState(memory, next_proprio, state.instruction, state.noise_key, state.step + 1)
        return moved, logit, psnr_db

    def _condition(
        self, context: Tensor, proprio: Tensor, actions: Tensor, instruction: Tensor
    ) -> tuple[Conditioning, Tensor]:
        """The denoiser's conditioning, and the predicted next proprio [B, S], no further out than any real one.

        The head adds changes up: beyond the data it would run away exponentially within a few hundred frames.
        """
        next_proprio = self.proprio_head(proprio, actions, context[:, -1]).detach()
        next_proprio = next_proprio.clamp(-self.proprio_reach, self.proprio_reach)
        conditioning = Conditioning(actions[:, None], proprio, next_proprio[:, None], instruction)
        return conditioning, next_proprio

    def _train_step(
        self,
        clip: Clip,
        m: int,
        context: Tensor,
        target: Tensor,
        target_proprio: Tensor,
        proprio: Tensor,
        instruction: Tensor,
        generator: torch.Generator,
        teacher: VideoWorldModel | None,
    ) -> _Step:
        B = len(target)
        config = self.config
        if teacher is None:
            t = flow.sample_times(B, config.zero_time_share, generator).to(self.device)
        else:
            step = torch.randint(config.num_sampler_steps, (B,), generator=generator).to(self.device)
            t = step / config.num_sampler_steps
        noise = torch.randn(target.shape, generator=generator).to(self.device)
        seen = vary_context(context, config.context_noise, generator)
        actions = self._scale_actions(clip.actions[:, m])
        noisy = flow.interpolate(noise, target, t)
        aim = target
        if teacher is not None:
            aim = teacher.lead(noisy, step, config.num_sampler_steps, seen, proprio, actions, clip.instruction)
        with self._autocast():
            conditioning, next_proprio = self._condition(seen, proprio, actions, instruction)
            output = self.denoiser(noisy[:, None], t, self.denoiser.remember(seen, instruction), conditioning)
            token_logit = self.success_head.read_tokens(output.features)[:, 0]
            judged = vary_judged(context[:, 0], target, target_proprio, generator)
            frame_logit = self.success_head.read_frame(*judged)
            expected_db = self.error_head(output.features)[:, 0]
        predicted = output.data[:, 0].float()
        limit = self.codec.limit
        actual_db = losses.compute_latent_psnr_db(predicted.detach().clamp(-limit, limit), target, limit)
        weights = losses.weigh_target(clip, m, self.codec.size, config.moved_weight, config.rare_weight)
        label = clip.success[:, m]
        by_tokens = losses.compute_success_loss(config.success_loss, token_logit, label, self.positive_rate)
        by_frame = losses.compute_success_loss(config.success_loss, frame_logit, label, self.positive_rate)
        return _Step(
            losses.FrameLosses(
                video=losses.compute_video_loss(config.video_loss, predicted, aim, weights),
                success=by_frame + by_tokens * losses.weigh_times(t, config.success_time_weight_max),
                error=self.error_head.compute_loss(expected_db, actual_db) * (t == 0),  # imagination starts from noise
            ),
            next_latent=predicted.detach().clamp(-limit, limit),
            next_proprio=next_proprio,
            is_prediction=t == 0,
        )

    def _gather(self, clip: Clip, steps: list[_Step]) -> WorldModelOutput:
        loss, metrics = losses.add_up([step.terms for step in steps], clip.valid, self.config.success_weight)
        first = steps[0]
        return WorldModelOutput(
            loss=loss,
            metrics=metrics,
            next_frames=self.codec.decode(first.next_latent),
            next_proprio=first.next_proprio * self.proprio_std + self.proprio_mean,
            is_prediction=first.is_prediction & clip.valid[:, 0],
        )

    def _scale_actions(self, actions: Tensor) -> Tensor:
        """Environment units -> [-1, 1] by the simulator's bounds."""
        return 2 * (actions - self.action_low) / (self.action_high - self.action_low) - 1

    def _autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)
