"""The Gymnasium environments over a world model whose every answer is known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from counting import SPEC as COORDINATE
from counting import CountingState
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import ImaginedChunk
from worldloop.core.randomness import row_normal
from worldloop.core.success import Calibration, Calibrations
from worldloop.core.types import Observation
from worldloop.envs.world_model_env import WorldModelEnv, WorldModelVectorEnv

SPEC = replace(COORDINATE, robot=replace(COORDINATE.robot, proprio_names=("x", "seen")))


class _Counting:
    """Its position is the start's plus the sum of all actions and some noise; it has solved the task from 4 on."""

    spec = SPEC

    def start(self, context: Observation, noise_key: Tensor) -> CountingState:
        assert context.proprio is not None
        return CountingState(context.proprio[:, 0].clone(), noise_key, torch.zeros_like(noise_key))

    def imagine(self, state: CountingState, actions: Tensor) -> tuple[CountingState, ImaginedChunk]:
        assert actions.shape[1:] == (2, 1)
        noise = 0.01 * row_normal(state.noise_key, state.step, (1,))[:, 0]
        position = state.position + actions.sum((1, 2)) + noise
        frames = position.clamp(0, 255).to(torch.uint8)[:, None, None, None, None].expand(-1, 1, 2, 2, 3)
        logit = torch.where(position >= 4, 10.0, -10.0)[:, None]
        proprio = torch.stack([position, noise], dim=1)[:, None]
        state = CountingState(position, state.noise_key, state.step + 1)
        return state, ImaginedChunk({"cam": frames}, proprio, logit, 30 - 10 * position.abs()[:, None])


def _starts(positions: list[float]) -> Observation:
    B = len(positions)
    return Observation(
        frames={
            "cam": torch.arange(B, dtype=torch.uint8)[:, None, None, None, None].expand(B, 1, 2, 2, 3).contiguous()
        },
        proprio=torch.tensor([[x, 0.0] for x in positions]),
        task=("t",) * B,
        instruction=("i",) * B,
        env_step=torch.zeros(B, dtype=torch.long),
    )


STARTS = _starts([0.0, 0.5, 1.0, 1.5, 2.5])
PUSH = np.full((2, 1), 0.9, dtype=np.float32)  # 1.8 further with a frame
CALIBRATIONS = Calibrations({"t": Calibration(floor_db=0.0)})


def make_env(**options: Any) -> WorldModelEnv:
    return WorldModelEnv(_Counting(), STARTS, CALIBRATIONS, **options)  # type: ignore[arg-type]


