"""Experiment 009: when does an imagined rollout lose the scene? A thousand frames of reach, push, return.

    python experiments/009_long_horizon/run.py record RUN OUT            # RUN: with SANS version v001 of PushCube-v1
    python experiments/009_long_horizon/run.py fit OUT [key=value ...]   # result.json, horizon.png

``record`` adds episodes of a script that pushes the cube forward and pulls it back, again and again, to the run's own:
40 of 100 frames to train on, and ``LONG`` of 1,000 frames, held out. ``fit`` trains one world model on everything but
those and imagines them from their first frame alone with their recorded actions. World-VLA-Loop (arXiv:2602.06508,
limitations) reports drift after some 200 frames.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldloop.config.loading import load_config
from worldloop.core.randomness import make_generator
from worldloop.core.types import ActionChunk, ChunkStep, InitialStates, Observation, Split
from worldloop.evaluation.fidelity import measure_fidelity
from worldloop.evaluation.open_loop import imagine_episodes
from worldloop.evaluation.visual_state import fit_probe, locate_landmarks, measure_state_errors, see
from worldloop.rollout.rollout import rollout_to_episodes, run_rollout
from worldloop.sans.store import SansStore
from worldloop.simulators.maniskill import TASKS
from worldloop.simulators.maniskill.family import ACTION_LIMIT
from worldloop.simulators.maniskill.robots import ROBOTS
from worldloop.simulators.maniskill.simulator import ManiSkillSimulator
from worldloop.stages import check_world_model
from worldloop.storage.run_state import LoopState

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import CONFIGS, open_context, run_stage  # noqa: E402

TASK = "PushCube-v1"
FRAMES, LONG, TRAINING = 1000, 4, 40
ROBOT, CUBE_XYZ = ROBOTS["panda"], TASKS[TASK].object_xyz
NUM_JOINTS = len(ROBOT.joints)
BIN = 20  # frames that a point of the curves averages
OVERRIDES = [
    "runtime=inline",
    "resources.num_threads=1",
    "fit_world_model.num_steps=2000",
    "check_world_model.probe_steps=1000",
    "simulator.maniskill.max_episode_steps=5000",
    "simulator.maniskill.success_hold_frames=1000",
]


class ReachPushReturn:
    """Behind the cube, down, push forward, up, home; before the cube, down, push back, up, home; and again.

    Each push goes from where the cube lies to a point on the line on which it began, and a phase ends only where the
    arm is seen to have arrived: a thousand frames of small slips would carry the cube off the table.
    """

    version = "reach-push-return"
    FORWARD_X, BACK_X = 0.01, -0.06  # where the cube is pushed to and back: always within the arm's reach
    BESIDE_M, LOW_M, HIGH_M = 0.075, 0.02, 0.11
    TOUCH_M = 0.032  # from the cube's centre to the tcp while pushing
    ARRIVED_M, MAX_CHUNKS = 0.015, 4  # a blocked arm goes on after so many chunks

    def __init__(self) -> None:
        self.phase, self.chunks, self.line_y = 0, 0, 0.0
        self.cube, self.aim, self.target, self.home = torch.zeros(2), torch.zeros(2), torch.zeros(3), torch.zeros(3)

    def act(self, observation: Observation, noise_key: Tensor | None = None) -> ActionChunk:
        """One row; five actions at once, planned from the simulator's state."""
        assert observation.sim_state is not None
        assert observation.proprio is not None
        tcp, cube = observation.proprio[0, ROBOT.tcp_in_proprio].clone(), observation.sim_state[0, CUBE_XYZ][:2]
        if observation.env_step[0] == 0:
            self.line_y, self.home = float(cube[1].clamp(-0.1, 0.1)), tcp.clone()
        target = self._target(tcp, cube)
        actions = []
        for _ in range(5):
            delta = ((target - tcp) / ROBOT.step_m * 0.7).clamp(-ACTION_LIMIT, ACTION_LIMIT)
            tcp = tcp + ROBOT.step_m * delta
            actions.append(torch.cat([delta, torch.tensor([-1.0])]))
        return ActionChunk(torch.stack(actions)[None], policy_version=self.version)

    def _target(self, tcp: Tensor, cube: Tensor) -> Tensor:
        if self.chunks and ((self.target - tcp).norm() < self.ARRIVED_M or self.chunks >= self.MAX_CHUNKS):
            self.phase, self.chunks = (self.phase + 1) % 10, 0
        self.chunks += 1
        part = self.phase % 5
        if part in (0, 1):  # before it is touched
            self.cube = cube.clone()
            self.aim = torch.tensor([self.FORWARD_X if self.phase < 5 else self.BACK_X, self.line_y])
        way = self.aim - self.cube
        way = way / way.norm().clamp_min(1e-3)
        beside, end = self.cube - way * self.BESIDE_M, self.aim - way * self.TOUCH_M
        self.target = (
            torch.tensor([*beside, self.HIGH_M]),
            torch.tensor([*beside, self.LOW_M]),
            torch.tensor([*end, self.LOW_M]),
            torch.tensor([*tcp[:2], self.HIGH_M]),
            self.home,
        )[part]
        return self.target


