"""The policy sees one part imagined and the rest as it is."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from worldloop.core.interfaces import ImaginedChunk, WorldState
from worldloop.core.types import ActionChunk, Observation
from worldloop.rollout.swap import PROPRIO, PartlyImagined
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

CAMERAS = ("base_camera", "hand_camera")


def observe(value: int) -> Observation:
    """Two rows at a time whose frames and proprio are all ``value``; the episode's first frame is 0."""
    context = torch.tensor([0, max(value - 1, 0), value], dtype=torch.uint8)[None, :, None, None, None]
    frames = {camera: context.expand(2, 3, 16, 16, 3).clone() for camera in CAMERAS}
    return Observation(
        frames=frames,
        proprio=torch.full((2, 2), float(value)),
        task=("ToyPush-v1",) * 2,
        instruction=("push",) * 2,
        env_step=torch.full((2,), value),
    )


@dataclass(frozen=True)
class Watching:
    """An `Actor` that remembers what it has seen."""

    seen: list[Observation]
    version: str = "watching"

    def act(self, observation: Observation, noise_key: Tensor | None) -> ActionChunk:
        self.seen.append(observation)
        return ActionChunk(torch.full((2, 4, 2), 0.5), policy_version=self.version)


class Dreaming:
    """Imagines two frames per chunk: all pixels 101 and 102, then 103 and 104; proprio is as large."""

    spec = ToySimulator.make_spec(ToyConfig(image_size=16, cameras=CAMERAS))

    def start(self, context: Observation, noise_key: Tensor) -> WorldState:
        assert int(context.env_step[0]) == 0
        return WorldState(noise_key, torch.zeros(2, dtype=torch.long))

    def imagine(self, state: WorldState, actions: Tensor) -> tuple[WorldState, ImaginedChunk]:
        assert torch.equal(actions, torch.full((2, 4, 2), 0.5))
        values = 101.0 + state.step[:, None] + torch.arange(2)
        frames = {camera: values[..., None, None, None].expand(2, 2, 16, 16, 3).to(torch.uint8) for camera in CAMERAS}
        imagined = ImaginedChunk(frames, values[..., None].expand(2, 2, 2), torch.zeros(2, 2))
        return replace(state, step=state.step + 2), imagined


def watch(*parts: str) -> list[Observation]:
    """What the policy sees at times 0, 10 and 20."""
    seen: list[Observation] = []
    actor = PartlyImagined(Watching(seen), Dreaming(), parts)  # type: ignore[arg-type]
    for value in (0, 10, 20):
        actor.act(observe(value), None)
    return seen


def pixels(observation: Observation, camera: str) -> list[int]:
    return observation.frames[camera][0, :, 0, 0, 0].tolist()


def test_one_camera_is_imagined_from_the_first_frame_on_and_the_rest_is_real() -> None:
    seen = watch("hand_camera")
    assert [pixels(o, "hand_camera") for o in seen] == [[0, 0, 0], [0, 101, 102], [0, 103, 104]]
    assert [pixels(o, "base_camera") for o in seen] == [[0, 0, 0], [0, 9, 10], [0, 19, 20]]
    assert [float(o.proprio[0, 0]) for o in seen if o.proprio is not None] == [0, 10, 20]
    assert [int(o.env_step[0]) for o in seen] == [0, 10, 20]


def test_imagined_proprio_is_that_of_the_last_frame() -> None:
    seen = watch(PROPRIO)
    assert [float(o.proprio[0, 0]) for o in seen if o.proprio is not None] == [0, 102, 104]
    assert [pixels(o, "base_camera") for o in seen] == [[0, 0, 0], [0, 9, 10], [0, 19, 20]]


def test_without_parts_everything_is_real() -> None:
    assert [pixels(o, "hand_camera") for o in watch()] == [[0, 0, 0], [0, 9, 10], [0, 19, 20]]


def test_a_part_that_is_not_imagined_is_refused() -> None:
    with pytest.raises(ValueError, match="'lid_camera' is not imagined, allowed: base_camera, hand_camera, proprio"):
        watch("lid_camera")