def make_vector(num_envs: int, **options: Any) -> WorldModelVectorEnv:
    return WorldModelVectorEnv(_Counting(), STARTS, CALIBRATIONS, num_envs, **options)  # type: ignore[arg-type]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray) and a.dtype == object:
        return all((x is None and y is None) or _equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(np.array_equal(a, b))


def _compare_infos(own: dict[str, Any], other: dict[str, Any], where: str) -> None:
    """Equal where both speak; Gymnasium leaves zeros in rows that it does not speak of."""
    assert own.keys() == other.keys(), where
    for name, value in own.items():
        if name.startswith("_"):
            assert np.array_equal(value, other[name]), (where, name)
        elif name == "final_info":
            _compare_infos(value, other[name], where)
        elif name == "final_obs":
            assert _equal(value, other[name]), where
        else:
            mask = own[f"_{name}"]
            assert np.array_equal(value[mask], other[name][mask]), (where, name, value, other[name])


def test_gymnasium_accepts_it() -> None:
    check_env(make_env(render_mode="rgb_array"), skip_render_check=False)


def test_a_person_may_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame = pytest.importorskip("pygame")
    for env, push in (
        (make_env(render_mode="human"), PUSH),
        (make_vector(4, render_mode="human"), np.stack([PUSH] * 4)),
    ):
        env.reset(seed=0, options={"start": 2} if push is PUSH else {"start": [2] * 4})
        assert tuple(pygame.display.get_surface().get_at((5, 5)))[:3] == (2, 2, 2)
        env.step(push)
        assert env.render() is None
        assert tuple(pygame.display.get_surface().get_at((760, 760)))[:3] == (2, 2, 2)
        env.close()
        assert pygame.display.get_surface() is None


def test_an_episode_by_hand() -> None:
    env = make_env()
    observation, info = env.reset(seed=0, options={"start": 2})
    assert observation["proprio"].tolist() == [1.0, 0.0]
    assert info == {
        "success": False, "success_prob": 0.0, "expected_psnr_db": np.inf, "uncertain": False, "start": 2,
    }  # fmt: skip
    observation, reward, terminated, truncated, info = env.step(PUSH)
    assert observation["proprio"][0] == pytest.approx(2.8, abs=0.1)
    assert observation["image"].tolist() == [[[2] * 3] * 2] * 2
    assert (reward, terminated, truncated, info["success"], info["uncertain"]) == (0.0, False, False, False, False)
    observation, reward, terminated, truncated, info = env.step(PUSH)
    assert (reward, terminated, truncated, info["success"], info["uncertain"]) == (1.0, True, False, True, True)
    assert info["success_prob"] == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(WorldloopError, match="have ended"):
        env.step(PUSH)


def test_time_limit_truncates() -> None:
    env = make_env()
    env.reset(seed=0, options={"start": 0})
    ends = [env.step(np.zeros((2, 1), dtype=np.float32))[2:4] for _ in range(4)]
    assert ends == [(False, False)] * 3 + [(False, True)]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_is_as_gymnasium_makes_it_of_single_ones(mode: AutoresetMode) -> None:
    own = make_vector(5, autoreset_mode=mode)
    other = SyncVectorEnv([make_env] * 5, autoreset_mode=mode)
    assert own.single_observation_space == other.single_observation_space
    assert own.action_space == other.action_space
    ours, theirs = own.reset(seed=3), other.reset(seed=3)
    assert _equal(ours[0], theirs[0])
    _compare_infos(ours[1], theirs[1], "reset")
    rng, ended = np.random.default_rng(0), 0
    for t in range(40):
        actions = rng.uniform(-0.2, 1, (5, 2, 1)).astype(np.float32)
        ours_t, theirs_t = own.step(actions), other.step(actions)
        for a, b in zip(ours_t[:4], theirs_t[:4], strict=True):
            assert _equal(a, b), t
        _compare_infos(ours_t[4], theirs_t[4], f"step {t}")
        ended += int((ours_t[2] | ours_t[3]).sum())
    assert ended > 20


def test_disabled_autoreset_waits_for_its_mask() -> None:
    env = make_vector(3, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0, options={"start": [0, 2, 4]})
    full = np.stack([PUSH] * 3)
    _, _, terminated, _, _ = env.step(full)
    assert terminated.tolist() == [False, False, True]
    with pytest.raises(WorldloopError, match=r"rows \[2\] have ended"):
        env.step(full)
    before = env.save()
    observation, info = env.reset(options={"reset_mask": np.array([False, False, True]), "start": [1]})
    assert observation["proprio"][2].tolist() == [0.5, 0.0]
    assert np.array_equal(observation["proprio"][:2], before.rows.observation.proprio[:2].numpy())
    assert info["_start"].tolist() == [False, False, True]
    _, _, terminated, _, _ = env.step(full)
    assert terminated.tolist() == [False, True, False]


def test_seeds_are_per_row() -> None:
    env = make_vector(3)
    first, _ = env.reset(seed=[7, 8, 7])
    again, _ = env.reset(seed=[8, 7, 8])
    assert np.array_equal(first["proprio"][0], first["proprio"][2])
    assert np.array_equal(first["proprio"][[0, 1]], again["proprio"][[1, 0]])
    step = env.step(np.zeros((3, 2, 1), dtype=np.float32))[0]["proprio"]
    assert np.array_equal(step[0], step[2])
    assert step[0, 1] != step[1, 1], "rows with other seeds have other noise"


def test_save_restore_and_fork_continue_bit_equal() -> None:
    env, rng = make_env(), np.random.default_rng(0)
    env.reset(seed=1, options={"start": 0})
    env.step(np.zeros((2, 1), dtype=np.float32))
    saved = env.save()
    actions = rng.uniform(-1, 0.5, (3, 2, 1)).astype(np.float32)
    first = [env.step(a)[0]["proprio"] for a in actions]
    env.restore(saved)
    second = [env.step(a)[0]["proprio"] for a in actions]
    assert np.array_equal(first, second)
    env.restore(saved)
    forked = env.fork(2)
    both = [forked.step(np.stack([a, -a]))[0]["proprio"] for a in actions]
    assert np.array_equal([b[0] for b in both], first)
    assert not np.array_equal([b[1] for b in both], first)
    after = env.reset()[0]["proprio"]
    env.restore(saved)
    assert np.array_equal(env.reset()[0]["proprio"], after), "the next start is drawn alike"


def test_starts_from_a_given_image() -> None:
    env = make_env()
    image = np.full((2, 2, 3), 77, dtype=np.uint8)
    observation, info = env.reset(options={"image": image, "proprio": [3.5, 0.0]})
    assert np.array_equal(observation["image"], image)
    assert info["start"] == -1
    assert env.step(np.full((2, 1), 0.5, dtype=np.float32))[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image": np.zeros((4, 4, 3), dtype=np.uint8), "proprio": [0.0, 0.0]},
            r"of camera 'cam' is uint8 \(4, 4, 3\), expected uint8 \(2, 2, 3\)",
        ),
        ({"image": np.zeros((2, 2, 3), dtype=np.uint8)}, "0 proprio values; this world model was made for 2: x, seen"),
        ({"image": np.zeros((2, 2, 3)), "proprio": [0.0, 0.0]}, "is float64 .* expected uint8"),
        ({"image": np.zeros((2, 2, 3), dtype=np.uint8), "proprio": [[0.0, 0.0]]}, r"proprio.* shape \(1, 2\)"),
        ({"start": 9}, "0 to 4"),
        ({"start": 1.5}, "0 to 4"),
        ({"proprio": [0.0, 0.0]}, "go with"),
        ({"image": np.zeros((2, 2, 3), dtype=np.uint8), "proprio": [0.0, 0.0], "start": 1}, "two starts"),
        ({"strat": 1}, "'strat' is not known: image, instruction, proprio, start, task"),
        ({"start": 1, "task": "t"}, "two starts"),
        ({"task": "u"}, "'u' is not known to this world model: it imagines t"),
        ({"image": np.zeros((2, 2, 3), dtype=np.uint8), "proprio": [0.0, np.nan]}, "proprio that is not finite"),
    ],
)
def test_bad_starts_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(WorldloopError, match=message):
        make_env().reset(options=options)


