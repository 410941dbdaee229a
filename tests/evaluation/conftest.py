"""Whole toy episodes, imagined perfectly, and what a perfect probe sees in them."""

from collections.abc import Callable

import pytest
import torch

from worldloop.core.randomness import make_row_keys
from worldloop.core.specs import SimulatorSpec
from worldloop.core.types import InitialStates, Normalisation
from worldloop.evaluation.open_loop import Branches
from worldloop.evaluation.visual_state import Seen, locate_landmarks
from worldloop.rollout.rollout import rollout_to_episodes, run_rollout
from worldloop.sans.clips import ClipDataset
from worldloop.sans.store import SansStore
from worldloop.simulators.toy.simulator import ToyConfig, ToySimulator

PLURAL = ToyConfig(
    tasks=("ToyPush-v1", "ToyReach-v1"),
    cameras=("base_camera", "hand_camera"),
    image_size=32,
    image_sizes={"hand_camera": 24},
)


@pytest.fixture
def spec() -> SimulatorSpec:
    return ToySimulator.make_spec(ToyConfig(image_size=32))


@pytest.fixture
def plural() -> ToyConfig:
    return PLURAL


@pytest.fixture
def plural_clips(tmp_path) -> ClipDataset:
    """Eight held-out episodes of `PLURAL`: of each task two states, an expert's episode and a failure from each."""
    simulator = ToySimulator(PLURAL)
    drawn = [simulator.draw_initial_states(task, "validation", 2, seed=0) for task in PLURAL.tasks]
    states = InitialStates.cat(drawn).select([0, 0, 1, 1, 2, 2, 3, 3])
    variants = ("expert", "stops_short") * 4
    policy = simulator.make_scripted_policy(states.tasks, variants, make_row_keys(8, "plural_clips"), 4)
    rollout = run_rollout(policy, simulator, states, None, initial_state_id=states.ids)
    episodes = rollout_to_episodes(
        rollout, simulator.spec, sources=("expert", "perturbed") * 4, variants=variants, splits=("validation",) * 8,
        iteration=0,
    )  # fmt: skip
    store = SansStore(tmp_path / "sans")
    unit = Normalisation(torch.zeros(simulator.spec.robot.proprio_dim), torch.ones(simulator.spec.robot.proprio_dim))
    version = store.snapshot("v0", [store.append(episodes, "a", simulator.spec)], normalisation=unit)
    return ClipDataset(store.open_cache(version), "validation", simulator.spec.robot.camera_names)


@pytest.fixture
def truth(toy_clips) -> Branches:
    """Nine episodes from three states; the logit is 3 from the success on, else -3."""
    episodes = toy_clips.episode_index()
    clip = toy_clips.load(
        torch.stack([episodes, torch.zeros_like(episodes)], dim=1), int(toy_clips.cache.num_steps.max())
    )
    return Branches(clip.frames, clip.proprio, torch.where(clip.success > 0.5, 3.0, -3.0), clip)


@pytest.fixture
def see_truth(truth, toy_clips, spec) -> Callable[..., Seen]:
    """The simulated positions, wrong by ``offset_m`` along x, and outcomes by ``logit`` (else the truth's)."""

    def see(offset_m: float = 0.0, logit: torch.Tensor | None = None) -> Seen:
        answer_m = locate_landmarks(truth, toy_clips, spec)
        answer_m[..., 0] += offset_m
        return Seen(answer_m, truth.logit if logit is None else logit)

    return see
