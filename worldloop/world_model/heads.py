"""The heads of the world model: success, next proprio, and the error of an imagined frame.

They read the denoiser's tokens, or latents and proprio, and work with any denoiser. Latents are a dict by camera; a
head reads only the cameras that it was built for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.networks.blocks import AttentionPool, BoostedLinear, make_mlp
from worldloop.networks.frame_stack import FrameStackEncoder
from worldloop.networks.instruction import mean_token
from worldloop.networks.views import ViewModules
from worldloop.world_model.half_turn import HalfTurnedScene

LANDMARK_STEP = 1 / 3  # landmarks move a third of their unit for a network output of 1
PROPRIO_GAIN = 4.0  # small proprio networks need a several times higher learning rate than image networks


class TokenReader(nn.Module):
    """One number per frame, f32 [B, L], from the denoiser's tokens [B, L, N, F]: pooled tokens and the reward token."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.pool = AttentionPool(feature_dim)
        self.mlp = make_mlp(2 * feature_dim, feature_dim, 1, num_hidden=1)

    def forward(self, features: Tensor) -> Tensor:
        B, L, N, F = features.shape
        tokens = features.reshape(B * L, N, F)
        pooled = torch.cat([self.pool(tokens), tokens[:, 0]], dim=-1)
        return self.mlp(pooled).float().reshape(B, L)


class GapReader(nn.Module):
    """Logit [B] of "the task is solved" from gaps [B, G] between landmarks and an instruction [B, E].

    See `LandmarkReader.find_gaps`. Gaps and nothing else: with all of proprio beside them it was worse on imagined
    states, which differ from real ones in joints and velocities that decide nothing (PickCube-v1).
    """

    TEXT_DIM = 8

    def __init__(self, num_gaps: int, text_dim: int, hidden_dim: int = 64) -> None:
        super().__init__()
        self.text_dim = text_dim
        self.text = BoostedLinear(text_dim, self.TEXT_DIM, gain=1.0)  # stays fp32, see `for_imagination`
        self.mlp = make_mlp(num_gaps + self.TEXT_DIM, hidden_dim, 1, gain=PROPRIO_GAIN)

    def forward(self, gaps: Tensor, instruction: Tensor) -> Tensor:
        with torch.autocast(gaps.device.type, enabled=False):  # bf16 rounds decimetres to millimetres
            text = self.text(mean_token(instruction.float(), self.text_dim))
            return self.mlp(torch.cat([gaps.float(), text], dim=1))[:, 0]


