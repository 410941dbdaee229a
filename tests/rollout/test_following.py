"""Following a video: which frames the actions are read from, and that the toy follows a success."""

from typing import Any

import torch
from torch import Tensor

from worldloop.core.types import Normalisation, Observation
from worldloop.executability.inverse_dynamics import InverseDynamics, InverseDynamicsConfig, Motion
from worldloop.rollout.following import Video, VideoFollower
from worldloop.rollout.rollout import run_rollout
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

CONFIG = ToyConfig(image_size=32)


def make_model() -> InverseDynamics:
    unit = Normalisation(torch.zeros(4), torch.ones(4))
    return InverseDynamics(InverseDynamicsConfig(width=8), ToySimulator.make_spec(CONFIG), unit)


def paint(*levels: int) -> Tensor:
    """u8 [1, n, 32, 32, 3]: frames of one grey level each."""
    return torch.tensor(levels, dtype=torch.uint8)[None, :, None, None, None].expand(1, -1, 32, 32, 3).contiguous()


class SeesLevels(InverseDynamics):
    """Notes the grey levels of the video that it reads; acts by twice the bound."""

    seen: list[list[int]]

    def infer(self, video: Any) -> Any:
        frames = video["base_camera"]
        self.seen.append(((frames[0, :, 0, 0, 0] + 1) * 127.5).round().int().tolist())
        motion = super().infer(video)
        return type(motion)(motion.proprio, torch.full_like(motion.actions, 2.0))


def test_a_window_begins_with_what_is_real_and_ends_in_the_video() -> None:
    """Two frames a chunk of four actions: (before, now) of the camera, then the video's next two; then its last one."""
    model = make_model()
    model.__class__ = SeesLevels
    model.seen = []  # type: ignore[attr-defined]
    follower = VideoFollower(model, {"base_camera": paint(100, 110, 120, 130)}, chunk_length=4)

    def observe(*levels: int) -> Observation:
        return Observation({"base_camera": paint(*levels)}, None, ("t",), ("i",), torch.zeros(1, dtype=torch.long))

    chunk = follower.act(observe(1, 1, 1), None)
    follower.act(observe(1, 2, 3), None)
    assert model.seen == [[1, 1, 110, 120], [2, 3, 130, 130]]  # type: ignore[attr-defined]
    assert chunk.actions.shape == (1, 4, 2)
    assert bool((chunk.actions == 1).all()), "within bounds"


def test_videos_are_cut_by_rows() -> None:
    frames = torch.cat([paint(1, 2), paint(3, 4)])
    cut = Video({"base_camera": frames}, "checkpoint").rows([1])
    assert torch.equal(cut.frames["base_camera"], paint(3, 4))
    assert cut.inverse_dynamics == "checkpoint"


class ReadsPositions(InverseDynamics):
    """A perfect reader of the toy: the agent is the white disc; it moves by .2 per full action."""

    def infer(self, video: Any) -> Any:
        frames = (video["base_camera"] + 1) / 2
        white = frames.amin(2).clamp_min(0.5) - 0.5
        size = frames.shape[-1]
        at = (torch.arange(size) + 0.5) / size * 2 - 1
        mass = white.sum((2, 3)).clamp_min(1e-6)
        across, down = (white.sum(2) * at).sum(2) / mass, (white.sum(3) * at).sum(2) / mass
        place = torch.stack([across, down], dim=-1)
        per_step = (place[:, 1:] - place[:, :-1]) / 0.2 / 2
        return Motion(place, per_step[:, :, None].expand(-1, -1, 2, -1))


def test_the_toy_follows_the_video_of_a_success(toy_clips: Any) -> None:
    simulator = ToySimulator(CONFIG)
    number = next(n for n in range(9) if toy_clips.cache.episode(n).is_success)
    start = toy_clips.observation(torch.tensor([[number, 0]]))
    model = make_model()
    model.__class__ = ReadsPositions
    episode = toy_clips.cache.episode(number)
    frames = {"base_camera": torch.from_numpy(episode.frames["base_camera"])[None]}
    follower = VideoFollower(model, frames, chunk_length=4)
    rollout = run_rollout(follower, simulator, start, None, initial_state_id=("x",))
    assert any(bool((step.success & step.valid).any()) for step in rollout.steps)
