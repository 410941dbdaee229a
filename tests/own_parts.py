"""A simulator and a policy of one's own, as configs name them: ``own_parts:ReachSimulator`` and the like.

They are those of docs/adding_a_simulator.md and docs/adding_a_policy.md. The others lack something.
"""

from __future__ import annotations

from typing import Any

from documented import load_module

from worldloop.core.interfaces import LikelihoodPolicy

ReachSimulator: Any = load_module("adding_a_simulator.md", "own_reach").ReachSimulator
GaussianPolicy: Any = load_module("adding_a_policy.md", "own_gaussian").GaussianPolicy


class NoExpert(ReachSimulator):
    make_scripted_policy = None


class NoConfig(ReachSimulator):
    Config = None


class NoSpec(ReachSimulator):
    make_spec = None


class Unbuildable(ReachSimulator):
    def __init__(self) -> None:
        """Takes no config."""


class Wordless(GaussianPolicy):
    log_prob = None


class Abstract(LikelihoodPolicy):
    Config = GaussianPolicy.Config


class NoPolicy:
    Config = GaussianPolicy.Config
    temperature, version = 1.0, ""
    act = log_prob = compute_imitation_loss = prepare = print

    def __init__(self, config: Any, spec: Any, normalisation: Any, chunk_length: int) -> None:
        self.spec, self.normalisation, self.chunk_length = spec, normalisation, chunk_length
