"""A scene turned by half a turn about the vertical: under a two-finger gripper, contacts are then the same.

Contacts are rare in the data, and each counts twice this way (experiment 030).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Normalisation
from worldloop.world_model.landmarks import LandmarkReader


class HalfTurnedScene(nn.Module):
    """What `ProprioHead.move_objects` reads and predicts, as it is after `SimulatorSpec.half_turn`.

    Proprio is normalised with ``normalisation``; ``gripper`` are the dimensions of it that the head reads.
    """

    relative_signs: Tensor
    action_signs: Tensor
    change_signs: Tensor
    gripper_scale: Tensor
    gripper_offset: Tensor

    def __init__(
        self, spec: SimulatorSpec, reader: LandmarkReader, gripper: Sequence[int], normalisation: Normalisation
    ) -> None:
        super().__init__()
        names, turn = spec.robot.proprio_names, spec.half_turn
        partners = dict(turn.swapped_proprio) | {b: a for a, b in turn.swapped_proprio}
        at = {name: i for i, name in enumerate(names[j] for j in gripper)}
        self.partner = [at[partners.get(name, name)] for name in at]
        own = list(gripper)
        other = [own[i] for i in self.partner]
        mean, std = normalisation.proprio_mean.float(), normalisation.proprio_std.float()
        actions = [-1.0 if name in turn.reversed_actions else 1.0 for name in spec.robot.action_names]
        self.register_buffer("action_signs", torch.tensor(actions))
        self.register_buffer("relative_signs", reader.turn_relative())
        self.register_buffer("change_signs", reader.turn_landmarks())
        self.register_buffer("gripper_scale", std[other] / std[own])
        self.register_buffer("gripper_offset", (mean[other] - mean[own]) / std[own])

    def forward(self, relative: Tensor, held: Tensor, actions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The turned ``relative`` [..., R], gripper ``held`` [..., G] and ``actions`` [..., A]; its own inverse."""
        swapped = held[..., self.partner] * self.gripper_scale + self.gripper_offset
        return relative * self.relative_signs, swapped, actions * self.action_signs

    def turn_change(self, change: Tensor) -> Tensor:
        """The turned ``change`` [..., P + G] of landmarks and gripper; its own inverse."""
        landmarks, gripper = change.split([len(self.change_signs), len(self.partner)], dim=-1)
        return torch.cat([landmarks * self.change_signs, gripper[..., self.partner] * self.gripper_scale], dim=-1)