@pytest.mark.parametrize(
    ("action", "message"),
    [(np.full((2, 1), 1.5), "'a' of row 0 is 1.5, allowed: -1.0 to 1.0"), (np.full((2, 1), np.nan), "nan"),
     (np.zeros(2), "shape")],
)  # fmt: skip
def test_bad_actions_are_named_and_harmless(action: np.ndarray, message: str) -> None:
    env = make_env()
    env.reset(seed=0, options={"start": 1})
    with pytest.raises(WorldloopError, match=message):
        env.step(action)
    assert env.step(np.zeros((2, 1), dtype=np.float32))[0]["proprio"][0] == pytest.approx(0.5, abs=0.1)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(WorldloopError, match="render_mode 'ansi'"):
        make_env(render_mode="ansi")
    with pytest.raises(WorldloopError, match="autoreset_mode 'Never' is not known: NextStep, SameStep"):
        make_vector(1, autoreset_mode="Never")
    with pytest.raises(ResetNeeded):
        make_vector(2).step(np.stack([PUSH] * 2))
    with pytest.raises(ResetNeeded):
        make_vector(2).reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(WorldloopError, match="start from"):
        WorldModelEnv(_Counting(), STARTS.rows([]), CALIBRATIONS)  # type: ignore[arg-type]
    other = replace(STARTS, frames={"cam": torch.zeros(5, 1, 8, 8, 3, dtype=torch.uint8)})
    with pytest.raises(WorldloopError, match="starts is 8 x 8 by camera 'cam'; this world model was made for 2 x 2"):
        WorldModelEnv(_Counting(), other, CALIBRATIONS)  # type: ignore[arg-type]
    with pytest.raises(WorldloopError, match="starts lacks camera 'cam': this world model reads cam"):
        WorldModelEnv(_Counting(), replace(STARTS, frames={"top": STARTS.frames["cam"]}), CALIBRATIONS)  # type: ignore[arg-type]
    with pytest.raises(WorldloopError, match="'image' is not known: observation, reset_mask, start, task"):
        make_vector(1).reset(options={"image": np.zeros((2, 2, 3), dtype=np.uint8)})
    with pytest.raises(WorldloopError, match="2 seeds for 3 rows"):
        make_vector(3).reset(seed=[1, 2])
    with pytest.raises(WorldloopError, match="reset_mask"):
        make_vector(3).reset(options={"reset_mask": [True]})
    vector = make_vector(2)
    vector.reset(seed=0)
    with pytest.raises(WorldloopError, match="2 rows, this environment 3"):
        make_vector(3).restore(vector.save())


def test_more_frames_must_agree_where_the_task_says_so() -> None:
    model = _Counting()
    model.spec = replace(SPEC, success_hold_frames=1, success_confirm_frames=1)  # type: ignore[misc]
    env = WorldModelEnv(model, STARTS, CALIBRATIONS)  # type: ignore[arg-type]
    env.reset(seed=0, options={"start": 4})
    assert [env.step(PUSH)[1:3] for _ in range(2)] == [(0.0, False), (1.0, True)]


def test_ppo_of_stable_baselines3_learns_in_it() -> None:
    from sb3_adapter import WorldModelVecEnv
    from stable_baselines3 import PPO
    from stable_baselines3.common.evaluation import evaluate_policy

    def make() -> WorldModelVecEnv:
        env = WorldModelVecEnv(make_vector(8, autoreset_mode=AutoresetMode.SAME_STEP), key="proprio")
        env.seed(0)
        return env

    model = PPO("MlpPolicy", make(), n_steps=32, batch_size=64, learning_rate=3e-3, seed=0, device="cpu")
    before, _ = evaluate_policy(model, make(), n_eval_episodes=80, warn=False)
    model.learn(6000)
    after, _ = evaluate_policy(model, make(), n_eval_episodes=80, warn=False)
    assert before < 0.6
    assert after > 0.9
