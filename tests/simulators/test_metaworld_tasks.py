"""Meta-World's tasks and settings, where metaworld need not be installed."""

import numpy as np
import pytest

from worldloop.simulators.metaworld import TASKS
from worldloop.simulators.metaworld.simulator import MetaWorldConfig, MetaWorldSimulator
from worldloop.simulators.metaworld.tasks import GOAL, MT10, OBJECT, MetaWorldTask


def observe(object_m: tuple[float, ...], goal_m: tuple[float, ...]) -> np.ndarray:
    observed = np.zeros(39)
    observed[OBJECT], observed[GOAL] = object_m, goal_m
    return observed


def test_there_are_fifty_tasks_with_paraphrases_of_their_own() -> None:
    assert len(TASKS) == 50
    assert [len(task.phrases) for task in MT10] == [3] * 10
    instructions = [instruction for task in TASKS.values() for instruction in task.instructions]
    assert len(instructions) == len(set(instructions)) == 150


def test_a_single_phrase_becomes_three_sentences() -> None:
    assert TASKS["button-press-wall-v3"].instructions == (
        "press the button behind the wall from the front",
        "use the robot arm to press the button behind the wall from the front",
        "button press wall: press the button behind the wall from the front",
    )


@pytest.mark.parametrize(
    ("gap", "expected"), [("reported", 0.15), ("object", 0.45), ("object_x", 0.25), ("unknown", np.nan)]
)
def test_the_distance_is_what_is_left_to_the_radius(gap, expected) -> None:
    task = MetaWorldTask("a-v3", ("do it",), 0.05, gap)
    distance = task.measure_distance_m(observe((0.3, 0.4, 0.1), (0.0, 0.0, 0.1)), 0.2)
    assert distance == pytest.approx(expected, nan_ok=True)


def test_inside_the_radius_the_distance_is_0() -> None:
    assert TASKS["push-v3"].measure_distance_m(np.zeros(39), 0.04) == 0.0


def test_the_spec_needs_no_package() -> None:
    config = MetaWorldConfig(tasks=("push-v3", "hammer-v3"), cameras=("close", "gripperPOV"), image_sizes={"close": 96})
    spec = MetaWorldSimulator.make_spec(config)
    assert spec.task_ids == ("push-v3", "hammer-v3")
    assert [(camera.name, camera.height) for camera in spec.robot.cameras] == [("close", 96), ("gripperPOV", 64)]
    assert spec.task("push-v3").success_radius_m == 0.05
    assert spec.task("hammer-v3").success_radius_m == 0
    assert spec.landmark_names == ("object", "goal", "effector")
    assert (spec.robot.proprio_dim, spec.robot.action_dim, spec.robot.hz) == (22, 4, 80.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ("push-v2",)}, "simulator.metaworld.tasks 'push-v2' is not one of reach-v3"),
        ({"tasks": ()}, "simulator.metaworld.tasks must name one or more"),
        ({"cameras": ("behindGripper",)}, "simulator.metaworld.cameras 'behindGripper' is not one of close, corner"),
        ({"image_sizes": {"corner": 32}}, "only close is in simulator.metaworld.cameras"),
        ({"variation": "size"}, "simulator.metaworld.variation 'size' is not one of background"),
        ({"actions_per_frame": 0}, "simulator.metaworld.actions_per_frame must be at least 1"),
        ({"supersampling": 0}, "simulator.metaworld.supersampling must be at least 1"),
        ({"success_confirm_frames": 2}, "simulator.metaworld.success_confirm_frames is 2"),
    ],
)
def test_a_bad_setting_is_named(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        MetaWorldConfig(**settings)
