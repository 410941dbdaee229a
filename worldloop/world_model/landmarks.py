"""Where the objects are: positions that the world model carries on beside proprio, and reads from the first frame.

Imagined pictures alone lose a small object within a few frames: on PushCube-v1 a pixel is 5.6 mm wide, and contact
decides. So the proprio head predicts the landmarks of the simulator's state as well, and the denoiser draws from both.
In training their true positions are known. A rollout starts from pictures, and `LandmarkReader` reads them there; so
neither imagination nor a policy is told the simulator's state.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional

from worldloop.core.specs import Landmark
from worldloop.networks.blocks import make_mlp
from worldloop.networks.frame_stack import FrameStackEncoder
from worldloop.networks.instruction import mean_token
from worldloop.networks.views import ViewModules

UNIT_M = 0.1  # networks see positions in decimetres from the middle of the data
WAY_UNIT_M = 0.033  # and the way from the robot's landmarks to the objects in finer units: contact is decided there
LANDMARK_WEIGHT = 9.0  # of their squared errors in decimetres, beside those of proprio in standard deviations
LANDMARK_DELTA_M = 0.01  # from there on an error counts linearly
READ_NOISE_M = 0.002  # std of the noise on each true coordinate in training; readings at a start are 3 mm off
NUM_KEYPOINTS = 32  # for each camera; with features of every cell as well readings were 4.4 mm off, not 3.0


class LandmarkReader(nn.Module):
    """Reads P coordinates from frames: ``forward`` -> f32 [B, P] in `UNIT_M` from ``centre``.

    ``sizes`` is camera -> (h, w) of the latents that it reads, ``marks`` are the landmarks of one task; those of
    ``sim_state`` are read. Two tasks may look alike, so the instruction is read, too.
    """

    centre: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        channels: int,
        sizes: Mapping[str, tuple[int, int]],
        proprio_dim: int,
        text_dim: int,
        marks: Sequence[Landmark],
        hidden_dim: int = 256,
    ) -> None:
        super().__init__()
        objects, self.robot = ([m for m in marks if m.source == source] for source in ("sim_state", "proprio"))
        self.text_dim = text_dim
        self.object_sizes = [len(mark.columns) for mark in objects]
        self.num_coordinates = sum(self.object_sizes)
        widths = [len(mark.columns) for mark in (*objects, *self.robot)]
        alike = [pair for pair in combinations(range(len(widths)), 2) if widths[pair[0]] == widths[pair[1]]]
        self.pairs = [(a, b) for a, b in alike if a < len(objects)]
        self.ways = [(a, b) for a, b in self.pairs if b >= len(objects)]
        self.num_way_coordinates = sum(widths[a] for a, _ in self.ways)
        self.upright = [i for i, width in enumerate(widths) if width == 3]
        self.num_relative = self.num_way_coordinates + len(self.upright) + sum(len(own.columns) for own in self.robot)
        self.num_gaps = self.num_coordinates + sum(widths[a] + 1 for a, _ in self.pairs)
        self.encoders = ViewModules(
            {
                camera: FrameStackEncoder(channels, size, only_keypoints=True, num_keypoints=NUM_KEYPOINTS)
                for camera, size in sizes.items()
            }
        )
        seen = sum(encoder.dim for _, encoder in self.encoders.items())
        self.mlp = make_mlp(seen + proprio_dim + text_dim, hidden_dim, self.num_coordinates, num_hidden=2)
        self.register_buffer("centre", torch.zeros(self.num_coordinates))
        self.register_buffer("low", torch.full((self.num_coordinates,), -torch.inf))
        self.register_buffer("high", torch.full((self.num_coordinates,), torch.inf))

    def forward(
        self, first: Mapping[str, Tensor], now: Mapping[str, Tensor], proprio: Tensor, instruction: Tensor
    ) -> Tensor:
        """From the episode's ``first`` frame and the one ``now``, camera -> [B, C, h, w].

        ``proprio`` [B, S] is normalised, ``instruction`` [B, E] embedded.
        """
        seen = [encoder(first[camera], now[camera]) for camera, encoder in self.encoders.items()]
        known = [part.to(seen[0]) for part in (proprio, mean_token(instruction, self.text_dim))]
        return self.mlp(torch.cat([*seen, *known], dim=1)).float()

    def scale(self, position_m: Tensor) -> Tensor:
        """[..., P] in metres to `UNIT_M` from ``centre``."""
        return (position_m.to(self.centre) - self.centre) / UNIT_M

    def unscale(self, landmarks: Tensor) -> Tensor:
        """Inverse of `scale`."""
        return landmarks * UNIT_M + self.centre

    def find_ways(self, landmarks: Tensor, proprio: Tensor) -> Tensor:
        """From the robot to the objects in `WAY_UNIT_M`, [..., W].

        ``landmarks`` [..., P] are scaled, ``proprio`` [..., S] is in units of the data.
        """
        position_m = self._locate(landmarks, proprio)
        return torch.cat([landmarks[..., :0], *(self._subtract(position_m, *pair) for pair in self.ways)], dim=-1)

    def find_relative(self, landmarks: Tensor, proprio: Tensor, next_proprio: Tensor) -> Tensor:
        """What decides how objects move next: `find_ways`, heights, and how the robot's landmarks move, [..., R].

        Heights are in `WAY_UNIT_M`, moves in `UNIT_M`. ``next_proprio`` [..., S] is the proprio one frame later.
        """
        now, later = self._locate(landmarks, proprio), self._locate(landmarks, next_proprio)
        heights = [now[i][..., 2:] / WAY_UNIT_M for i in self.upright]
        first_own = len(self.object_sizes)
        moves = [(b - a) / UNIT_M for a, b in zip(now[first_own:], later[first_own:], strict=True)]
        return torch.cat([self.find_ways(landmarks, proprio), *heights, *moves], dim=-1)

    def turn_relative(self) -> Tensor:
        """f32 [R]: the signs that `find_relative` gets when everything is turned by half a turn about the vertical."""
        widths = [*self.object_sizes, *(len(own.columns) for own in self.robot)]
        ways = [_turn(widths[a]) for a, _ in self.ways]
        return torch.cat([*ways, torch.ones(len(self.upright)), *(_turn(len(own.columns)) for own in self.robot)])

    def turn_landmarks(self) -> Tensor:
        """f32 [P]: likewise of the objects' positions, about the middle of the turn."""
        return torch.cat([_turn(size) for size in self.object_sizes])

    def find_robot(self, proprio: Tensor) -> Tensor:
        """The positions of the robot's landmarks in `UNIT_M`, [..., Q], from ``proprio`` [..., S] in its own units."""
        positions = [proprio[..., list(own.columns)] * own.metres_per_unit / UNIT_M for own in self.robot]
        return torch.cat([proprio[..., :0], *positions], dim=-1)

    def find_gaps(self, landmarks: Tensor, proprio: Tensor) -> Tensor:
        """The objects' positions, and from each landmark to each object the way and its length in `WAY_UNIT_M`.

        [..., G], from what `find_ways` takes.
        """
        position_m = self._locate(landmarks, proprio)
        ways = [self._subtract(position_m, *pair) for pair in self.pairs]
        lengths = [way.norm(dim=-1, keepdim=True) for way in ways]
        return torch.cat([landmarks, *ways, *lengths], dim=-1)

    def _locate(self, landmarks: Tensor, proprio: Tensor) -> list[Tensor]:
        """The positions of all landmarks in metres, the robot's last."""
        objects = self.unscale(landmarks).split(self.object_sizes, dim=-1)
        return [*objects, *(proprio[..., list(own.columns)] * own.metres_per_unit for own in self.robot)]

    def _subtract(self, position_m: Sequence[Tensor], a: int, b: int) -> Tensor:
        return (position_m[a] - position_m[b]) / WAY_UNIT_M

    def set_range(self, low_m: Tensor, high_m: Tensor) -> None:
        """Keep imagined positions where real ones were, f32 [P] each. The first range also sets ``centre``."""
        if torch.isinf(self.low).all():
            self.centre.copy_((low_m + high_m) / 2)
        self.low.copy_(self.scale(low_m))
        self.high.copy_(self.scale(high_m))


def _turn(width: int) -> Tensor:
    """The signs [width] of x, y and perhaps z after half a turn."""
    return torch.tensor([-1.0, -1.0, 1.0][:width])


def compute_landmark_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Huber loss [...] of scaled positions [..., P]: a mean over coordinates."""
    delta = LANDMARK_DELTA_M / UNIT_M
    return LANDMARK_WEIGHT * functional.huber_loss(predicted, target, delta=delta, reduction="none").mean(-1)