class SuccessHead(nn.Module):
    """Logit of "the task is solved at this frame": the mean of two readers of pictures, or that of `GapReader`.

    - ``read_tokens`` reads the denoiser's tokens, World-VLA-Loop's phi(z_t). In small models it learns late and
      memorises training episodes.
    - ``read_frame`` reads, for each camera, the first frame and this frame (convolutions and keypoints), the proprio at
      this frame and the instruction. Proprio tells the hand's position to the millimetre and whether the fingers hold
      something; two tasks may differ only in the instruction. It learns from real frames within hundreds of steps and
      is then used on imagined ones. Trained on predictions instead, it did worse on held-out PushCube episodes (one
      seed, no clean ablation).
    - ``read_gaps`` reads where the objects are, if the model carries that on. Then it judges alone: together with the
      two others it seemed to tell a success from a failure worse (PickCube-v1, experiment 028). They learn all the
      same, and the gradient of ``read_tokens`` shapes the denoiser's tokens.

    ``sizes`` is camera -> (h, w) of the latents that it reads; an instruction token has ``text_dim`` channels.
    """

    PROPRIO_DIM, TEXT_DIM = 64, 32

    def __init__(
        self,
        feature_dim: int,
        channels: int,
        sizes: Mapping[str, tuple[int, int]],
        proprio_dim: int,
        text_dim: int,
        num_gaps: int = 0,
        hidden_dim: int = 128,
    ) -> None:
        super().__init__()
        self.text_dim = text_dim
        self.read_gaps = GapReader(num_gaps, text_dim) if num_gaps else None
        self.read_tokens = TokenReader(feature_dim)
        self.encoders = ViewModules({camera: FrameStackEncoder(channels, size) for camera, size in sizes.items()})
        self.proprio = make_mlp(proprio_dim, hidden_dim, self.PROPRIO_DIM, num_hidden=1, gain=PROPRIO_GAIN)
        self.text = make_mlp(text_dim, hidden_dim, self.TEXT_DIM, num_hidden=1, gain=PROPRIO_GAIN)
        seen_dim = sum(encoder.dim for _, encoder in self.encoders.items())
        self.frame_mlp = make_mlp(seen_dim + self.PROPRIO_DIM + self.TEXT_DIM, hidden_dim, 1, num_hidden=2)

    def forward(
        self,
        features: Tensor,
        first: Mapping[str, Tensor],
        frames: Mapping[str, Tensor],
        proprio: Tensor,
        gaps: Tensor,
        instruction: Tensor,
    ) -> Tensor:
        """Logits f32 [B, L] of ``frames``, camera -> [B, L, C, h, w], with their ``proprio`` [B, L, D].

        ``features`` [B, L, N, F] are the denoiser's tokens; ``first``, camera -> [B, C, h, w], is the episode's first
        frame; ``gaps`` are [B, L, G]; ``instruction`` [B, E] is embedded.
        """
        if self.read_gaps is not None:
            return torch.stack([self.read_gaps(of_frame, instruction) for of_frame in gaps.unbind(1)], dim=1)
        logits = [
            self.read_frame(first, {c: f[:, i] for c, f in frames.items()}, proprio[:, i], instruction)
            for i in range(proprio.shape[1])
        ]
        return (self.read_tokens(features) + torch.stack(logits, dim=1)) / 2

    def read_frame(
        self, first: Mapping[str, Tensor], frame: Mapping[str, Tensor], proprio: Tensor, instruction: Tensor
    ) -> Tensor:
        """Logits [B] from latents, camera -> [B, C, h, w], of the episode's ``first`` frame and of ``frame``.

        ``proprio`` [B, S] is that at ``frame``, normalised. ``instruction`` [B, E] holds one or more tokens; all-zero
        tokens are padding.
        """
        seen = torch.cat([encoder(first[camera], frame[camera]) for camera, encoder in self.encoders.items()], dim=1)
        beside = self.proprio(proprio), self.text(mean_token(instruction, self.text_dim))
        return self.frame_mlp(torch.cat([seen, *(part.to(seen) for part in beside)], dim=1))[:, 0].float()


class ErrorHead(nn.Module):
    """Predicts the PSNR in dB between an imagined frame and the simulated one.

    It learns from the model's own predictions, also far into a self-rollout, by squared error, a proper score for the
    mean. It sends no gradient into the denoiser's tokens, so it does not affect the video.
    """

    CENTRE_DB, SCALE_DB = 25.0, 5.0  # centre and scale of the prediction: network outputs are of order one

    def __init__(self, feature_dim: int) -> None:
        super().__init__()
        self.read_tokens = TokenReader(feature_dim)

    def forward(self, features: Tensor) -> Tensor:
        """``features`` [B, L, N, F] -> dB f32 [B, L]."""
        return self.CENTRE_DB + self.SCALE_DB * self.read_tokens(features.detach())

    def compute_loss(self, expected_db: Tensor, actual_db: Tensor) -> Tensor:
        """Squared error [...] in units of ``SCALE_DB``."""
        return ((expected_db - actual_db) / self.SCALE_DB).square()