class HomingSimulator(ManiSkillSimulator):
    """Whenever a chunk ends near where the arm began, its joints are set to those that it began with.

    The controller has no target for the hand's orientation: without this it tilted by 60 degrees within 250 frames. The
    correction moves the hand by less than ``NEAR_M``.
    """

    NEAR_M = 0.02

    def reset(self, initial_states: InitialStates | Observation, rows: Tensor | None = None) -> Observation:
        observation = super().reset(initial_states, rows)
        assert observation.proprio is not None
        self._home = observation.proprio[0]
        return observation

    def step_chunk(self, actions: Tensor) -> ChunkStep:
        step = super().step_chunk(actions)
        assert step.proprio is not None
        tcp = step.proprio[0, -1, ROBOT.tcp_in_proprio]
        if (tcp - self._home[ROBOT.tcp_in_proprio]).norm() < self.NEAR_M:
            agent = self._env.agent
            agent.robot.set_qpos(self._home[None, :NUM_JOINTS])
            agent.robot.set_qvel(torch.zeros(1, NUM_JOINTS))
            agent.controller.reset()
        return step


def record(run: Path, out: Path) -> None:
    """``out/sans`` with version ``long``: the run's v001 and the script's episodes."""
    shutil.copytree(run / "sans", out / "sans")
    config = load_config(CONFIGS / "pushcube_cpu.yaml", OVERRIDES)
    simulator = HomingSimulator(config.simulator.chosen_section())
    store = SansStore(out / "sans")
    states = simulator.draw_initial_states(TASK, "train", 3 * (TRAINING + LONG), seed=9)
    near = (states.states[:, CUBE_XYZ][:, 0] + 0.04).abs() < 0.05
    states = states.select(near.nonzero()[: TRAINING + LONG, 0])
    shards = []
    parts: list[tuple[Split, int, int, int]] = [("train", 0, TRAINING, 100), ("validation", TRAINING, LONG, FRAMES)]
    for split, first, count, frames in parts:
        episodes = []
        for i in range(first, first + count):
            began = time.time()
            chosen = states.select([i])
            rollout = run_rollout(
                ReachPushReturn(), simulator, chosen, None, initial_state_id=chosen.ids, max_chunks=frames
            )
            episodes += rollout_to_episodes(
                rollout, simulator.spec, sources=("perturbed",), variants=("reach_push_return",), splits=(split,),
                iteration=9,
            )  # fmt: skip
            xy = torch.cat([s.sim_states[0] for s in rollout.steps if s.sim_states is not None])[:, CUBE_XYZ][:, :2]
            low, high = ([round(v, 2) for v in bound.tolist()] for bound in (xy.amin(0), xy.amax(0)))
            print(f"{split} {i}: {time.time() - began:.0f} s, cube from {low} to {high} m", flush=True)
        shards.append(store.append(episodes, f"009-{split}", simulator.spec))
    store.snapshot("long", shards, parent=store.version("v001"))


