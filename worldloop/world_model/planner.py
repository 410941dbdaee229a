"""Planner mode of the world model: from what is seen, and the instruction, to the frames of a success.

EVA (arXiv:2603.17808) plans a video and lets inverse dynamics execute it. A planner has the networks of a fitted world
model. It learns from successful episodes, with stand-ins for what a planner does not know.

Departures:

1. The paper's planner is a large pretrained video model. Ours starts from the loop's own action-conditioned one.
2. No action is known, and after the first frame no proprio. Learned constants take their places in every frame.
3. The world model draws the arm from proprio. A planner does not: an arm that is redrawn from proprio would hide what
   the executability reward is to find.

Shapes: B rows, K context frames, M frames of a plan, s actions per frame, S proprio, A action, C x h x w latents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES, shift_frames
from worldloop.core.interfaces import Metrics
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Clip, Normalisation, Observation
from worldloop.networks import flow
from worldloop.networks.views import map_views
from worldloop.training.trainer import BatchObjective
from worldloop.world_model import losses
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.denoiser import Conditioning, DenoiserOutput, FrameMemory
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.sampler import sample
from worldloop.world_model.state import ImaginationState
from worldloop.world_model.variation import vary_context


class VideoPlanner(nn.Module):
    """`Planner` on the codec, the denoiser and the instruction encoder of a world model. Its heads are not used.

    ``config.num_sampler_steps`` denoising steps make a frame. One step would show the mean of all ways to go on. The
    state dict, ``config``, ``spec`` and ``normalisation`` determine it completely.
    """

    def __init__(self, config: WorldModelConfig, spec: SimulatorSpec, normalisation: Normalisation) -> None:
        super().__init__()
        self.world_model = VideoWorldModel(config, spec, normalisation)
        self.config, self.spec = config, self.world_model.spec
        model = self.world_model
        for head in (model.proprio_head, model.success_head, model.error_head, model.landmarks):
            if head is not None:
                head.requires_grad_(False)
        robot = spec.robot
        self.unknown_actions = nn.Parameter(torch.zeros(spec.actions_per_frame, robot.action_dim))
        self.unknown_proprio = nn.Parameter(torch.zeros(self.world_model.low_dim_size))

    @property
    def normalisation(self) -> Normalisation:
        return self.world_model.normalisation

    @property
    def feature_dim(self) -> int:
        return self.world_model.feature_dim

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the weights that come from ``config.pretrained``, not from a checkpoint."""
        return frozenset(f"world_model.{name}" for name in self.world_model.frozen)

    def trained_state(self) -> dict[str, Tensor]:
        """The state dict without the weights in ``frozen``."""
        return {name: value for name, value in self.state_dict().items() if name not in self.frozen}

    def start_from(self, fitted: VideoWorldModel) -> None:
        """Take over the weights of ``fitted``, a world model of the same networks."""
        self.world_model.load_state_dict(fitted.state_dict())

    @torch.no_grad()
    def plan(self, context: Observation, noise_key: Tensor | None, num_frames: int) -> dict[str, Tensor]:
        """See `Planner`."""
        frames = []
        for latents in self.imagine(context, noise_key, num_frames):
            frames.append(self.world_model.codec.decode(latents))
        return map_views(lambda *images: torch.stack(images, dim=1).cpu(), *frames)

    def imagine(self, context: Observation, noise_key: Tensor | None, num_frames: int) -> Iterator[dict[str, Tensor]]:
        """The latents of one frame after the other, camera -> f32 [B, C, h, w]."""
        model = self.world_model
        key = torch.zeros(len(context), dtype=torch.long) if noise_key is None else noise_key
        state = model.start(context, key)
        for step in range(num_frames):
            latents = self._imagine_frame(state, step)
            yield latents
            memory = model.denoiser.shift(state.memory, latents, state.instruction)
            state = replace(state, memory=memory, step=state.step + 1)

    @torch.no_grad()
    def features(self, context: Observation) -> Tensor:
        """See `Planner`; the noise of the frame is zero."""
        model = self.world_model
        state = model.start(context, torch.zeros(len(context), dtype=torch.long))
        noisy = map_views(lambda latents: torch.zeros_like(latents[:, -1:]), state.context)
        t = torch.zeros(len(context), device=model.device)
        with model.autocast():
            output = self.predict(noisy, t, memory=state.memory, instruction=state.instruction)
        return output.features[:, 0].float()

    def _imagine_frame(self, state: ImaginationState, step: int) -> dict[str, Tensor]:
        model = self.world_model
        with model.autocast():
            denoise = partial(self.predict, memory=state.memory, instruction=state.instruction)
            output = sample(denoise, model.draw_noise(state), self.config.num_sampler_steps)
        return map_views(lambda data: data[:, 0].float().clamp(-model.codec.limit, model.codec.limit), output.data)

    def predict(
        self, noisy: Mapping[str, Tensor], t: Tensor, *, memory: FrameMemory, instruction: Tensor
    ) -> DenoiserOutput:
        """The clean latents of the frame after ``memory``, from ``noisy``, camera -> [B, 1, C, h, w], at ``t`` [B]."""
        return self.world_model.denoiser(noisy, t, memory, self.condition(instruction))

    def condition(self, instruction: Tensor) -> Conditioning:
        """What conditions every frame of a plan: the ``instruction`` [B, E], and stand-ins for the rest."""
        B = len(instruction)
        proprio = self.unknown_proprio.expand(B, -1)
        actions = self.unknown_actions.expand(B, 1, -1, -1)
        return Conditioning(actions, proprio, proprio[:, None], instruction, is_plan=True)