class ProprioHead(nn.Module):
    """Predicts the next normalised proprio from proprio, the frame step's actions and images of ``cameras``, if any.

    K = ``num_members`` networks with different initial weights predict it, a deep ensemble (arXiv:1612.01474).
    Imagination follows their mean. They share the view of the images, which are those of the frame now. A network's
    output is the change of proprio. GE-Sim 2.0 reports that such a state expert raises closed-loop recall.

    ``dim`` is D: S of proprio, then P = ``num_coordinates`` of landmarks. ``way_dim`` is W and ``relative_dim`` R, see
    `LandmarkReader`. Where the objects' places are known, images add nothing (experiment 030).

    `move_objects` predicts the objects and the ``gripper``, dimensions of proprio, apart. It reads only where things
    are to each other, and no joints or places in the room (experiment 029). With ``turned`` it predicts the scene as it
    is and after half a turn, and takes the mean.
    """

    def __init__(
        self,
        dim: int,
        num_coordinates: int,
        way_dim: int,
        stacked_action_dim: int,
        latent_channels: int,
        cameras: Sequence[str],
        relative_dim: int = 0,
        gripper: Sequence[int] = (),
        turned: HalfTurnedScene | None = None,
        hidden_dim: int = 384,
        image_dim: int = 32,
        num_members: int = 1,
    ) -> None:
        super().__init__()
        self.cameras = tuple(cameras)
        self.num_coordinates = num_coordinates
        image_dim = image_dim if cameras else 0
        self.image = nn.Sequential()
        if cameras:
            self.image.extend([nn.Linear(len(cameras) * latent_channels * 64, image_dim), nn.SiLU()])
            self.image.extend([nn.Linear(image_dim, image_dim), nn.SiLU()])
        self.num_proprio, self.gripper = dim - num_coordinates, list(gripper)
        self.members = nn.ModuleList(
            make_mlp(dim + way_dim + stacked_action_dim + image_dim, hidden_dim, self.num_proprio, gain=PROPRIO_GAIN)
            for _ in range(num_members)
        )
        seen, moved = relative_dim + len(self.gripper) + stacked_action_dim, num_coordinates + len(self.gripper)
        self.turned = turned
        self.objects = nn.ModuleList(
            make_mlp(seen, hidden_dim, moved, gain=PROPRIO_GAIN) for _ in range(num_members if num_coordinates else 0)
        )

    def forward(self, low_dim: Tensor, ways: Tensor, actions: Tensor, now: Mapping[str, Tensor]) -> Tensor:
        """The next proprio [B, K, S], f32, of each member from its own ``low_dim`` [B, K, D].

        ``ways`` [B, K, W] go with it; all see ``actions`` [B, s, A] in [-1, 1] and the frame ``now``, camera ->
        [B, C, h, w].
        """
        thumbnails = [functional.adaptive_avg_pool2d(now[camera], 8).flatten(1) for camera in self.cameras]
        seen = [self.image(torch.cat(thumbnails, dim=1))] if thumbnails else []
        with torch.autocast(low_dim.device.type, enabled=False):  # bf16 rounds decimetres to millimetres
            shared = torch.cat([part.to(low_dim) for part in (actions.flatten(1), *seen)], dim=1)
            changes = [
                member(torch.cat([low_dim[:, k], ways[:, k].to(low_dim), shared], dim=1))
                for k, member in enumerate(self.members)
            ]
        return low_dim[..., : self.num_proprio] + torch.stack(changes, dim=1)

    def move_objects(self, low_dim: Tensor, next_proprio: Tensor, relative: Tensor, actions: Tensor) -> Tensor:
        """The next ``low_dim`` [B, K, D], f32: objects and gripper by their own networks, the rest ``next_proprio``.

        ``relative`` [B, K, R] is `LandmarkReader.find_relative`.
        """
        proprio, landmarks = low_dim[..., : self.num_proprio], low_dim[..., self.num_proprio :]
        held = proprio[..., self.gripper]
        with torch.autocast(low_dim.device.type, enabled=False):  # bf16 rounds decimetres to millimetres
            scene = relative.to(low_dim), held, actions.to(low_dim)
            change = self._change_objects(*scene)
            if self.turned is not None:
                change = (change + self.turned.turn_change(self._change_objects(*self.turned(*scene)))) / 2
        P = self.num_coordinates
        following = next_proprio.clone()
        following[..., self.gripper] = held + change[..., P:]
        return torch.cat([following, landmarks + change[..., :P] * LANDMARK_STEP], dim=2)

    def _change_objects(self, relative: Tensor, held: Tensor, actions: Tensor) -> Tensor:
        """What the networks predict of landmarks and gripper, [B, K, P + G]."""
        stacked = actions.flatten(1)[:, None].expand(-1, relative.shape[1], -1)
        seen = torch.cat([relative, held, stacked], dim=2)
        return torch.stack([network(seen[:, k]) for k, network in enumerate(self.objects)], dim=1)
