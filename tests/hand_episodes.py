"""Episodes made by hand: every value says where it belongs."""

from __future__ import annotations

import numpy as np

from worldloop.core.types import Episode, EpisodeMeta


def build_episode(
    number: int,
    num_steps: int = 3,
    source: str = "expert",
    outcome: str = "success",
    split: str = "train",
    s: int = 2,
    instruction: str = "push the cube",
    cameras: tuple[str, ...] = ("base",),
    size: int = 8,
    sizes: dict[str, tuple[int, int]] | None = None,
    task: str = "PushCube-v1",
    num_actions: int = 4,
    policy_version: str = "",
) -> Episode:
    """Pixels of frame f are (number, f, noise); proprio[0] is 100 * number + f, action[0] 1000 * number + env step.

    A success happens at the last step but one, so that the last one is not valid. ``sizes``: camera -> (height, width)
    of those that are not ``size`` square.
    """
    rng = np.random.default_rng(number)
    F, T = num_steps, num_steps * s
    frames = {}
    for camera in cameras:
        height, width = (sizes or {}).get(camera, (size, size))
        frames[camera] = rng.integers(0, 256, (F + 1, height, width, 3), dtype=np.uint8)
        frames[camera][..., 0] = number
        frames[camera][..., 1] = np.arange(F + 1)[:, None, None]
    proprio = rng.normal(size=(F + 1, 5)).astype(np.float32)
    proprio[:, 0] = 100 * number + np.arange(F + 1)
    actions = rng.normal(size=(T, num_actions)).astype(np.float32)
    actions[:, 0] = 1000 * number + np.arange(T)
    valid, success, rewards = np.ones(T, bool), np.zeros(T, bool), np.zeros(T, np.float32)
    if outcome == "success":
        success[-2:], rewards[-2], valid[-1], actions[-1] = True, 1.0, False, 0.0
    meta = EpisodeMeta(
        task=task,
        instruction=instruction,
        initial_state_id=f"{task}/{split}/{number:06d}",
        split=split,  # type: ignore[arg-type]
        outcome=outcome,  # type: ignore[arg-type]
        margin_m=0.0 if outcome == "success" else 0.1 / 3,
        source=source,  # type: ignore[arg-type]
        variant=source,
        iteration=1 if source == "policy" else 0,
        control_mode="pd_ee_delta_pos",
        hz=20.0,
        actions_per_frame=s,
        simulator_version="hand-made",
        policy_version=policy_version,
    )
    return Episode(
        meta=meta,
        frames=frames,
        proprio=proprio,
        actions=actions.reshape(F, s, -1),
        valid=valid.reshape(F, s),
        rewards=rewards.reshape(F, s),
        success=success.reshape(F, s),
        distances_m=rng.random((F, s), dtype=np.float32),
        sim_state=rng.normal(size=(F + 1, 7)).astype(np.float32),
        terminated=outcome == "success",
        truncated=outcome != "success",
    )
