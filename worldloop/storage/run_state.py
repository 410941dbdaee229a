"""What one stage hands to the next: a dataset version, checkpoint paths, and the figures recorded so far."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from worldloop.core.errors import WorldloopError

STATE_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class LoopState:
    """Plain values only, stored as ``state.json`` after every stage. Paths are relative to the run directory.

    - ``iteration`` and ``next_stage``: where the loop stands; ``next_stage`` "" means that it has ended
    - ``dataset``: name of the SANS version
    - ``clone``, ``policy``, ``world_model``: checkpoint directories ("" before there is one); ``clone`` is iteration
      0's policy
    - ``candidates``: checkpoints of the last improvement, in the order of training, that await promotion
    - ``teacher``: what was fitted, and fits go on from; ``world_model`` is that, or its student of fewer sampler steps
    - ``world_model_steps``: optimizer steps on world models so far; ``num_fits``: fits of this iteration so far
    - ``calibration``: the fields of `worldloop.rollout.imagination.Calibration`
    - ``distrust``: why no policy may be improved in ``world_model``, "" where one may
    - ``validation_success``: outcomes of ``policy`` on the validation states, for the paired promotion test
    - ``evaluation_success``: outcomes of every iteration's policy on the evaluation states, by iteration. Recorded
      for the report's paired gains; no decision reads it
    - ``env_steps``: simulator steps that entered SANS so far
    - ``records``: one dictionary of figures per iteration
    """

    iteration: int = 0
    next_stage: str = "seed_dataset"
    dataset: str = ""
    clone: str = ""
    policy: str = ""
    candidates: tuple[str, ...] = ()
    world_model: str = ""
    teacher: str = ""
    world_model_steps: int = 0
    num_fits: int = 0
    distrust: str = ""
    calibration: dict[str, float] | None = None
    validation_success: tuple[bool, ...] = ()
    evaluation_success: tuple[tuple[bool, ...], ...] = ()
    env_steps: int = 0
    records: tuple[dict[str, Any], ...] = ()
    schema_version: int = STATE_SCHEMA_VERSION

    def record(self, **figures: Any) -> LoopState:
        """The state with ``figures`` merged into this iteration's record."""
        records = list(self.records)
        while len(records) <= self.iteration:
            records.append({"iteration": len(records)})
        records[self.iteration] = {**records[self.iteration], **figures}
        return replace(self, records=tuple(records))

    def to_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoopState:
        """Inverse of `to_dict` after a trip through JSON; raises `WorldloopError` on anything else."""
        try:
            tuples = ("candidates", "validation_success", "records")
            values = {k: tuple(v) if k in tuples else v for k, v in values.items()}
            values["evaluation_success"] = tuple(tuple(v) for v in values["evaluation_success"])
            return cls(**values)
        except (TypeError, KeyError) as error:
            raise WorldloopError(f"state.json is not a worldloop state ({error}); delete the run directory") from error