def fit(out: Path, overrides: list[str]) -> None:
    changes = [*OVERRIDES, *overrides]
    context = open_context(load_config(CONFIGS / "pushcube_cpu.yaml", changes), out, "long horizon")
    state = LoopState(iteration=1, dataset="long", world_model="checkpoints/iteration_001/world_model")
    if not context.models.has(state.world_model):
        state = run_stage("fit_world_model", LoopState(iteration=1, dataset="long"), context)
    world_model = context.models.load_world_model(state.world_model).for_imagination()
    settings, spec = context.config_of(check_world_model.Config), world_model.spec
    probe = fit_probe(
        context.open_clips("long", "train", spec),
        spec,
        num_steps=settings.probe_steps,
        batch_size=settings.probe_batch_size,
        generator=make_generator(context.seed, state.iteration, "check_world_model/probe"),
        device=context.device,
        reporter=context.reporter,
    ).network
    dataset = context.open_clips("long", "validation", spec)
    episodes = dataset.episode_index(variant="reach_push_return")
    branches = imagine_episodes(world_model, dataset, episodes, batch_size=LONG, seed=context.seed).branches
    imagined, simulated = (see(probe, branches, frames) for frames in (branches.frames, branches.truth.frames))
    true_m = locate_landmarks(branches, dataset, spec)
    errors = measure_state_errors(branches, imagined, simulated, true_m, spec.task(TASK).landmarks)
    metrics = {k: metric for name, error in errors.items() for k, metric in error.name_metrics(name).items()}
    fidelity = measure_fidelity(branches).metrics
    metrics |= {name: fidelity[name] for name in ("psnr_db", "psnr_db_first_frame")}
    by_frame = {name: metric.values for name, metric in metrics.items()}
    curves = {name: curve(values) for name, values in by_frame.items()}
    assert branches.expected_psnr_db is not None
    result: dict[str, Any] = {
        "schema_version": 1,
        "overrides": changes,
        "num_episodes": len(episodes),
        "bin_frames": BIN,
        "lost_after_frames": {
            "object 5 cm off": first_above(by_frame["object_error_cm"], 5.0),
            "effector 5 cm off, by proprio": first_above(by_frame["effector_error_cm_proprio"], 5.0),
            "no better than the first frame": first_above(by_frame["psnr_db_first_frame"] - by_frame["psnr_db"], 0.0),
        },
        "curves": curves | {"expected_psnr_db": curve(branches.expected_psnr_db)},
    }
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["lost_after_frames"], indent=1))
    plot(result["curves"])


def curve(values: Tensor) -> list[float]:
    """Mean over episodes and `BIN` frames."""
    frames = values.shape[1] // BIN * BIN
    return [round(v, 3) for v in values[:, :frames].float().nanmean(0).reshape(-1, BIN).nanmean(1).tolist()]


def first_above(values: Tensor, limit: float) -> list[int]:
    """Per episode the first frame from which the running mean over `BIN` frames exceeds ``limit``."""
    smooth = values.float().unfold(1, BIN, 1).nanmean(2)
    return [int(np.argmax(row)) if (row := (r > limit).numpy()).any() else values.shape[1] for r in smooth]


def plot(curves: dict[str, list[float]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4))
    x = (np.arange(len(curves["psnr_db"])) + 0.5) * BIN
    for name in ("psnr_db", "psnr_db_first_frame", "expected_psnr_db"):
        left.plot(x, curves[name], label=name.replace("_", " "))
    for name in ("object_error_cm", "object_error_cm_floor", "effector_error_cm_proprio"):
        right.plot(x, curves[name], label=name.replace("_", " "))
    right.set_yscale("log")
    for axes in (left, right):
        axes.axvline(200, color="k", linestyle=":", linewidth=0.8)
        axes.set_xlabel("imagined frames")
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(HERE / "horizon.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("record")
    command.add_argument("run", type=Path)
    command.add_argument("out", type=Path)
    command = commands.add_parser("fit")
    command.add_argument("out", type=Path)
    command.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_args()
    record(given.run, given.out) if given.command == "record" else fit(given.out, given.overrides)


if __name__ == "__main__":
    main()