def compute_plan_loss(planner: VideoPlanner, clip: Clip, generator: torch.Generator) -> tuple[Tensor, Metrics]:
    """Flow matching on the M frames of ``clip``, each predicted from the one before; a mean over valid frames.

    From the second frame on the context continues with the planner's own detached prediction if that started from pure
    noise, else with the real frame, as in `training.compute_joint_loss`. ``generator`` is a CPU generator.
    """
    model, config = planner.world_model, planner.config
    clip = clip.to(model.device)
    context, frames = model.encode(clip.context), model.encode(clip.frames)
    with model.autocast():
        instruction = model.instruction(clip.instruction)
    errors = []
    for m in range(clip.valid.shape[1]):
        data = map_views(lambda latents, m=m: latents[:, m], frames)
        t = flow.sample_times(len(instruction), config.zero_time_share, generator).to(model.device)
        noise = map_views(lambda real: torch.randn(real.shape, generator=generator).to(model.device), data)
        noisy = map_views(partial(flow.interpolate, t=t), noise, data)
        seen = vary_context(context, config.context_noise, generator)
        with model.autocast():
            memory = model.denoiser.remember(seen, instruction)
            single = map_views(lambda latents: latents[:, None], noisy)
            output = planner.predict(single, t, memory=memory, instruction=instruction)
        predicted = map_views(lambda latents: latents[:, 0].float(), output.data)
        error = []
        for camera, size in model.codec.sizes.items():
            weights = losses.weigh_target(clip, m, camera, size, config.moved_weight, config.rare_weight)
            error.append(losses.compute_video_loss(config.video_loss, predicted[camera], data[camera], weights))
        errors.append(torch.stack(error).mean(0))
        is_own = (t == 0)[:, None, None, None]
        for camera, latent in predicted.items():
            own = latent.detach().clamp(-model.codec.limit, model.codec.limit)
            context[camera] = shift_frames(context[camera], torch.where(is_own, own, data[camera]))
    valid = clip.valid.float()
    loss = (torch.stack(errors, dim=1) * valid).sum() / valid.sum().clamp_min(1)
    return loss, {"loss": float(loss.detach())}


class ClipLoader(Protocol):
    """Loads clips by (episode, frame step), see `worldloop.sans.clips.ClipDataset`."""

    def load(self, index: Tensor, num_frames: int, num_context_frames: int = NUM_CONTEXT_FRAMES) -> Clip: ...


class PlannerObjective(BatchObjective[Clip]):
    """`compute_plan_loss` on clips of ``num_frames`` frames.

    ``draw_starts(generator, number)`` gives their starts int64 [number, 2] = (episode, frame); ``batch_size`` is of
    a microbatch.
    """

    def __init__(
        self,
        planner: VideoPlanner,
        clips: ClipLoader,
        draw_starts: Callable[[torch.Generator, int], Tensor],
        generators: Mapping[int, torch.Generator],
        *,
        batch_size: int,
        num_frames: int,
    ) -> None:
        super().__init__(generators)
        self.planner, self.clips, self.draw_starts = planner, clips, draw_starts
        self.batch_size, self.num_frames = batch_size, num_frames

    def draw(self, generator: torch.Generator) -> Clip:
        starts = self.draw_starts(generator, self.batch_size)
        return self.clips.load(starts, self.num_frames, self.planner.world_model.num_context_frames)

    def count(self, batch: Clip) -> Tensor:
        return batch.valid.sum()

    def compute_loss(self, batch: Clip, number: int) -> tuple[Tensor, Metrics]:
        return compute_plan_loss(self.planner, batch, self.generators[number])
