"""Experiment 024: is one frame in five environment steps too coarse to foresee contact?

    python experiments/024_coverage/steps.py measure TASK [key=value ...] [--seeds 0 1 2] [--strides 5 1]
    python experiments/024_coverage/steps.py report [key=value ...]     # result_steps.json

``measure`` needs what `run.py measure` has left: the candidate's replays, to test and to learn from. The simulator
repeats all episodes and tells the state after every environment step, which the dataset does not have. Two networks
that are told the cube's pose and velocity learn the next state, one five steps ahead and one a single step ahead. All
else is the same: both are unrolled over ten environment steps, and half of the windows are those in which the cube
moves. They predict the replays from their first states and actions alone.

TASK: push, pull. What was measured is not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from state_network import judge_gap  # noqa: E402
from trust_loops import configure, measure_or_report, open_beside, read_measured  # noqa: E402

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.randomness import make_generator  # noqa: E402
from worldloop.core.statistics import estimate_over_seeds  # noqa: E402
from worldloop.core.types import Episode, InitialStates  # noqa: E402
from worldloop.factory.build import build_simulator  # noqa: E402
from worldloop.networks.blocks import make_mlp  # noqa: E402
from worldloop.simulators.maniskill import TASKS as MANISKILL_TASKS  # noqa: E402
from worldloop.simulators.maniskill.family import ManiSkillTask  # noqa: E402
from worldloop.simulators.maniskill.robots import ROBOTS  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.training.optimizer import Optimizer  # noqa: E402

STRIDES = (5, 1)  # environment steps that a network goes ahead at once
DATA = ("v001", "replays_1080")
UNROLLED_STEPS = 10  # environment steps over which both are trained
NUM_UPDATES, BATCH_SIZE, LEARNING_RATE = 4000, 256, 2e-3
MOVED = 0.05  # decimetres that the cube moves in a window: it was touched
HORIZON_STEPS = 40  # of the test, eight chunks
CONTACT_GAIN = 3.0  # the network sees the way from hand to cube in units of a third of a decimetre


@dataclass(frozen=True)
class Steps:
    """n episodes padded to T steps.

    ``proprio`` [n, T + 1, S]; ``cube`` [n, T + 1, 13]: position in decimetres, quaternion, velocities; ``actions``
    [n, T, A]; ``length`` [n]; ``state`` [n, D] of the simulator at the beginning.
    """

    proprio: Tensor
    cube: Tensor
    actions: Tensor
    length: Tensor
    state: Tensor


def measure(task: str, seed: int, overrides: list[str], strides: Sequence[int], data: Sequence[str]) -> None:
    """Write steps.json into TASK-seedN-coverage beside the loop."""
    context, _ = open_beside(configure(task, seed, overrides), "coverage", f"{task} {seed} steps")
    out = context.models.run_dir / "steps.json"
    measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    scene = MANISKILL_TASKS[context.spec.task_ids[0]]
    episodes = load_episodes("test", context)
    truth = np.array([episode.is_success for episode in episodes])
    start = np.unique([episode.meta.initial_state_id for episode in episodes], return_inverse=True)[1]
    for version in data:
        for stride in (int(s) for s in strides):
            name = f"{version}, {stride}"
            if name in measured:
                continue
            known, test = (repeat(v, context, scene) for v in (version, "test"))
            network = fit(known, stride, make_generator(context.seed, "steps", name))
            score, errors = predict(network, test, scene)
            measured[name] = judge_gap(score, truth, start, scene) | errors
            print(task, seed, name, json.dumps(measured[name]), flush=True)
            write_file(out, to_json(measured), out.name)


def load_episodes(version: str, context: StageContext) -> list[Episode]:
    """All episodes of the replays, the training episodes of a dataset to learn from."""
    cache = context.open_cache(version)
    chosen = np.arange(len(cache)) if version == "test" else cache.select(split="train")
    return [cache.episode(int(e)) for e in chosen]


def repeat(version: str, context: StageContext, scene: ManiSkillTask) -> Steps:
    """The episodes of ``version`` with every environment step, simulated again; kept in the folder."""
    kept = context.models.run_dir / "steps" / f"{version}.npz"
    if not kept.exists():
        settings = context.simulation.config
        fine = replace(
            settings.maniskill,  # type: ignore[attr-defined]
            actions_per_frame=1,
            success_hold_frames=0,
            success_confirm_frames=0,
            max_episode_steps=10**6,
        )
        simulator: Any = build_simulator(replace(settings, maniskill=fine))  # type: ignore[call-arg]
        blank = {camera: torch.zeros(1, 1, 1, 3, dtype=torch.uint8) for camera in simulator.spec.robot.camera_names}
        simulator._render = lambda: blank  # pictures are three quarters of the time, and nobody looks at them
        rows = [repeat_episode(episode, simulator) for episode in load_episodes(version, context)]
        simulator.close()
        lengths = [len(actions) for _, _, actions in rows]
        longest = max(lengths)
        proprio, states, actions = (
            np.stack([np.pad(row[i], ((0, longest + (i < 2) - len(row[i])), (0, 0)), mode="edge") for row in rows])
            for i in range(3)
        )
        kept.parent.mkdir(exist_ok=True)
        np.savez(kept, proprio=proprio, states=states, actions=actions, lengths=lengths)
    stored = {name: torch.from_numpy(values) for name, values in np.load(kept).items()}
    cube = stored["states"][..., scene.object_xyz.start : scene.object_xyz.start + 13].float()
    cube = torch.cat([cube[..., :3] * 10, cube[..., 3:7], cube[..., 7:10], cube[..., 10:] / 10], dim=-1)
    first = stored["states"][:, 0]
    return Steps(stored["proprio"].float(), cube, stored["actions"].float(), stored["lengths"], first)


def repeat_episode(episode: Episode, simulator: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """proprio [T + 1, S], simulator states [T + 1, D] and actions [T, A]."""
    actions = torch.from_numpy(episode.actions.reshape(-1, episode.actions.shape[-1]))
    begin = InitialStates("train", ("again",), (episode.meta.task,), torch.from_numpy(episode.sim_state[:1]))
    observation = simulator.reset(begin)
    proprio, states = [observation.proprio], [observation.sim_state]
    for chunk in actions.split(episode.meta.actions_per_frame):
        step = simulator.step_chunk(chunk[None])
        proprio.append(step.proprio[0])
        states.append(step.sim_states[0])
    return torch.cat(proprio).numpy(), torch.cat(states).numpy(), actions.numpy()


class StepNetwork(nn.Module):
    """The change of normalised proprio [B, S] and cube [B, 13] under ``stride`` actions [B, stride, A]."""

    def __init__(self, known: Steps, stride: int) -> None:
        super().__init__()
        self.stride = stride
        inside = torch.arange(known.proprio.shape[1]) <= known.length[:, None]
        proprio, cube = known.proprio[inside], known.cube[inside]
        self.mean, self.std = proprio.mean(0), proprio.std(0).clamp_min(1e-3)
        normal = self.normalise(proprio)
        self.proprio_range, self.cube_range = (normal.amin(0), normal.amax(0)), (cube.amin(0), cube.amax(0))
        self.hand = ROBOTS["panda"].tcp_in_proprio
        dim, action_dim = proprio.shape[1], stride * known.actions.shape[2]
        self.linear = nn.Linear(dim + action_dim, dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.mlp = make_mlp(dim + action_dim + 13 + 3, 512, dim + 13, gain=4.0)

    def normalise(self, proprio: Tensor) -> Tensor:
        return (proprio - self.mean) / self.std

    def read_hand(self, proprio: Tensor) -> Tensor:
        """Its position in decimetres."""
        return 10 * (proprio * self.std + self.mean)[..., self.hand]

    def forward(self, proprio: Tensor, cube: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        way = CONTACT_GAIN * (cube[:, :3] - self.read_hand(proprio))
        acted = torch.cat([proprio, actions.flatten(1)], dim=1)
        change = self.mlp(torch.cat([acted, cube, way], dim=1)).float() * self.stride / UNROLLED_STEPS
        moved = (proprio + self.linear(acted) + change[:, :-13]).clamp(*self.proprio_range)
        cube = (cube + change[:, -13:]).clamp(*self.cube_range)
        turned = functional.normalize(cube[:, 3:7], dim=1)
        return moved, torch.cat([cube[:, :3], turned, cube[:, 7:]], dim=1)


def fit(known: Steps, stride: int, generator: torch.Generator) -> StepNetwork:
    """Huber losses at every state that is predicted within a window, weighted so that strides count alike."""
    torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    network = StepNetwork(known, stride)
    proprio = network.normalise(known.proprio)
    windows = torch.tensor(
        [
            (episode, first)
            for episode, length in enumerate(known.length.tolist())
            for first in range(0, length - UNROLLED_STEPS + 1, stride)
        ]
    )
    episode, first = windows.T
    way = known.cube[episode, first + UNROLLED_STEPS, :3] - known.cube[episode, first, :3]
    moves = way.norm(dim=1) > MOVED
    weight = torch.where(moves, 1 / moves.sum(), 1 / (~moves).sum())
    optimizer = Optimizer(network.parameters(), learning_rate=LEARNING_RATE, num_steps=NUM_UPDATES)
    for _ in range(NUM_UPDATES):
        episode, first = windows[torch.multinomial(weight, BATCH_SIZE, replacement=True, generator=generator)].T
        now, cube = proprio[episode, first], known.cube[episode, first]
        loss = torch.zeros(())
        for ahead in range(0, UNROLLED_STEPS, stride):
            steps = first[:, None] + ahead + torch.arange(stride)
            now, cube = network(now, cube, known.actions[episode[:, None], steps])
            true, place = proprio[episode, first + ahead + stride], known.cube[episode, first + ahead + stride]
            for predicted, wanted, scale in ((now, true, 3.0), (cube[:, :7], place[:, :7], 9.0)):
                loss = loss + functional.huber_loss(scale * predicted, scale * wanted, delta=0.3)
            loss = loss + functional.huber_loss(cube[:, 7:], place[:, 7:], delta=0.3)
        optimizer.backward(loss * stride / UNROLLED_STEPS)
        optimizer.step()
    return network


@torch.no_grad()
def predict(network: StepNetwork, test: Steps, scene: ManiSkillTask) -> tuple[np.ndarray, dict[str, Any]]:
    """Minus the cube's least distance to the goal's centre by chunk f [n], and errors in mm after each chunk."""
    now, cube, state = network.normalise(test.proprio[:, 0]), test.cube[:, 0], test.state.clone()
    actions = test.actions[:, :HORIZON_STEPS]
    actions = torch.cat([actions, actions[:, -1:].expand(-1, HORIZON_STEPS - actions.shape[1], -1)], dim=1)
    gaps, hand_mm, cube_mm = [], [], []
    for first in range(0, HORIZON_STEPS, network.stride):
        end = first + network.stride
        now, cube = network(now, cube, actions[:, first:end])
        if end % max(STRIDES):
            continue
        state[:, scene.object_xyz] = cube[:, :3].to(state) / 10
        gaps.append(scene.measure_gap(state).norm(dim=1))
        runs = test.length >= end
        true = network.normalise(test.proprio[runs, end])
        hand_mm.append(100 * (network.read_hand(now[runs]) - network.read_hand(true)).norm(dim=1).mean())
        cube_mm.append(100 * (cube[runs, :3] - test.cube[runs, end, :3]).norm(dim=1).mean())
    errors = {"hand_error_mm": hand_mm, "cube_error_mm": cube_mm}
    score = -torch.stack(gaps, 1).amin(1).double().numpy()
    return score, {name: [round(float(value), 1) for value in values] for name, values in errors.items()}


def report(overrides: list[str]) -> None:
    """Write result_steps.json from the loops that have been measured."""
    tasks: dict[str, Any] = {}
    for task, seeds in read_measured(overrides, "coverage", "steps.json").items():
        arms: dict[str, Any] = {}
        for name in dict.fromkeys(name for m in seeds.values() for name in m):
            found = [m[name] for m in seeds.values() if name in m]
            for figure in ("within_group_auc", "auc", "true_negative_rate"):
                values = [v["value"] if isinstance(v := entry[figure], dict) else v for entry in found]
                arms.setdefault(name, {})[figure] = estimate_over_seeds(values).to_dict() | {"by_seed": values}
            print(task, name, {figure: entry["by_seed"] for figure, entry in arms[name].items()})
        tasks[task] = {"arms": arms, "seeds": seeds}
    write_file(HERE / "result_steps.json", to_json({"tasks": tasks}), "result_steps.json")


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, strides=[str(s) for s in STRIDES], data=list(DATA))
