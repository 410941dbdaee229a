"""What one stage hands to the next: a dataset version, checkpoint paths, and the figures recorded so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from worldloop.core.errors import WorldloopError
from worldloop.core.success import Calibration, Trust

STATE_SCHEMA_VERSION = 2


@dataclass(frozen=True)
class LoopState:
    """Stored as ``state.json`` after every stage. Paths are relative to the run directory.

    - ``iteration`` and ``next_stage``: where the loop stands; ``next_stage`` "" means that it has ended
    - ``dataset``: name of the SANS version
    - ``clone``, ``policy``, ``world_model``: checkpoint directories ("" before there is one); ``clone`` is iteration
      0's policy
    - ``candidates``: checkpoints of the last improvement, in the order of training, that await promotion
    - ``teacher``: what was fitted, and fits go on from; ``world_model`` is that, or its student of fewer sampler steps
    - ``world_model_steps``: optimizer steps on world models so far; ``num_fits``: fits of this iteration so far
    - ``calibration``, ``trust``: what the check of ``world_model`` found; ``None`` before there was one
    - ``validation_success``: outcomes of ``policy`` on the validation states, for the paired promotion test
    - ``evaluation_success``: outcomes of every iteration's policy on the evaluation states, by iteration. Recorded
      for the report's paired gains; no decision reads it
    - ``num_scripted_episodes``: scripted episodes of iteration 0; the policy's episodes start from states after them
    - ``env_steps``: simulator steps that entered SANS so far
    - ``records``: one dictionary of figures per iteration, for `results.json`; no stage reads them
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
    calibration: Calibration | None = None
    trust: Trust | None = None
    validation_success: tuple[bool, ...] = ()
    evaluation_success: tuple[tuple[bool, ...], ...] = ()
    num_scripted_episodes: int = 0
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
        """Plain values for JSON."""
        verdicts = {"calibration": self.calibration, "trust": self.trust}
        return vars(self) | {name: None if value is None else asdict(value) for name, value in verdicts.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoopState:
        """Inverse of `to_dict` after a trip through JSON, of this schema version or an earlier one.

        Raises `WorldloopError` on anything else.
        """
        try:
            values = _upgrade(values)
            values |= {k: tuple(v) for k, v in values.items() if k in ("candidates", "validation_success", "records")}
            values["evaluation_success"] = tuple(tuple(v) for v in values["evaluation_success"])
            for name, kind in (("calibration", Calibration), ("trust", Trust)):
                values[name] = None if values[name] is None else kind(**values[name])
            return cls(**values)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise WorldloopError(f"state.json is not a worldloop state ({error}); delete the run directory") from error


def _upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``values`` with the fields of schema version 1, if they are that, under today's names."""
    values = dict(values)
    if values["schema_version"] == 1:
        reason, records = values.pop("distrust", ""), values["records"]
        is_checked = values["calibration"] is not None
        values["trust"] = {"is_trusted": not reason, "reason": reason} if is_checked else None
        values["num_scripted_episodes"] = sum(records[0].get("scripted_episodes", {}).values()) if records else 0
        values["schema_version"] = STATE_SCHEMA_VERSION
    return values
