"""What every LIBERO task of ours says. A family of tasks is a subclass of `LiberoTask`, in a module of its own.

A task's scene, its goal and its evaluation states are LIBERO's, found by the suite and the task's name. Ours are the
paraphrases, the time limit, the scripted expert and how near a failure has to come to count as a near-success.
No import of libero here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worldloop.simulators.libero.hand import Hand

Script = Iterator[NDArray[np.float64]]  # of actions f64 [7], one per environment step


@dataclass(frozen=True)
class LiberoTask(ABC):
    """One task of a suite.

    - ``id``: its name in LIBERO, which is also its BDDL file's
    - ``instructions``: LIBERO's own first, then paraphrases
    - ``near_m``: distance to the goal below which a failure that came closer counts as a near-success, see `goals`
    - ``max_episode_steps``: environment steps
    """

    id: str
    instructions: tuple[str, ...]
    near_m: float
    max_episode_steps: int

    @abstractmethod
    def perform(self, hand: Hand) -> Script:
        """The expert's actions, one by one, or those of the worse variant that ``hand.deviation`` describes.

        It may read the scene between any two actions, and may end; then the hand stays where it is.
        """
