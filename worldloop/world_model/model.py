"""The action-conditioned video world model: video, success and proprio from one forward pass.

World-VLA-Loop (arXiv:2602.06508) trains a video denoiser with a reward head on its features; here any `Denoiser`
does, and a proprio head goes ahead of it. Shapes: B rows, K context frames, M target frames, L frames per denoiser
call, s actions per frame, S proprio, A action, H = M s actions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Concatenate, Self

import torch
from torch import Tensor, nn

from worldloop.core.context_frames import fill_context
from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import ImaginedChunk, WorldState
from worldloop.core.randomness import row_normal
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Normalisation, Observation
from worldloop.networks.instruction import InstructionEncoder
from worldloop.world_model import CODECS, DENOISERS
from worldloop.world_model.codec import Codec
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.denoiser import Conditioning, Denoiser, DenoiserOutput
from worldloop.world_model.heads import ErrorHead, ProprioHead, SuccessHead
from worldloop.world_model.pretrained import T5Instruction, load_transformer, read_cosmos_config
from worldloop.world_model.sampler import sample
from worldloop.world_model.state import ImaginationState

INSTRUCTION_DIM = 32
LEAST_REACH = 3.0  # standard deviations from the mean that imagined proprio may always go


class VideoWorldModel(nn.Module):
    """`WorldModel` over a codec, a denoiser and heads for proprio, success and its own error.

    The state dict, ``config``, ``spec`` and ``normalisation`` make it up completely. How it is trained is in
    `worldloop.world_model.training`.
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

    def forward[**P, T](self, compute: Callable[Concatenate[Self, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        """``compute(self, *arguments)``: weights that ranks share out (FSDP2) are whole while a forward pass runs."""
        return compute(self, *arguments, **named)

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
        with self.autocast():
            memory = self.denoiser.remember(on_device.pop("context"), on_device["instruction"])
        return ImaginationState(memory=memory, noise_key=tensors["noise_key"], step=tensors["step"], **on_device)

    @torch.no_grad()
    def imagine(self, state: WorldState, actions: Tensor) -> tuple[ImaginationState, ImaginedChunk]:
        """Roll ``actions`` f32 [B, H, A] in environment units forward; H is a multiple of s. No gradients."""
        assert isinstance(state, ImaginationState)
        B, H, A = actions.shape
        s = self.spec.actions_per_frame
        if len(state) != B or H % s or self.spec.action_dim != A:
            raise ValueError(
                f"actions {tuple(actions.shape)} for {len(state)} rows, {s} per frame, {self.spec.action_dim} wide"
            )
        per_frame = self.scale_actions(actions.to(self.device)).reshape(B, H // s, s, A)
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
        with self.autocast():
            instruction = self.instruction(context.instruction)
            conditioning, _ = self.condition(state.context, state.proprio, actions, instruction)
            memory = self.denoiser.remember(state.context, instruction)
            noisy = torch.zeros_like(state.context[:, -1:])
            output = self.denoiser(noisy, torch.zeros(len(context), device=self.device), memory, conditioning)
        return output.features[:, 0].float()

    def _imagine_frame(self, state: ImaginationState, actions: Tensor) -> tuple[ImaginationState, Tensor, Tensor]:
        """One frame further by ``actions`` [B, s, A] in [-1, 1]; then the success logit and the expected PSNR, [B]."""
        if self.config.num_sampler_steps == 1 and self.denoiser.ignores_noise:
            noise = torch.zeros_like(state.context[:, :1])
        else:
            shape = tuple(state.context.shape[2:])
            noise = row_normal(state.noise_key, state.step, shape).to(self.device)[:, None]
        with self.autocast():
            conditioning, next_proprio = self.condition(state.context, state.proprio, actions, state.instruction)

            outputs: list[DenoiserOutput] = []

            def denoise(noisy: Tensor, t: Tensor) -> DenoiserOutput:
                outputs.append(self.denoiser(noisy, t, state.memory, conditioning))
                return outputs[-1]

            output = sample(denoise, noise, self.config.num_sampler_steps)
            frames = output.data.clamp(-self.codec.limit, self.codec.limit)
            logit = self.success_head(output.features, state.context[:, 0], frames, next_proprio[:, None])[:, 0]
            psnr_db = self.error_head(outputs[0].features)[:, 0]  # it learned from what noise alone begins with
            memory = self.denoiser.shift(state.memory, frames[:, 0].float(), state.instruction)
        moved = replace(state, memory=memory, proprio=next_proprio, step=state.step + 1)
        return moved, logit, psnr_db

    def condition(
        self, context: Tensor, proprio: Tensor, actions: Tensor, instruction: Tensor
    ) -> tuple[Conditioning, Tensor]:
        """The denoiser's conditioning, and the predicted next proprio [B, S], no further out than any real one.

        The head adds changes up: beyond the data it would run away exponentially within a few hundred frames.
        """
        next_proprio = self.proprio_head(proprio, actions, context[:, -1]).detach()
        next_proprio = next_proprio.clamp(-self.proprio_reach, self.proprio_reach)
        conditioning = Conditioning(actions[:, None], proprio, next_proprio[:, None], instruction)
        return conditioning, next_proprio

    def scale_actions(self, actions: Tensor) -> Tensor:
        """Environment units -> [-1, 1] by the simulator's bounds."""
        return 2 * (actions - self.action_low) / (self.action_high - self.action_low) - 1

    def autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)
