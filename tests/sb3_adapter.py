"""stable-baselines3's own VecEnv over a world model's vector environment: native batching stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import VecEnv

from worldloop.envs.world_model_env import WorldModelVectorEnv


class WorldModelVecEnv(VecEnv):
    """Gymnasium's same-step autoreset is what stable-baselines3 expects, under other names.

    ``key`` picks one entry of the observation instead of the whole dictionary.
    """

    def __init__(self, env: WorldModelVectorEnv, key: str | None = None) -> None:
        if env.metadata["autoreset_mode"] is not AutoresetMode.SAME_STEP:
            raise ValueError(
                "stable-baselines3 resets within the step: make the environment with autoreset_mode='SameStep'"
            )
        self.env, self.key = env, key
        space = env.single_observation_space
        assert isinstance(space, spaces.Dict)
        super().__init__(env.num_envs, space if key is None else space[key], env.single_action_space)
        self._seed: int | None = None

    def _pick(self, observation: dict[str, np.ndarray]) -> Any:
        return observation if self.key is None else observation[self.key]

    def reset(self) -> Any:
        observation, _ = self.env.reset(seed=self._seed)
        self._seed = None
        return self._pick(observation)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[Any, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        observation, rewards, terminated, truncated, info = self.env.step(self._actions)
        done = terminated | truncated
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(cut)} for cut in truncated]
        for i in np.flatnonzero(done):
            infos[i]["terminal_observation"] = self._pick(info["final_obs"][i])
            infos[i]["is_success"] = bool(info["final_info"]["success"][i])
        return self._pick(observation), rewards.astype(np.float32), done, infos

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        self._seed = seed
        return [None if seed is None else seed + i for i in range(self.num_envs)]

    def close(self) -> None:
        self.env.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [getattr(self.env, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise AttributeError("rows of one world model have no attributes of their own")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        raise AttributeError("rows of one world model have no methods of their own")

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs
