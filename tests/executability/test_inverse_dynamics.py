"""Inverse dynamics: windows, units, gradients, and a fit on toy episodes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hand_specs import make_spec
from reporters import RecordingReporter
from torch import Tensor

from worldloop.core.types import Normalisation
from worldloop.executability.inverse_dynamics import InverseDynamics, InverseDynamicsConfig, Motion
from worldloop.executability.training import fit_inverse_dynamics
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

SMALL = InverseDynamicsConfig(width=8, num_layers=1, num_keypoints=4, hidden_dim=16)


def make_model(config: InverseDynamicsConfig = SMALL, **changes: Any) -> InverseDynamics:
    """Of a robot with two cameras, five proprio and four action dimensions, and two actions a frame."""
    spec = replace(make_spec(), actions_per_frame=2)
    torch.manual_seed(0)
    return InverseDynamics(config, spec, Normalisation(torch.full((5,), 3.0), torch.full((5,), 2.0)))


def make_video(num_frames: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "base": torch.rand(2, num_frames, 3, 8, 8, generator=generator) * 2 - 1,
        "wrist": torch.rand(2, num_frames, 3, 6, 10, generator=generator) * 2 - 1,
    }


@pytest.mark.parametrize("num_frames", [2, 3])
def test_a_motion_has_proprio_at_every_frame_and_actions_between(num_frames: int) -> None:
    model = make_model(replace(SMALL, num_frames=num_frames))
    motion = model.infer(make_video(4))
    assert motion.proprio.shape == (2, 4, 5)
    assert motion.actions.shape == (2, 3, 2, 4)


@pytest.mark.parametrize(("num_frames", "seen"), [(2, {1, 2}), (3, {0, 1, 2})])
def test_the_actions_of_a_step_depend_on_the_frames_of_its_window_alone(num_frames: int, seen: set[int]) -> None:
    """Those between frames 1 and 2 of five."""
    model = make_model(replace(SMALL, num_frames=num_frames))
    video = make_video(5)
    before = model.infer(video).actions[:, 1]
    for frame in range(5):
        changed = {camera: frames.clone() for camera, frames in video.items()}
        changed["wrist"][:, frame] = -changed["wrist"][:, frame]
        differs = not torch.equal(before, model.infer(changed).actions[:, 1])
        assert differs == (frame in seen)


def test_before_the_first_frame_the_robot_stands_still() -> None:
    model, video = make_model(), make_video(2)
    longer = {camera: torch.cat([frames[:, :1], frames], dim=1) for camera, frames in video.items()}
    torch.testing.assert_close(model.infer(video).actions[:, 0], model.infer(longer).actions[:, 1])


def test_outputs_are_in_the_units_of_the_data() -> None:
    """A network whose outputs are 0 and then .5: proprio is mean + std * 0 and * .5, actions are 2 and 3 of 0 to 4."""
    model = make_model()
    model.action_low.fill_(0.0)
    model.action_high.fill_(4.0)
    last: Any = model.mlp[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.zero_()
    still = model.infer(make_video(2))
    torch.testing.assert_close(still.proprio, torch.full((2, 2, 5), 3.0))
    torch.testing.assert_close(still.actions, torch.full((2, 1, 2, 4), 2.0))
    with torch.no_grad():
        last.bias.fill_(0.5 / last.gain)
    moved = model.infer(make_video(2))
    torch.testing.assert_close(moved.proprio, torch.full((2, 2, 5), 4.0))
    torch.testing.assert_close(moved.actions, torch.full((2, 1, 2, 4), 3.0))


def test_gradients_reach_the_pixels() -> None:
    model = make_model()
    video = {camera: frames.requires_grad_() for camera, frames in make_video(3).items()}
    model.infer(video).actions.square().sum().backward()
    assert all(frames.grad is not None and frames.grad.abs().sum() > 0 for frames in video.values())


def test_one_frame_shows_no_motion() -> None:
    with pytest.raises(ValueError, match="two or more frames, got 1"):
        make_model().infer(make_video(1))


def test_the_judge_is_another_network() -> None:
    judge = InverseDynamicsConfig().for_judging()
    assert (judge.num_frames, judge.only_keypoints) == (2, False)
    assert judge.for_judging() == replace(InverseDynamicsConfig(), num_frames=2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_frames": 4}, "num_frames"), ({"width": 0}, "width"), ({"num_keypoints": 0}, "num_keypoints")],
)
def test_bad_settings_are_named(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=rf"inverse_dynamics\.{message}"):
        InverseDynamicsConfig(**changes)  # type: ignore[arg-type]


def test_a_fit_reads_the_motion_of_toy_episodes(toy_clips: Any) -> None:
    """On the clips that it learned from: half of the actions' variance, and more of the positions'; and bit-equal."""
    spec = ToySimulator.make_spec(ToyConfig(image_size=32))
    index = toy_clips.candidates
    clip = toy_clips.load(index, 1)
    normalisation = Normalisation(clip.proprio[:, 0].mean(0), clip.proprio[:, 0].std(0) + 1e-6)

    def fit(num_steps: int) -> Motion:
        torch.manual_seed(0)
        model = InverseDynamics(replace(SMALL, num_keypoints=8, width=16, hidden_dim=64), spec, normalisation)
        model = fit_inverse_dynamics(
            model, toy_clips, index, num_steps=num_steps, batch_size=32, learning_rate=5e-3,
            generator=torch.Generator().manual_seed(0), reporter=RecordingReporter(),
        )  # fmt: skip
        seen = {c: torch.cat([clip.context[c][:, -2:], clip.frames[c]], dim=1) for c in clip.context}
        return model.infer_frames(seen)

    motion = fit(150)
    assert torch.equal(fit(10).actions, fit(10).actions)
    real = clip.actions[:, 0]
    assert (motion.actions[:, 1] - real).square().mean() < 0.5 * (real - real.mean(0)).square().mean()
    position, seen = clip.proprio[:, 0, :2], motion.proprio[:, 2, :2]
    assert (seen - position).square().mean() < 0.2 * (position - position.mean(0)).square().mean()
