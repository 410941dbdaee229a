"""The action-conditioned video world model: video, success and proprio from one forward pass.

World-VLA-Loop (arXiv:2602.06508) trains a video denoiser with a reward head on its features. Here the denoiser is any
`Denoiser`, and a proprio head runs before it. Frames and latents are a dict by camera; one pass predicts all cameras.
Shapes: B rows, K context frames, M target frames, L frames per denoiser call, s actions per frame, S proprio, A action,
H = M s actions of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Concatenate, Self

import torch
from torch import Tensor, nn

from worldloop.core.context_frames import fill_context
from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import ImaginedChunk, WorldState
from worldloop.core.randomness import row_normal
from worldloop.core.specs import SimulatorSpec
from worldloop.core.tensors import strip
from worldloop.core.types import Normalisation, Observation
from worldloop.networks.instruction import InstructionEncoder
from worldloop.networks.views import map_views
from worldloop.world_model import CODECS, DENOISERS
from worldloop.world_model.codec import Codec
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.denoiser import Conditioning, Denoiser, DenoiserOutput
from worldloop.world_model.half_turn import HalfTurnedScene
from worldloop.world_model.heads import ErrorHead, ProprioHead, SuccessHead
from worldloop.world_model.landmarks import LandmarkReader
from worldloop.world_model.pretrained import T5Instruction, load_transformer, read_cosmos_config
from worldloop.world_model.sampler import sample
from worldloop.world_model.state import ImaginationState

INSTRUCTION_DIM = 32
UNKNOWN_REACH = 3.0  # standard deviations: how far from the mean imagined proprio may be until its range is set


class VideoWorldModel(nn.Module):
    """`WorldModel` over a codec, a denoiser and heads for proprio, success and its own error.

    The state dict, ``config``, ``spec`` and ``normalisation`` determine it completely. ``spec`` has only the cameras
    that it reads and imagines; input frames may have more. `worldloop.world_model.training` trains it.
    """

    proprio_mean: Tensor
    proprio_std: Tensor
    action_low: Tensor
    action_high: Tensor
    positive_rate: Tensor
    proprio_low: Tensor
    proprio_high: Tensor

    def __init__(self, config: WorldModelConfig, spec: SimulatorSpec, normalisation: Normalisation) -> None:
        super().__init__()
        self.config = config
        self.spec, self.head_cameras = config.select_cameras(spec)
        robot = self.spec.robot
        denoiser_config, published = config.denoiser_config(), {}
        if config.pretrained:
            denoiser_config = read_cosmos_config(config.pretrained, denoiser_config)
        self.codec: Codec = CODECS[config.codec](robot.cameras, config.pretrained)
        text_dim = INSTRUCTION_DIM
        self.instruction: InstructionEncoder | T5Instruction
        if config.pretrained:
            self.instruction = T5Instruction(config.pretrained, config.text_tokens)
            published = {"transformer": load_transformer(config.pretrained, config.lora_rank)}
            text_dim = int(published["transformer"].config.text_embed_dim)
        else:
            self.instruction = InstructionEncoder(INSTRUCTION_DIM)
        channels, sizes = self.codec.channels, self.codec.sizes
        stacked = spec.actions_per_frame * robot.action_dim
        head_sizes = {camera: sizes[camera] for camera in self.head_cameras}
        self.landmarks: LandmarkReader | None = None
        marks = spec.tasks[0].landmarks
        if config.landmarks and any(mark.source == "sim_state" for mark in marks):
            self.landmarks = LandmarkReader(channels, head_sizes, robot.proprio_dim, text_dim, marks)
        self.proprio_head = ProprioHead(
            self.low_dim_size,
            self.num_coordinates,
            self.landmarks.num_way_coordinates if self.landmarks else 0,
            stacked,
            channels,
            () if self.landmarks else self.head_cameras,
            relative_dim=self.landmarks.num_relative if self.landmarks else 0,
            gripper=robot.gripper_proprio if self.landmarks else (),
            turned=self._turn_scene(normalisation),
            num_members=config.num_members,
        )
        dims = (self.low_dim_size, robot.action_dim, spec.actions_per_frame, INSTRUCTION_DIM)
        self.denoiser: Denoiser = DENOISERS[config.denoiser](denoiser_config, channels, sizes, *dims, **published)
        num_gaps = self.landmarks.num_gaps if self.landmarks else 0
        self.success_head = SuccessHead(
            self.denoiser.feature_dim, channels, head_sizes, self.low_dim_size, text_dim, num_gaps
        )
        self.error_head = ErrorHead(self.denoiser.feature_dim)
        self.register_buffer("proprio_mean", normalisation.proprio_mean.clone().float())
        self.register_buffer("proprio_std", normalisation.proprio_std.clone().float())
        self.register_buffer("action_low", torch.tensor(robot.action_low))
        self.register_buffer("action_high", torch.tensor(robot.action_high))
        self.register_buffer("positive_rate", torch.tensor(0.5))
        self.register_buffer("proprio_low", torch.full((robot.proprio_dim,), -UNKNOWN_REACH))
        self.register_buffer("proprio_high", torch.full((robot.proprio_dim,), UNKNOWN_REACH))
        self.frozen = frozenset(name for name, parameter in self.named_parameters() if not parameter.requires_grad)

    def _turn_scene(self, normalisation: Normalisation) -> HalfTurnedScene | None:
        if self.landmarks is None or not self.spec.half_turn.reversed_actions:
            return None
        return HalfTurnedScene(self.spec, self.landmarks, self.spec.robot.gripper_proprio, normalisation)

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without the frozen weights, which are loaded from ``config.pretrained``."""
        return {name: value for name, value in self.state_dict().items() if name not in self.frozen}

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.proprio_mean, self.proprio_std)

    def set_proprio_range(self, low: Tensor, high: Tensor) -> None:
        """Keep imagined proprio between ``low`` and ``high`` f32 [S], in the units of the data: the range of real ones.

        Example: no real hand was ever below the table, so no imagined one gets there, however hard the policy pushes.
        """
        self.proprio_low.copy_(self.normalisation.normalise(low.to(self.device)))
        self.proprio_high.copy_(self.normalisation.normalise(high.to(self.device)))

    @property
    def num_coordinates(self) -> int:
        """P, the coordinates of the landmarks that are carried on; 0 without `LandmarkReader`."""
        return self.landmarks.num_coordinates if self.landmarks else 0

    @property
    def low_dim_size(self) -> int:
        """D = S + P."""
        return self.spec.robot.proprio_dim + self.num_coordinates

    def normalise(self, proprio: Tensor, landmarks_m: Tensor) -> Tensor:
        """What the networks see of ``proprio`` [..., S], in units of the data, and of the objects: f32 [..., D].

        ``landmarks_m`` [..., P] are in metres; a model that does not carry them on leaves them out.
        """
        normal = self.normalisation.normalise(proprio)
        return normal if self.landmarks is None else torch.cat([normal, self.landmarks.scale(landmarks_m)], dim=-1)

    def denormalise(self, low_dim: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `normalise`: proprio [..., S], and landmarks in metres [..., P]."""
        S = self.spec.robot.proprio_dim
        landmarks = low_dim[..., S:]
        if self.landmarks is not None:
            landmarks = self.landmarks.unscale(landmarks)
        return self.normalisation.denormalise(low_dim[..., :S]), landmarks

    def predict_low_dim(self, low_dim: Tensor, actions: Tensor, now: Mapping[str, Tensor]) -> Tensor:
        """What each member predicts from its own ``low_dim`` [B, K, D], with gradients; see `ProprioHead`.

        The robot moves first. Where its landmarks get is told to those that predict the objects, without a gradient.
        """
        if self.landmarks is None:
            return self.proprio_head(low_dim, low_dim[..., :0], actions, now)
        landmarks, proprio = self._split(low_dim)
        moved = self.proprio_head(low_dim, self.landmarks.find_ways(landmarks, proprio), actions, now)
        next_proprio = self.normalisation.denormalise(moved.detach())
        relative = self.landmarks.find_relative(landmarks, proprio, next_proprio)
        return self.proprio_head.move_objects(low_dim, moved, relative, actions)

    def find_gaps(self, low_dim: Tensor) -> Tensor:
        """What the success head reads of ``low_dim`` [..., D]: [..., G], see `LandmarkReader.find_gaps`."""
        return low_dim[..., :0] if self.landmarks is None else self.landmarks.find_gaps(*self._split(low_dim))

    def _split(self, low_dim: Tensor) -> tuple[Tensor, Tensor]:
        """The scaled landmarks [..., P] in ``low_dim`` [..., D], and proprio [..., S] in units of the data."""
        return low_dim[..., self.spec.robot.proprio_dim :], self.denormalise(low_dim)[0]

    @property
    def num_context_frames(self) -> int:
        return self.denoiser.num_context_frames

    @property
    def device(self) -> torch.device:
        return self.proprio_mean.device

    def for_imagination(self) -> Self:
        """This model, prepared for imagination: frozen, and with bf16 precision its weights are cast once.

        Without the cast, autocast would cast them at every call. The imagined frames stay bit-equal. Do not train or
        save the model afterwards.
        """
        if self.config.precision == "bf16":
            parts = (self.denoiser, self.proprio_head, self.success_head, self.error_head, self.landmarks)
            for part in parts:
                for module in part.modules() if part is not None else ():
                    if type(module) in (nn.Linear, nn.Conv2d):  # subclasses may compute with their weights
                        module.to(torch.bfloat16)
        return self.eval().requires_grad_(False)

    def forward[**P, T](self, compute: Callable[Concatenate[Self, P], T], *arguments: P.args, **named: P.kwargs) -> T:
        """Call ``compute(self, *arguments)`` inside a forward pass, where FSDP2 gathers the sharded weights."""
        return compute(self, *arguments, **named)

    def encode(self, frames: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Latents [..., C, h, w] of ``frames``, camera -> u8 [..., H, W, 3], for the cameras that the model reads.

        Raises ``ValueError`` if one of these cameras is missing.
        """
        cameras = self.spec.robot.camera_names
        missing = [camera for camera in cameras if camera not in frames]
        if missing:
            raise ValueError(f"the world model reads camera {missing[0]!r}, the frames are of {', '.join(frames)}")
        return self.codec.encode({camera: frames[camera] for camera in cameras})

    def start(self, context: Observation, noise_key: Tensor) -> ImaginationState:
        """Start from an observation with one frame or more; `fill_context` fills up missing context frames.

        Raises `WorldloopError` for an observation without proprio.
        """
        if context.proprio is None:
            raise WorldloopError("the world model needs proprio in its context: use an observation that has it")
        seen = context.with_cameras(self.spec.robot.camera_names).frames
        frames = map_views(lambda images: fill_context(images.to(self.device), self.num_context_frames), seen)
        low_dim, latents = self.normalisation.normalise(context.proprio.to(self.device)), self.codec.encode(frames)
        with torch.no_grad():
            instruction = self.instruction(context.instruction).float()
            if self.landmarks is not None:
                low_dim = torch.cat([low_dim, self.read_landmarks(latents, low_dim, instruction)], dim=1)
        zero = torch.zeros_like(noise_key)
        return self._remember(latents, low_dim, instruction.contiguous(), noise_key.clone(), zero)

    def read_landmarks(self, context: Mapping[str, Tensor], proprio: Tensor, instruction: Tensor) -> Tensor:
        """The objects' scaled positions [B, P], with gradients, read from ``context``, camera -> [B, K, C, h, w]."""
        assert self.landmarks is not None
        first = {camera: context[camera][:, 0] for camera in self.head_cameras}
        now = {camera: context[camera][:, -1] for camera in self.head_cameras}
        with self.autocast():
            return self.landmarks(first, now, proprio, instruction)

    def restore(self, tensors: dict[str, Tensor]) -> ImaginationState:
        """Inverse of `ImaginationState.to_tensors`; the tensors may be on another device."""
        context = {camera: latents.to(self.device) for camera, latents in strip("context", tensors).items()}
        low_dim, instruction = (tensors[name].to(self.device) for name in ("low_dim", "instruction"))
        return self._remember(context, low_dim, instruction, tensors["noise_key"], tensors["step"])

    @torch.no_grad()
    def _remember(
        self,
        context: Mapping[str, Tensor],
        low_dim: Tensor,
        instruction: Tensor,
        noise_key: Tensor,
        step: Tensor,
    ) -> ImaginationState:
        with self.autocast():
            memory = self.denoiser.remember(context, instruction)
        return ImaginationState(noise_key, step, memory, low_dim, instruction)

    @torch.no_grad()
    def imagine(self, state: WorldState, actions: Tensor) -> tuple[ImaginationState, ImaginedChunk]:
        """Imagine the frames that follow ``actions`` f32 [B, H, A] in environment units, without gradients.

        Raises ``ValueError`` unless B matches ``state``, H is a multiple of s and A is the robot's.
        """
        assert isinstance(state, ImaginationState)
        B, H, A = actions.shape
        s, action_dim = self.spec.actions_per_frame, self.spec.robot.action_dim
        if len(state) != B or H % s or action_dim != A:
            raise ValueError(f"actions {tuple(actions.shape)} for {len(state)} rows, {s} per frame, {action_dim} wide")
        per_frame = self.scale_actions(actions.to(self.device)).reshape(B, H // s, s, A)
        frames: list[dict[str, Tensor]] = []
        proprios, logits, psnrs = [], [], []
        for m in range(H // s):
            state, logit, psnr_db = self._imagine_frame(state, per_frame[:, m])
            frames.append(self.codec.decode(map_views(_now, state.context)))
            proprios.append(self.denormalise(state.low_dim)[0])
            logits.append(logit)
            psnrs.append(psnr_db)
        by_camera = map_views(lambda *images: torch.stack(images, 1), *frames)
        return state, ImaginedChunk(by_camera, *(torch.stack(values, 1) for values in (proprios, logits, psnrs)))

    def features(self, context: Observation) -> Tensor:
        """Tokens f32 [B, N, F] of the frame after the context, with gradients; actions are mid-way in their bounds."""
        state = self.start(context, torch.zeros(len(context), dtype=torch.long))
        shape = (len(context), self.spec.actions_per_frame, self.spec.robot.action_dim)
        actions = torch.zeros(shape, device=self.device)
        with self.autocast():
            instruction = self.instruction(context.instruction)
            conditioning, _ = self.condition(state.context, state.low_dim, actions, instruction)
            memory = self.denoiser.remember(state.context, instruction)
            noisy = map_views(lambda latents: torch.zeros_like(latents[:, -1:]), state.context)
            output = self.denoiser(noisy, torch.zeros(len(context), device=self.device), memory, conditioning)
        return output.features[:, 0].float()

    @property
    def feature_dim(self) -> int:
        """F, the channels of a token of `features` and of a slot."""
        return self.denoiser.feature_dim

    @property
    def num_latents(self) -> int:
        """Latent values of one frame in all cameras."""
        return self.codec.channels * sum(height * width for height, width in self.codec.sizes.values())

    def read_slots(self, context: Observation, slots: Tensor, t: Tensor) -> Tensor:
        """See `SlotReader`. Actions are mid-way in their bounds, and proprio stands still."""
        state = self.start(context, torch.zeros(len(context), dtype=torch.long))
        shape = (len(context), 1, self.spec.actions_per_frame, self.spec.robot.action_dim)
        with self.autocast():
            instruction = self.instruction(context.instruction)
            conditioning = Conditioning(
                torch.zeros(shape, device=self.device), state.low_dim, state.low_dim[:, None], instruction
            )
            memory = self.denoiser.remember(state.context, instruction)
            return self.denoiser.read_slots(slots, t, memory, conditioning).float()

    def _imagine_frame(self, state: ImaginationState, actions: Tensor) -> tuple[ImaginationState, Tensor, Tensor]:
        """One frame further under ``actions`` [B, s, A] in [-1, 1]: (state, success logit [B], expected PSNR [B])."""
        noise = self.draw_noise(state)
        with self.autocast():
            conditioning, following = self.condition(state.context, state.low_dim, actions, state.instruction)

            outputs: list[DenoiserOutput] = []

            def denoise(noisy: Mapping[str, Tensor], t: Tensor) -> DenoiserOutput:
                outputs.append(self.denoiser(noisy, t, state.memory, conditioning))
                return outputs[-1]

            output = sample(denoise, noise, self.config.num_sampler_steps)
            frames = map_views(lambda data: data.clamp(-self.codec.limit, self.codec.limit), output.data)
            first = map_views(lambda latents: latents[:, 0], state.context)
            judged = first, frames, following[:, None], self.find_gaps(following)[:, None], state.instruction
            logit = self.success_head(output.features, *judged)[:, 0]
            psnr_db = self.error_head(outputs[0].features)[:, 0]  # the error head was trained only at t = 0
            latent = map_views(lambda data: data[:, 0].float(), frames)
            memory = self.denoiser.shift(state.memory, latent, state.instruction)
        moved = replace(state, memory=memory, low_dim=following, step=state.step + 1)
        return moved, logit, psnr_db

    def draw_noise(self, state: ImaginationState) -> dict[str, Tensor]:
        """The initial noise of a frame, camera -> [B, 1, C, h, w]; zeros if one sampler step ignores it."""
        if self.config.num_sampler_steps == 1 and self.denoiser.ignores_noise:
            return map_views(lambda latents: torch.zeros_like(latents[:, :1]), state.context)
        shapes = {camera: tuple(latents.shape[2:]) for camera, latents in state.context.items()}
        counts = [math.prod(shape) for shape in shapes.values()]
        parts = row_normal(state.noise_key, state.step, (sum(counts),)).to(self.device)[:, None].split(counts, dim=2)
        return {camera: part.unflatten(2, shape) for (camera, shape), part in zip(shapes.items(), parts, strict=True)}

    def condition(
        self, context: Mapping[str, Tensor], low_dim: Tensor, actions: Tensor, instruction: Tensor
    ) -> tuple[Conditioning, Tensor]:
        """The denoiser's conditioning, and the next ``low_dim`` [B, D], the mean of what the members predict.

        It is clamped to the range of the data. The head adds up changes: without the clamp they diverge exponentially
        within a few hundred frames.
        """
        low, high = self.proprio_low, self.proprio_high
        if self.landmarks is not None:
            low, high = torch.cat([low, self.landmarks.low]), torch.cat([high, self.landmarks.high])
        everyone = low_dim[:, None].expand(-1, len(self.proprio_head.members), -1)
        predicted = self.predict_low_dim(everyone, actions, map_views(_now, context)).detach()
        following = predicted.mean(1).clamp(low, high)
        return Conditioning(actions[:, None], low_dim, following[:, None], instruction), following

    def scale_actions(self, actions: Tensor) -> Tensor:
        """Scale actions from environment units to [-1, 1] by the robot's bounds."""
        return 2 * (actions - self.action_low) / (self.action_high - self.action_low) - 1

    def autocast(self) -> torch.autocast:
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def _now(context: Tensor) -> Tensor:
    """The frame now: [B, K, ...] -> [B, ...]."""
    return context[:, -1]
