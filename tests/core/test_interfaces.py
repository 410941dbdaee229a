"""What a policy of one's own has to have, and states of an imagination as rows."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from worldloop.core.interfaces import AdvantageConditionedPolicy, LikelihoodPolicy, Policy, WorldState


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        (Policy, {"act", "compute_imitation_loss"}),
        (LikelihoodPolicy, {"act", "compute_imitation_loss", "log_prob"}),
        (AdvantageConditionedPolicy, {"act", "compute_imitation_loss", "compute_conditioned_loss"}),
    ],
)
def test_a_policy_that_lacks_a_method_cannot_be_built(kind: type[Policy], missing: set[str]) -> None:
    for method in missing:
        others = {name: lambda *_: None for name in missing - {method}}
        with pytest.raises(TypeError, match=method):
            type("Own", (kind,), others)()
    whole = type("Own", (kind,), {name: lambda *_: None for name in missing})()
    assert isinstance(whole, torch.nn.Module)
    assert whole.prepare(None) is None  # type: ignore[func-returns-value, arg-type]


@dataclass(frozen=True)
class Place(WorldState):
    """Somewhere on a line, ``x`` f32 [B]."""

    x: Tensor


def test_rows_of_a_state_fork_and_restart_with_their_noise() -> None:
    state = Place(noise_key=torch.tensor([5, 6, 7]), step=torch.tensor([1, 2, 3]), x=torch.tensor([0.1, 0.2, 0.3]))
    assert len(state) == 3
    fork = state.rows([2, 2, 0])
    assert fork.noise_key.tolist() == [7, 7, 5]
    assert fork.step.tolist() == [3, 3, 1]
    fresh = Place(noise_key=torch.tensor([9]), step=torch.tensor([0]), x=torch.tensor([0.0]))
    restarted = state.put(torch.tensor([1]), fresh)
    assert (restarted.noise_key.tolist(), restarted.step.tolist()) == ([5, 9, 7], [1, 0, 3])
    assert Place.cat([fork, fresh]).noise_key.tolist() == [7, 7, 5, 9]
    with pytest.raises(NotImplementedError):
        state.to_tensors()
