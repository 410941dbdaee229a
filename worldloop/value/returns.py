"""Returns and advantages of stored episodes, for advantage-conditioned policies.

The return from a frame is RECAP's (arXiv:2511.14759): minus the number of steps that are left, and a large penalty for
a failure. Or it is ViVa's (arXiv:2604.08168): minus the share of the episode that is left. Or it is the outcome alone.
The advantage is RECAP's: N steps of reward, then a critic's value.

Departures:

1. RECAP scales the returns of a task by its maximum episode length, to (-1, 0). Here the divisor is twice the task's
   time limit: so the range holds the penalty of a failure too, and no return depends on which episodes were collected.
2. RECAP leaves the penalty of a failure open. Here it is the time limit: so no failure is above a success.
3. ViVa's progress runs from 0 to 1. Here it is lowered by 1, so that both targets lie in [-1, 0].
4. ViVa's released code has no branch for failures: they make progress like successes. Here they make none.

Shapes: F frame steps of an episode, so F + 1 stored frames; s environment steps a frame step (``actions_per_frame``).
"""

from __future__ import annotations

import numpy as np

from worldloop.core.errors import require_choice, require_positive
from worldloop.core.tensors import check_shape

TARGETS = ("recap", "progress", "outcome")


def compute_returns(
    num_env_steps: int,
    num_frames: int,
    actions_per_frame: int,
    is_success: bool,
    max_episode_steps: int,
    target: str = "recap",
) -> np.ndarray:
    """The return from each stored frame of an episode, f32 [F + 1] in [-1, 0]; higher is better.

    With T = ``num_env_steps``, L = ``max_episode_steps`` and t = min(f s, T), the steps before frame f:

    - ``recap``: -(T - t) / 2L, and 1/2 less for a failure. The reward is -1 a step, a failure pays L more at its end,
      and everything is divided by 2L. A success lies in [-1/2, 0], a failure in [-1, -1/2]. Only an episode that is
      longer than the limit can be clipped to [-1, 0].
    - ``progress``: -(T - t) / T for a success, -1 at every frame of a failure.
    - ``outcome``: 0 at every frame of a success, -1 at every frame of a failure.

    Args:
        num_env_steps: executed environment steps, until the success or the end; at most F s.
        num_frames: F.
        actions_per_frame: s.
        max_episode_steps: the task's time limit, in environment steps.
        target: one of `TARGETS`.

    Raises ``ValueError`` for another target, a count that is not positive, or more steps than the frames hold.

    Example: T = 3, F = 2, s = 2, L = 5, success: recap [-.3, -.1, 0], progress [-1, -1/3, 0]. Failure: recap
    [-.8, -.6, -.5], progress [-1, -1, -1].
    """
    require_choice("target", target, TARGETS)
    counts = {
        "num_env_steps": num_env_steps,
        "num_frames": num_frames,
        "actions_per_frame": actions_per_frame,
        "max_episode_steps": max_episode_steps,
    }
    for name, count in counts.items():
        require_positive(name, count)
    if num_env_steps > num_frames * actions_per_frame:
        raise ValueError(f"{num_env_steps} steps do not fit in {num_frames} frame steps of {actions_per_frame}")
    remaining = num_env_steps - np.minimum(np.arange(num_frames + 1) * actions_per_frame, num_env_steps)
    if target == "recap":
        penalty = 0 if is_success else max_episode_steps
        returns = -(remaining + penalty) / (2 * max_episode_steps)
    elif not is_success:
        returns = np.full(num_frames + 1, -1.0)
    else:
        returns = -remaining / num_env_steps if target == "progress" else np.zeros(num_frames + 1)
    return np.clip(returns, -1.0, 0.0).astype(np.float32)


def compute_advantages(values: np.ndarray, returns: np.ndarray, num_frames: int) -> np.ndarray:
    """The N-step advantage of each frame step of one episode, f32 [F].

    A_f = (returns[f] - returns[g]) + values[g] - values[f], with g = f + N. The difference of the returns is the sum of
    the rewards in between. From the last frame on the outcome is known and the return itself takes the place of the
    value: where g >= F, A_f = returns[f] - values[f].

    Pass an episode up to its first success: at later frames the outcome is known too, and no action matters.

    Args:
        values: float [F + 1], a critic's values of the stored frames.
        returns: float [F + 1], see `compute_returns`.
        num_frames: N, the horizon in stored frames.

    Raises ``ValueError`` for other shapes, fewer than two frames, or a horizon that is not positive.
    """
    check_shape("values", values, (None,))
    check_shape("returns", returns, tuple(values.shape))
    require_positive("num_frames", num_frames)
    last = len(returns) - 1
    if last < 1:
        raise ValueError(f"an episode has two or more stored frames, got {len(returns)}")
    bootstrapped = np.asarray(values, dtype=np.float64).copy()
    bootstrapped[last] = returns[last]
    returns = np.asarray(returns, dtype=np.float64)
    start = np.arange(last)
    end = np.minimum(start + num_frames, last)
    rewards = returns[start] - returns[end]
    return (rewards + bootstrapped[end] - bootstrapped[start]).astype(np.float32)


def choose_threshold(advantages: np.ndarray, positive_share: float) -> float:
    """The threshold eps for which a share of ``positive_share`` of ``advantages`` lies above it: A > eps.

    The share is the largest one that does not exceed ``positive_share``. Equal advantages are all positive or all
    negative, so a tie at the threshold may keep that share out of reach. Then eps gives the nearer of the two shares
    around the tie, and the smaller one if both are as near. Only so can the share exceed ``positive_share``.

    ``advantages``: float [n], of any episodes. eps is one of them, or just below all of them if all are positive.

    Raises ``ValueError`` for no advantages, one that is not finite, or a share outside (0, 1).

    Example: [4, 3, 2, 1] with share .5 -> 2, two are positive. [4, 2, 2, 1] with .5: one or three can be positive, both
    as near -> 2, one is positive.
    """
    check_shape("advantages", advantages, (None,))
    if len(advantages) == 0:
        raise ValueError("there are no advantages to choose a threshold from")
    if not np.isfinite(advantages).all():
        raise ValueError("an advantage is not finite")
    if not 0 < positive_share < 1:
        raise ValueError(f"positive_share is {positive_share}, allowed: above 0 and below 1")
    wanted = round(positive_share * len(advantages), 6)  # rounded, because .29 * 100 is below 29
    num_positive = min(int(wanted), len(advantages) - 1)
    boundary = np.sort(advantages)[::-1][num_positive]
    num_above, num_from = int((advantages > boundary).sum()), int((advantages >= boundary).sum())
    is_tied = num_above < num_positive
    if is_tied and num_from - wanted < wanted - num_above:
        below = advantages[advantages < boundary]
        return float(below.max() if len(below) else np.nextafter(boundary, -np.inf, dtype=boundary.dtype))
    return float(boundary)
