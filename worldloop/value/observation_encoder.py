"""What all critics of an observation share: the encoder below their heads, and how they are fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from worldloop.core import images
from worldloop.core.interfaces import Metrics, Reporter
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import Observation
from worldloop.networks.augment import augment_frames
from worldloop.networks.frame_pair import FramePairEncoder
from worldloop.networks.instruction import InstructionEncoder
from worldloop.networks.views import ViewModules
from worldloop.training.trainer import BatchObjective, fit_small

# ``load(rows int64 [B])`` returns the observations of these rows and one label for each, f32 [B].
LoadRows = Callable[[Tensor], tuple[Observation, Tensor]]
# ``loss(output, labels)``: the scalar loss of a critic's output [B, ...], given the labels f32 [B].
Loss = Callable[[Tensor, Tensor], Tensor]

LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.05
# A network easily memorises a few hundred episodes. Trained on 265 episodes of one run (PushCube-v1), AUC over 95
# held-out ones was .60 with every cell's features and no shift, .77 with shifts, .84 with only keypoints and shifts.
DROPOUT = 0.3
SHIFT_PX, BRIGHTNESS = 2, 0.05
INSTRUCTION_DIM = 16


class ObservationEncoder(nn.Module):
    """``forward(observation)`` -> features f32 [B, ``dim``], with dropout in training mode.

    It reads the first frame and the frame now of each camera in ``spec``, proprio if there is any, and the share of the
    task's time limit that has passed. With several tasks in ``spec`` it also reads the instruction, since tasks may
    look alike.

    ``backgrounds``: camera name -> mean frame f32 [3, h, w]. ``proprio`` f32 [n, S]: a sample that gives mean and
    scale, or ``None``. `forward` raises ``ValueError`` if only the observation lacks proprio.
    """

    proprio_mean: Tensor
    proprio_std: Tensor

    def __init__(self, spec: SimulatorSpec, backgrounds: Mapping[str, Tensor], proprio: Tensor | None) -> None:
        super().__init__()
        self.spec = spec
        if proprio is None:
            proprio = torch.zeros(2, 0)
        self.register_buffer("proprio_mean", proprio.float().mean(0))
        self.register_buffer("proprio_std", proprio.float().std(0).clamp_min(1e-4))
        self.encoders = ViewModules(
            {
                camera.name: FramePairEncoder(
                    3, (camera.height, camera.width), backgrounds[camera.name], only_keypoints=True
                )
                for camera in spec.robot.cameras
            }
        )
        self.dim = sum(encoder.dim for _, encoder in self.encoders.items()) + proprio.shape[1] + 1
        self.instruction: InstructionEncoder | None = None
        if len(spec.tasks) > 1:
            self.instruction = InstructionEncoder(INSTRUCTION_DIM)
            self.dim += INSTRUCTION_DIM
        self.dropout = nn.Dropout(DROPOUT)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and where `forward` needs its observation."""
        return self.proprio_mean.device

    def forward(self, observation: Observation) -> Tensor:
        frames = observation.with_cameras(self.spec.robot.camera_names).frames
        parts = []
        for camera, encoder in self.encoders.items():
            first, now = (images.to_network(frames[camera][:, i]) for i in (0, -1))
            with torch.autocast(first.device.type, dtype=torch.bfloat16):
                parts.append(encoder(first, now))
        limits = torch.tensor([self.spec.task(task).max_episode_steps for task in observation.task])
        parts.append((observation.env_step / limits.to(observation.env_step))[:, None].to(parts[0]))
        if len(self.proprio_mean):
            if observation.proprio is None:
                raise ValueError("this critic was fitted with proprio, and the observation has none")
            parts.append((observation.proprio.to(parts[0]) - self.proprio_mean) / self.proprio_std)
        if self.instruction is not None:
            parts.append(self.instruction(observation.instruction).to(parts[0]))
        return self.dropout(torch.cat(parts, dim=1))


class ObservationObjective(BatchObjective[tuple[Observation, Tensor]]):
    """``loss`` of a critic's output and the labels, on randomly shifted and brightened frames.

    ``critic(observation)`` gives the output. ``load``, ``num_rows``, ``spec``, ``device``: see `fit_on_observations`.
    """

    def __init__(
        self,
        critic: nn.Module,
        loss: Loss,
        load: LoadRows,
        num_rows: int,
        spec: SimulatorSpec,
        *,
        batch_size: int,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        super().__init__({0: generator})
        self.critic, self.loss, self.load, self.num_rows = critic, loss, load, num_rows
        self.camera_names, self.batch_size, self.device = spec.robot.camera_names, batch_size, device

    def draw(self, generator: torch.Generator) -> tuple[Observation, Tensor]:
        observation, labels = self.load(torch.randint(self.num_rows, (self.batch_size,), generator=generator))
        observation = observation.with_cameras(self.camera_names)
        frames = augment_frames(observation.frames, SHIFT_PX, BRIGHTNESS, generator)
        return replace(observation, frames=frames), labels

    def count(self, batch: tuple[Observation, Tensor]) -> Tensor:
        return torch.tensor(self.batch_size)

    def compute_loss(self, batch: tuple[Observation, Tensor], number: int) -> tuple[Tensor, Metrics]:
        observation, labels = batch
        loss = self.loss(self.critic(observation.to(self.device)), labels.to(self.device))
        return loss, {"loss": float(loss.detach())}


def fit_on_observations[CriticT: nn.Module](
    make_critic: Callable[[SimulatorSpec, Mapping[str, Tensor], Tensor | None], CriticT],
    loss: Loss,
    load: LoadRows,
    num_rows: int,
    spec: SimulatorSpec,
    *,
    num_steps: int,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device,
    reporter: Reporter,
) -> CriticT:
    """Fit a critic for the cameras and tasks of ``spec``; returns it in eval mode, on ``device``.

    ``make_critic(spec, backgrounds, proprio)`` makes it from the arguments of `ObservationEncoder`. ``load`` is asked
    for rows in 0..num_rows - 1. All random numbers come from ``generator``.
    """
    sample, _ = load(torch.randint(num_rows, (min(num_rows, 1024),), generator=generator))
    frames = sample.with_cameras(spec.robot.camera_names).frames
    backgrounds = {camera: images.to_network(seen[:, -1]).mean(0) for camera, seen in frames.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        critic = make_critic(spec, backgrounds, sample.proprio).to(device)
        return fit_small(
            critic,
            ObservationObjective(
                critic, loss, load, num_rows, spec, batch_size=batch_size, generator=generator, device=device
            ),
            reporter,
            num_steps=num_steps,
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            unit="critic step",
        )
