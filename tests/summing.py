"""A world model of known answers for games beside the toy simulator, which plays the truth."""

from dataclasses import replace

import torch
from counting import CountingState
from torch import Tensor

from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.specs import SimulatorSpec
from worldloop.core.success import Calibration, Calibrations
from worldloop.core.types import Observation
from worldloop.play.session import PlaySession
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

CONFIG = ToyConfig(image_size=16, actions_per_frame=2, num_envs=1, max_episode_steps=10**6, success_hold_frames=10**6)
SEVERAL = replace(
    CONFIG, tasks=("ToyPush-v1", "ToyReach-v1"), cameras=("base_camera", "hand_camera"), image_sizes={"hand_camera": 12}
)
CALIBRATION = Calibration(scale=1.0, bias=0.0, threshold=0.5, psnr_bias_db=2.0, floor_db=10.0)
CALIBRATIONS = Calibrations({"ToyPush-v1": CALIBRATION, "ToyReach-v1": replace(CALIBRATION, threshold=0.7, bias=1.0)})


class Summing:
    """Its state is the sum of all first actions so far; its success logit is that sum.

    The first camera shows 100 plus ten times the sum, each further one 20 more than the one before.
    """

    def __init__(self, spec: SimulatorSpec) -> None:
        self.spec = spec

    def start(self, context: Observation, noise_key: Tensor) -> CountingState:
        assert tuple(context.frames) == self.spec.robot.camera_names
        return CountingState(torch.zeros(len(context)), noise_key, torch.zeros_like(noise_key))

    def restore(self, tensors: dict[str, Tensor]) -> CountingState:
        return CountingState(**tensors)

    def imagine(self, state: CountingState, actions: Tensor) -> tuple[CountingState, ImaginedChunk]:
        assert actions.shape[1:] == (2, 2)
        position = state.position + actions[:, :, 0].sum(1)
        frames = {}
        for number, camera in enumerate(self.spec.robot.cameras):
            grey = (100 + 20 * number + 10 * position).to(torch.uint8)[:, None, None, None, None]
            frames[camera.name] = grey.expand(-1, 1, camera.height, camera.width, 3)
        moved = replace(state, position=position, step=state.step + 1)
        return moved, ImaginedChunk(frames, torch.zeros(1, 1, 4), position[:, None], 12 - position[:, None])

    def make_starts(self, tasks: list[str]) -> Observation:
        """One for each of ``tasks``; picture i is of grey i."""
        n = len(tasks)
        grey = torch.arange(n, dtype=torch.uint8)[:, None, None, None, None]
        return Observation(
            frames={c.name: grey.expand(n, 1, c.height, c.width, 3).contiguous() for c in self.spec.robot.cameras},
            proprio=torch.zeros(n, 4),
            task=tuple(tasks),
            instruction=tuple(self.spec.task(task).instruction for task in tasks),
            env_step=torch.zeros(n, dtype=torch.long),
        )


def make_session(config: ToyConfig = CONFIG, with_simulator: bool = True) -> PlaySession:
    """A game beside the toy of ``config``, or from three observations where there is no simulator."""
    world_model = Summing(ToySimulator.make_spec(config))
    starts = world_model.make_starts([config.tasks[i % len(config.tasks)] for i in range(3)])
    simulator = ToySimulator(config) if with_simulator else None
    return PlaySession(world_model, CALIBRATIONS, starts, simulator)  # type: ignore[arg-type]
