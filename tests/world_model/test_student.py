"""A student of fewer sampler steps: what it has to predict, by hand, and that it learns it."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from world_model_toy import TWO_CAMERAS, ToyEpisodes, make_model, tiny_config

from worldloop.world_model.cosmos import CosmosConfig
from worldloop.world_model.denoiser import DenoiserOutput, FrameMemory
from worldloop.world_model.model import VideoWorldModel
from worldloop.world_model.training import NoisyFrame, Target, TeacherTarget, compute_joint_loss

VELOCITY = CosmosConfig(
    patch=4, num_layers=2, num_heads=2, head_dim=16, adaln_lora_dim=8, condition_dim=16, prediction="velocity"
)


class Field(nn.Module):
    """A denoiser whose prediction of the data is ``scale * noisy + shift``."""

    frames_per_call, num_context_frames, feature_dim, ignores_noise = 1, 3, 32, False

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift_by = scale, shift
        self.asked: list[float] = []

    def remember(self, context: dict[str, torch.Tensor], instruction: torch.Tensor) -> FrameMemory:
        return FrameMemory(context)

    def forward(self, noisy: dict[str, torch.Tensor], t: torch.Tensor, *_: Any) -> DenoiserOutput:
        self.asked.append(float(t[0]))
        data = {camera: self.scale * latents + self.shift_by for camera, latents in noisy.items()}
        return DenoiserOutput(data, torch.zeros(len(t), 1, 1, 32))


def find_target(field: Field, teacher_steps: int, student_steps: int, step: int) -> float:
    """What a student is to predict at its ``step`` from noisy = 0.5."""
    teacher = make_model(tiny_config(num_sampler_steps=teacher_steps), TWO_CAMERAS)
    teacher.denoiser = field  # type: ignore[assignment]
    sizes = teacher.codec.sizes
    aim = TeacherTarget(teacher, student_steps).find(
        NoisyFrame(
            noisy={camera: torch.full((1, 3, *size), 0.5) for camera, size in sizes.items()},
            t=torch.tensor([step / student_steps]),
            # the real frame is not looked at
            data={camera: torch.full((1, 3, *size), 99.0) for camera, size in sizes.items()},
            context={camera: torch.zeros(1, 3, 3, *size) for camera, size in sizes.items()},
            low_dim=torch.zeros(1, teacher.spec.robot.proprio_dim),
            actions=torch.zeros(1, teacher.spec.actions_per_frame, teacher.spec.robot.action_dim),
            instruction=("go",),
        )
    )
    values = torch.cat([data.flatten() for data in aim.values()])
    assert len(values) == 3 * (16 * 16 + 8 * 12)
    assert values.std() < 1e-6
    return float(values.mean())


def test_a_straight_path_is_followed_in_one_step() -> None:
    field = Field(0.0, 0.8)
    assert find_target(field, teacher_steps=8, student_steps=1, step=0) == pytest.approx(0.8)
    assert field.asked == [i / 8 for i in range(8)]


def test_where_several_steps_end_by_hand() -> None:
    """data = 2 noisy. From 0.5 at t = 0 two steps of a quarter, dx = dt (2 x - x) / (1 - t):

    0.5 + 0.25 * 0.5 = 0.625, then 0.625 + 0.25 * 0.625 / 0.75 = 0.8333; one step of a half gets there with
    data = 0.5 + 0.3333 / 0.5 = 1.1667.
    """
    field = Field(2.0, 0.0)
    assert find_target(field, teacher_steps=4, student_steps=2, step=0) == pytest.approx(7 / 6, abs=1e-5)
    assert field.asked == [0.0, 0.25]


def test_the_last_step_ends_in_the_teachers_data() -> None:
    """From 0.5 at t = 1/2: 0.5 + 0.25 * 0.5 / 0.5 = 0.75, whose data is 1.5, and that is where the last step ends."""
    field = Field(2.0, 0.0)
    assert find_target(field, teacher_steps=4, student_steps=2, step=1) == pytest.approx(1.5, abs=1e-5)
    assert field.asked == [0.5, 0.75]


def test_times_of_a_student_are_those_of_its_steps() -> None:
    target = TeacherTarget(make_model(tiny_config(num_sampler_steps=8)), 4)
    times = target.sample_times(400, torch.Generator().manual_seed(0))
    assert set(times.tolist()) == {0.0, 0.25, 0.5, 0.75}


def sample_first_frame(model: VideoWorldModel, data: ToyEpisodes, num_steps: int) -> torch.Tensor:
    """Latents after one frame, of the same starts, actions and noise whatever the model."""
    model.eval().config = dataclasses.replace(model.config, num_sampler_steps=num_steps)
    state = model.start(data.first_observation(32), torch.arange(32))
    return model.imagine(state, data.actions[:32, 0])[0].context["base_camera"][:, -1]


def test_a_student_reaches_in_one_step_where_its_teacher_gets_in_four() -> None:
    data, generator = ToyEpisodes(64), torch.Generator().manual_seed(0)
    config = tiny_config(denoiser="cosmos", cosmos=VELOCITY, num_sampler_steps=4, zero_time_share=0.2)
    teacher = make_model(config)

    def train(model: VideoWorldModel, steps: int, target: Target | None = None) -> None:
        optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-3)
        for _ in range(steps):
            loss, _, _ = compute_joint_loss(model, data.load(data.sample(generator, 16), 1), generator, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    train(teacher, 50)
    student = make_model(dataclasses.replace(config, num_sampler_steps=1))
    student.load_state_dict(teacher.state_dict())
    wanted = sample_first_frame(teacher, data, 4)
    without = (sample_first_frame(teacher, data, 1) - wanted).square().mean()
    teacher.config = config
    train(student, 40, TeacherTarget(teacher.eval(), 1))
    with_student = (sample_first_frame(student, data, 1) - wanted).square().mean()
    assert with_student < 0.5 * without
