"""Inverse dynamics: which motion of the robot do the frames of a video show? (EVA, arXiv:2603.17808)

Departures:

1. The paper's network is a ResNet50 on one image size. Here convolutions and keypoints are trained from scratch, for
   every camera. Keypoints are the paper's spatial softmax: they tell positions below a pixel.
2. The paper infers joint positions. Here the network infers all of proprio (joints, velocities, tool) at two frames,
   and the actions between them: our controllers take actions, not joint positions.

Shapes: B rows, T frames, n frames of a window, s actions per frame, S proprio, A action, h x w pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.core import images
from worldloop.core.errors import require_range
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Clip, Normalisation
from worldloop.networks.blocks import make_mlp
from worldloop.networks.frame_stack import FrameStackEncoder
from worldloop.networks.views import ViewModules, map_views


@dataclass(frozen=True)
class InverseDynamicsConfig:
    """The network. The judge, which no training sees, is another one: see `for_judging`."""

    num_frames: int = 3  # frames of a window: 3 (before, now, next) or 2 (now, next)
    only_keypoints: bool = True  # read keypoint positions alone; false: the features of every cell as well
    width: int = 48  # channels of the convolutions
    num_layers: int = 4  # residual convolutions
    num_keypoints: int = 32  # points that the convolutions find in a window
    hidden_dim: int = 384  # hidden channels above them

    def __post_init__(self) -> None:
        require_range("inverse_dynamics.num_frames", self.num_frames, 2, 3)
        for name in ("width", "num_layers", "num_keypoints", "hidden_dim"):
            require_range(f"inverse_dynamics.{name}", getattr(self, name), 1)

    def for_judging(self) -> InverseDynamicsConfig:
        """A model of another kind, whose errors are its own: two frames, and the features of every cell."""
        return replace(self, num_frames=2, only_keypoints=not self.only_keypoints)


@dataclass(frozen=True)
class Motion:
    """The motion that B videos of T frames show: ``proprio`` f32 [B, T, S], ``actions`` f32 [B, T - 1, s, A].

    Both are in the units of the data; actions may lie outside their bounds.
    """

    proprio: Tensor
    actions: Tensor


class InverseDynamics(nn.Module):
    """From a window of frames to proprio now and next, and the actions in between.

    It reads all cameras of ``spec``. ``config``, ``spec``, ``normalisation`` and the state dict determine it.
    """

    proprio_mean: Tensor
    proprio_std: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(self, config: InverseDynamicsConfig, spec: SimulatorSpec, normalisation: Normalisation) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        robot = spec.robot
        self.encoders = ViewModules(
            {
                camera.name: FrameStackEncoder(
                    3,
                    (camera.height, camera.width),
                    torch.zeros(3, camera.height, camera.width),
                    width=config.width,
                    only_keypoints=config.only_keypoints,
                    num_frames=config.num_frames,
                    num_layers=config.num_layers,
                    num_keypoints=config.num_keypoints,
                )
                for camera in robot.cameras
            }
        )
        self.sizes = (robot.proprio_dim, robot.proprio_dim, spec.actions_per_frame * robot.action_dim)
        seen_dim = sum(encoder.dim for _, encoder in self.encoders.items())
        self.mlp = make_mlp(seen_dim, config.hidden_dim, sum(self.sizes))
        self.register_buffer("proprio_mean", normalisation.proprio_mean.clone().float())
        self.register_buffer("proprio_std", normalisation.proprio_std.clone().float())
        self.register_buffer("action_low", torch.tensor(robot.action_low))
        self.register_buffer("action_high", torch.tensor(robot.action_high))

    @property
    def normalisation(self) -> Normalisation:
        return Normalisation(self.proprio_mean, self.proprio_std)

    @property
    def device(self) -> torch.device:
        return self.proprio_mean.device

    def set_backgrounds(self, frames: Mapping[str, Tensor]) -> None:
        """Take the mean of ``frames``, camera -> u8 [n, h, w, 3], as the background of each camera."""
        for camera, encoder in self.encoders.items():
            assert encoder.background is not None
            encoder.background.copy_(images.to_network(frames[camera]).mean(0))

    def forward(self, windows: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised proprio now and next, f32 [B, S] each, and actions f32 [B, s, A], which are -1 to 1 in bounds.

        ``windows``: camera -> float [B, n, 3, h, w] in [-1, 1].
        """
        seen = torch.cat([encoder(*windows[camera].unbind(1)) for camera, encoder in self.encoders.items()], dim=1)
        now, following, actions = self.mlp(seen).float().split(self.sizes, dim=1)
        return now, following, actions.unflatten(1, (self.spec.actions_per_frame, -1))

    def read_actions(self, windows: Mapping[str, Tensor]) -> Tensor:
        """The actions to the last of three frames, f32 [B, s, A], which are -1 to 1 in bounds, with gradients.

        ``windows``: camera -> float [B, 3, 3, h, w] in [-1, 1].
        """
        return self(map_views(lambda frames: frames[:, -self.config.num_frames :], windows))[2]

    def infer(self, video: Mapping[str, Tensor]) -> Motion:
        """The motion in ``video``, camera -> float [B, T, 3, h, w] in [-1, 1], T >= 2, with gradients.

        Before the first frame the robot is taken to stand still, as at the start of an episode.
        """
        B, T = next(iter(video.values())).shape[:2]
        if T < 2:
            raise ValueError(f"a motion takes two or more frames, got {T}")
        windows = map_views(self._cut_windows, {camera: video[camera] for camera in self.encoders.cameras})
        now, following, actions = self(windows)
        proprio = torch.cat([now.unflatten(0, (B, T - 1)), following.unflatten(0, (B, T - 1))[:, -1:]], dim=1)
        middle, half = (self.action_high + self.action_low) / 2, (self.action_high - self.action_low) / 2
        return Motion(
            proprio * self.proprio_std + self.proprio_mean,
            actions.unflatten(0, (B, T - 1)) * half + middle,
        )

    @torch.no_grad()
    def infer_frames(self, frames: Mapping[str, Tensor]) -> Motion:
        """As `infer`, from stored frames: camera -> u8 [B, T, h, w, 3]; without gradients."""
        return self.infer(map_views(lambda stored: images.to_network(stored.to(self.device)), frames))

    @torch.no_grad()
    def read_plan(self, seen: Mapping[str, Tensor], plan: Mapping[str, Tensor]) -> Tensor:
        """See `ActionReader`."""
        video = {camera: torch.cat([seen[camera][:, -2:], frames], dim=1) for camera, frames in plan.items()}
        actions = self.infer_frames(video).actions[:, 1:].flatten(1, 2)  # those before now have been executed
        return actions.clamp(self.action_low, self.action_high).cpu()

    def _cut_windows(self, video: Tensor) -> Tensor:
        """[B, T, ...] -> [B (T - 1), n, ...]: the window of each frame but the last."""
        now, following = video[:, :-1], video[:, 1:]
        before = torch.cat([video[:, :1], video[:, :-2]], dim=1)
        parts = (before, now, following)[-self.config.num_frames :]
        return torch.stack(parts, dim=2).flatten(0, 1)

    def compute_loss(self, clip: Clip) -> Tensor:
        """The mean squared error over the first frame step of ``clip``, which must be valid.

        Proprio is in standard deviations, actions are in half their range. The context must hold the frame before.
        """
        seen = {
            camera: torch.cat([clip.context[camera][:, -2:], clip.frames[camera][:, :1]], dim=1)
            for camera in self.encoders.cameras
        }
        windows = {camera: images.to_network(frames[:, -self.config.num_frames :]) for camera, frames in seen.items()}
        now, following, actions = self(windows)
        target = 2 * (clip.actions[:, 0] - self.action_low) / (self.action_high - self.action_low) - 1
        normalise = self.normalisation.normalise
        proprio = functional.mse_loss(now, normalise(clip.context_proprio))
        next_proprio = functional.mse_loss(following, normalise(clip.proprio[:, 0]))
        return (proprio + next_proprio) / 2 + functional.mse_loss(actions, target)
