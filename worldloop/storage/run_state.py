"""What one stage hands to the next: a dataset version, checkpoint paths, and the figures recorded so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from worldloop.core.errors import WorldloopError
from worldloop.core.success import Calibration, Calibrations, Trust

STATE_SCHEMA_VERSION = 5
UNNAMED_TASK = ""  # the only task of a state that was stored before tasks had names


@dataclass(frozen=True)
class LoopState:
    """Stored as ``state.json`` after every stage. Paths are relative to the run directory.

    - ``iteration`` and ``next_stage``: where the loop is; ``next_stage`` "" means that the loop has ended
    - ``dataset``: name of the SANS version
    - ``clone``, ``policy``, ``world_model``: checkpoint directories ("" before there is one); ``clone`` is iteration
      0's policy
    - ``start``: the checkpoint from which this iteration's improvement starts, "" before there is one; ``newest``: the
      policy that its next round goes on from; ``num_rounds``: its rounds so far
    - ``candidates``: checkpoints of the improvement that await promotion, in the order of training
    - ``teacher``: the fitted world model, from which the next fit continues; ``world_model`` is the teacher, or its
      student with fewer sampler steps
    - ``world_model_steps``: optimizer steps on world models so far; ``num_fits``: fits of this iteration so far
    - ``calibrations``: how to read the heads of ``world_model``, ``None`` until it has been checked; ``trust``: task ->
      what the last check found, empty until then
    - ``rejected``: the best candidate of the last improvement that did not become the policy, "" if there is none
    - ``critics``: checkpoints of this iteration's critics, one per fold; ``labels``: folder of the advantages that they
      gave to the training episodes of ``dataset``
    - ``inverse_dynamics``: checkpoint of this iteration's inverse dynamics model; ``inverse_dynamics_judge``: that of
      the one that only judges; "" if none is fitted
    - ``planner``: checkpoint of this iteration's policy that executes a planner's video, "" if none is fitted
    - ``evaluation_success``: for each iteration, task -> outcomes of its policy on the evaluation states. Recorded for
      the report's paired gains; no decision reads it
    - ``num_scripted_episodes``: scripted episodes of iteration 0; the policy's episodes use the initial states after
      theirs
    - ``env_steps``: environment steps that entered SANS so far; ``simulator_steps``: those of the simulator, also those
      that only judge (checks in the closed loop, the gate), but not those on evaluation states, nor recorded ones. Both
      count up to an episode's first success
    - ``records``: one dictionary of figures per iteration, for `results.json`; no stage reads them
    """

    iteration: int = 0
    next_stage: str = "seed_dataset"
    dataset: str = ""
    clone: str = ""
    policy: str = ""
    start: str = ""
    newest: str = ""
    num_rounds: int = 0
    candidates: tuple[str, ...] = ()
    rejected: str = ""
    world_model: str = ""
    teacher: str = ""
    world_model_steps: int = 0
    num_fits: int = 0
    calibrations: Calibrations | None = None
    trust: dict[str, Trust] = field(default_factory=dict)
    critics: tuple[str, ...] = ()
    labels: str = ""
    inverse_dynamics: str = ""
    inverse_dynamics_judge: str = ""
    planner: str = ""
    evaluation_success: tuple[dict[str, tuple[bool, ...]], ...] = ()
    num_scripted_episodes: int = 0
    env_steps: int = 0
    simulator_steps: int = 0
    records: tuple[dict[str, Any], ...] = ()
    schema_version: int = STATE_SCHEMA_VERSION

    @property
    def is_distrusted(self) -> bool:
        """The world model has been checked and is trusted in no task."""
        return bool(self.trust) and not any(trust.is_trusted for trust in self.trust.values())

    def recorded(self, name: str, default: Any) -> Any:
        """The figure ``name`` of this iteration's record, for a stage that adds to it in several runs."""
        return self.records[self.iteration].get(name, default) if len(self.records) > self.iteration else default

    def record(self, **figures: Any) -> LoopState:
        """The state with ``figures`` merged into this iteration's record; ``tasks`` is merged task by task."""
        records = list(self.records)
        while len(records) <= self.iteration:
            records.append({"iteration": len(records)})
        before = records[self.iteration]
        if "tasks" in figures:
            tasks = dict(before.get("tasks", {}))
            for task, own in figures["tasks"].items():
                tasks[task] = tasks.get(task, {}) | own
            figures["tasks"] = tasks
        records[self.iteration] = before | figures
        return replace(self, records=tuple(records))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        calibrations = None
        if self.calibrations is not None:
            calibrations = {task: asdict(calibration) for task, calibration in self.calibrations.by_task.items()}
        trust = {task: asdict(trust) for task, trust in self.trust.items()}
        return vars(self) | {"calibrations": calibrations, "trust": trust}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LoopState:
        """The state in ``values``, read from the JSON of `to_dict` of this schema version or an earlier one.

        A state of an earlier version has one task, `UNNAMED_TASK`. Raises `WorldloopError` on anything else.
        """
        try:
            values = _upgrade(values)
            values |= {name: tuple(values[name]) for name in ("candidates", "critics", "records")}
            values["evaluation_success"] = tuple(_read_outcomes(outcomes) for outcomes in values["evaluation_success"])
            values["trust"] = {task: Trust(**trust) for task, trust in values["trust"].items()}
            if values["calibrations"] is not None:
                by_task = {task: Calibration(**figures) for task, figures in values["calibrations"].items()}
                values["calibrations"] = Calibrations(by_task)
            return cls(**values)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise WorldloopError(f"state.json is not a worldloop state ({error}); delete the run directory") from error


def _read_outcomes(by_task: Mapping[str, Sequence[bool]]) -> dict[str, tuple[bool, ...]]:
    return {task: tuple(outcomes) for task, outcomes in by_task.items()}


def _upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of ``values`` in the present schema version; converts versions 1 to 4."""
    values = dict(values)
    if values["schema_version"] == 1:
        reason, records = values.pop("distrust", ""), values["records"]
        is_checked = values["calibration"] is not None
        values["trust"] = {"is_trusted": not reason, "reason": reason} if is_checked else None
        values["num_scripted_episodes"] = sum(records[0].get("scripted_episodes", {}).values()) if records else 0
        values["schema_version"] = 2
    if values["schema_version"] == 2:
        calibration, trust = values.pop("calibration"), values["trust"]
        values["calibrations"] = None if calibration is None else {UNNAMED_TASK: calibration}
        values["trust"] = {} if trust is None else {UNNAMED_TASK: trust}
        values["evaluation_success"] = [{UNNAMED_TASK: outcomes} for outcomes in values["evaluation_success"]]
        values["schema_version"] = 3
    if values["schema_version"] == 3:
        values.pop("validation_success")
        values["schema_version"] = 4
    if values["schema_version"] == 4:
        # Steps that only judged were not counted then.
        values |= {"simulator_steps": values["env_steps"], "critics": (), "schema_version": STATE_SCHEMA_VERSION}
    return values
