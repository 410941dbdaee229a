"""A world of one dot that moves by its actions and succeeds at the right edge: enough to test a world model on.

`TWO_CAMERAS` see it from the front and, in a small picture that is not square, from above, where x points down.
Task `LeftDot` differs in its instruction alone: to succeed at the left edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from reporters import RecordingReporter
from torch import Tensor

from worldloop.core.context_frames import NUM_CONTEXT_FRAMES
from worldloop.core.specs import CameraSpec, Landmark, RobotSpec, SimulatorSpec, TaskSpec
from worldloop.core.types import Clip, Normalisation, Observation
from worldloop.training.optimizer import Optimizer
from worldloop.training.resume import TrainingSetup
from worldloop.training.trainer import Trainer
from worldloop.world_model.config import WorldModelConfig
from worldloop.world_model.hybrid import HybridConfig
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.proprio_training import ProprioObjective, ReadingObjective
from worldloop.world_model.training import WorldModelObjective

SIZE, S_PER_FRAME, NUM_FRAMES = 16, 2, 5
BASE, ABOVE = CameraSpec("base_camera", SIZE, SIZE), CameraSpec("above.camera", 8, 12)
ONE_CAMERA, TWO_CAMERAS = (BASE,), (BASE, ABOVE)
INSTRUCTIONS = {"Dot": "move right", "LeftDot": "move left"}


def toy_spec(cameras: tuple[CameraSpec, ...] = ONE_CAMERA, tasks: tuple[str, ...] = ("Dot",)) -> SimulatorSpec:
    """Of `ToyEpisodes`: x and y are decimetres, and the dot is the object as well as the robot."""
    marks = Landmark("object", "sim_state", (0, 1)), Landmark("effector", "proprio", (0, 1), 0.1)
    return SimulatorSpec(
        robot=RobotSpec(
            name="dot",
            proprio_names=("x", "y"),
            action_names=("dx", "dy"),
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            control_mode="delta",
            hz=10.0,
            cameras=cameras,
        ),
        tasks=tuple(TaskSpec(task, (INSTRUCTIONS[task],), 0.1, S_PER_FRAME * NUM_FRAMES, marks) for task in tasks),
        actions_per_frame=S_PER_FRAME,
        simulator_version="1",
    )


def toy_normalisation() -> Normalisation:
    return Normalisation(torch.tensor([0.1, 0.0]), torch.tensor([0.5, 0.4]))


def tiny_config(**changes: object) -> WorldModelConfig:
    hybrid = HybridConfig(
        patch=2, width=16, patch_hidden=16, num_res_blocks=1, dim=32, num_heads=2, num_blocks=1, condition_dim=32
    )
    return WorldModelConfig(hybrid=hybrid, precision="fp32", ema_decay=0.9, **changes)  # type: ignore[arg-type]


def make_model(
    config: WorldModelConfig | None = None,
    cameras: tuple[CameraSpec, ...] = ONE_CAMERA,
    tasks: tuple[str, ...] = ("Dot",),
) -> VideoWorldModel:
    """With fresh weights, the same every time."""
    torch.manual_seed(0)
    return VideoWorldModel(config or tiny_config(), toy_spec(cameras, tasks), toy_normalisation())


def fit(
    model: VideoWorldModel, data: ToyEpisodes, num_steps: int, batch_size: int = 16, num_video_steps: int | None = None
) -> VideoWorldModel:
    """A miniature of the fitting stage, proprio first; returns the averaged model."""
    setup, reporter = TrainingSetup(), RecordingReporter()
    make_optimizer = partial(Optimizer, learning_rate=3e-3, num_steps=None, warmup_steps=0)
    proprio = ProprioObjective(model, data, setup.make_generators("proprio"), batch_size=batch_size, num_frames=3)
    Trainer(model, make_optimizer, setup, reporter, name="proprio").fit(proprio, num_steps)
    if model.landmarks is not None:
        reading = ReadingObjective(model, data, setup.make_generators("reading"), batch_size=batch_size)
        Trainer(model, make_optimizer, setup, reporter, name="reading").fit(reading, num_steps)
    video = WorldModelObjective(model, data, setup.make_generators("video"), setup.data_parallel, batch_size=batch_size)
    trainer = Trainer(model, make_optimizer, setup, reporter, name="video", ema_decay=model.config.ema_decay)
    return trainer.fit(video, num_steps if num_video_steps is None else num_video_steps)


class ToyEpisodes:
    """``num_episodes`` random walks of ``tasks`` in turn, seen by ``cameras``: a `ClipSource`.

    They go from left to right; with ``both_ways`` every other one goes from right to left.
    """

    def __init__(
        self,
        num_episodes: int,
        seed: int = 0,
        num_frames: int = NUM_FRAMES,
        cameras: tuple[CameraSpec, ...] = ONE_CAMERA,
        tasks: tuple[str, ...] = ("Dot",),
        both_ways: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.actions = torch.rand(num_episodes, num_frames, S_PER_FRAME, 2, generator=generator) * 2 - 1
        self.actions[..., 0] = (self.actions[..., 0] + 0.5).clamp(-1, 1)
        positions = [torch.rand(num_episodes, 2, generator=generator) - 0.7]
        if both_ways:
            self.actions[1::2, ..., 0] *= -1
            positions[0][1::2, 0] *= -1
        for f in range(num_frames):
            positions.append((positions[-1] + 0.2 * self.actions[:, f].sum(1)).clamp(-1, 1))
        self.proprio = torch.stack(positions, 1)
        self.frames = {camera.name: draw_dots(self.proprio, camera) for camera in cameras}
        self.task = tuple(tasks[i % len(tasks)] for i in range(num_episodes))
        side = torch.tensor([-1.0 if task == "LeftDot" else 1.0 for task in self.task])[:, None]
        self.success = (side * self.proprio[:, 1:, 0] > 0.5).float().cummax(1).values
        self.num_frame_steps = torch.full((num_episodes,), num_frames)

    def sample(self, generator: torch.Generator, batch_size: int) -> Tensor:
        episode = torch.randint(0, len(self.task), (batch_size,), generator=generator)
        return torch.stack([episode, (torch.rand(batch_size, generator=generator) * NUM_FRAMES).long()], 1)

    def load(
        self,
        index: Tensor,
        num_frames: int,
        num_context_frames: int = NUM_CONTEXT_FRAMES,
        cameras: Sequence[str] | None = None,
    ) -> Clip:
        assert num_context_frames == NUM_CONTEXT_FRAMES
        seen = {camera: images for camera, images in self.frames.items() if cameras is None or camera in cameras}
        e, f = index.T
        last = self.num_frame_steps[e]
        ahead = f[:, None] + 1 + torch.arange(num_frames)
        valid = ahead <= last[:, None]
        ahead = torch.minimum(ahead, last[:, None])
        rows = e[:, None]
        window = torch.stack([torch.zeros_like(f), (f - 1).clamp_min(0), f], 1)
        return Clip(
            context={camera: images[rows, window] for camera, images in seen.items()},
            context_proprio=self.proprio[e, f],
            context_landmarks=self.proprio[e, f] / 10,
            actions=self.actions[rows, ahead - 1],
            frames={camera: images[rows, ahead] for camera, images in seen.items()},
            proprio=self.proprio[rows, ahead],
            landmarks=self.proprio[rows, ahead] / 10,
            success=self.success[rows, ahead - 1],
            holds=self.success[rows, ahead - 1],
            valid=valid,
            task=tuple(self.task[i] for i in e.tolist()),
            instruction=tuple(INSTRUCTIONS[self.task[i]] for i in e.tolist()),
            index=index,
            is_on_policy=torch.zeros(len(e), dtype=torch.bool),
        )

    def first_observation(self, num_rows: int) -> Observation:
        return Observation(
            {camera: frames[:num_rows, :1] for camera, frames in self.frames.items()},
            self.proprio[:num_rows, 0],
            self.task[:num_rows],
            tuple(INSTRUCTIONS[task] for task in self.task[:num_rows]),
            torch.zeros(num_rows, dtype=torch.long),
        )


def draw_dots(positions: Tensor, camera: CameraSpec) -> Tensor:
    """u8 [..., h, w, 3] of dots at positions [..., 2] in [-1, 1], as ``camera`` sees them."""
    x, y = ((torch.arange(size) + 0.5) / size * 2 - 1 for size in (camera.width, camera.height))
    across, down = (0, 1) if camera == BASE else (1, 0)
    dx = x[None, :] - positions[..., across, None, None]
    dy = y[:, None] - positions[..., down, None, None]
    cover = ((0.3 - (dx**2 + dy**2).sqrt()) * camera.height / 2 + 0.5).clamp(0, 1)[..., None]
    dark, bright = torch.tensor([60.0, 50.0, 40.0]), torch.tensor([240.0, 200.0, 60.0])
    return (dark * (1 - cover) + bright * cover).round().to(torch.uint8)
