"""Experiment 018: does RECAP make a better policy of a loop's own episodes than imitating its successes?

    python experiments/018_recap/run.py measure TASK [key=value ...] [--seeds 0 1 2] [--arms recap_1 ...]
    python experiments/018_recap/run.py report [key=value ...]      # result.json, recap.png

``measure`` needs loops of experiment 016 under the same run_root, up to their first improve_policy or further. On their
dataset v001 (scripted episodes, and those of the clone) it fits critics, labels advantages, and trains policies of the
same size and number of steps. Each acts greedily on the same evaluation states:

- `everything`: imitates all episodes, told nothing; `successes`: imitates the successes alone. GRPO starts from the
  latter after 900 steps
- `recap_B`: imitates all episodes, told which actions were good; acts with guidance B: told nothing (0), told "good"
  (1), guided (1.5, 2.5). `recap_bad` is told "not good"
- `viva_B`, `viva_bad`: the same, with the labels of ViVa
- `imagined_B`: as `viva_B`; a quarter of each batch are chunks of the clone from real states, labelled by what they
  lead to in the world model (method `recap_imagined`)
- `awr`: imitates all episodes, told nothing, and draws each chunk in proportion to exp(A), with ViVa's advantage A in
  standard deviations (advantage-weighted regression, arXiv:1910.00177); at most `MAX_WEIGHT`
- `good`: imitates the chunks alone that ViVa's labels call good, told nothing
- `random_1`: as `recap_1` with the labels permuted over the frame steps of each source, told "good". The successes
  of experts stay good, except in `awr`, which weights all chunks alike

TASK: push, pull, pick; without ``--arms``, all of them. What was measured is not measured again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from common import run_stage  # noqa: E402
from trust_loops import (  # noqa: E402
    begin_arm,
    compare_arms,
    configure,
    evaluate_arm,
    keep,
    measure_or_report,
    open_beside,
    plot_success,
    print_arms,
    read_measured,
)

from worldloop.core.files import to_json, write_file  # noqa: E402
from worldloop.core.randomness import derive_seed  # noqa: E402
from worldloop.core.types import OUTCOMES, SOURCES, ImitationBatch, Observation  # noqa: E402
from worldloop.policies.imitation import fit_by_imitation  # noqa: E402
from worldloop.policies.token_vla.policy import TokenVLA  # noqa: E402
from worldloop.sans.advantages import AdvantageLabels, read_labels, write_labels  # noqa: E402
from worldloop.sans.imitation import (  # noqa: E402
    EVERY_SUCCESS,
    EpisodeSelection,
    ImitationDataset,
    LabelledImitation,
)
from worldloop.stages import clone_policy  # noqa: E402
from worldloop.stages.context import StageContext  # noqa: E402
from worldloop.storage.run_state import LoopState  # noqa: E402

KINDS = {
    "recap": ["improve_policy.method=recap"],
    "viva": ["improve_policy.method=recap", "value.kind=viva", "fit_value.num_steps=400"],
    "imagined": [
        "improve_policy.method=recap_imagined",
        "improve_policy.imagination_horizon=4",
        "value.kind=viva",
        "fit_value.num_steps=400",
    ],
    "random": ["improve_policy.method=recap"],
}
CRITICS = {"recap": "recap", "random": "recap"} | dict.fromkeys(("viva", "imagined", "awr", "good"), "viva")
GUIDANCE = ("0", "1", "1.5", "2.5", "bad")
BASELINES = {"successes": EVERY_SUCCESS, "everything": EpisodeSelection(sources=SOURCES, outcomes=OUTCOMES)}
WEIGHTED = ("awr", "good")
MAX_WEIGHT = 20.0  # of a chunk in `awr`, as in the paper
NUM_STEPS = 2700  # optimizer steps of every policy: `recap` learns from 2.4 times as many episodes as `successes`
ARMS = (
    *BASELINES,
    *WEIGHTED,
    *(f"{kind}_{told}" for kind in ("recap", "viva", "imagined") for told in GUIDANCE),
    "random_1",
)


def open_arm(task: str, seed: int, overrides: list[str], kind: str) -> tuple[StageContext, LoopState]:
    """What stages work with for ``kind`` in TASK-seedN-recap beside the loop, and the loop's state."""
    changes = [*KINDS[kind], f"improve_policy.num_recap_steps={NUM_STEPS}", *overrides]
    return open_beside(configure(task, seed, changes), "recap", f"{task} {seed}")


def measure(task: str, seed: int, overrides: list[str], arms: Sequence[str]) -> None:
    """Write measured.json into TASK-seedN-recap beside the loop."""
    out = open_arm(task, seed, overrides, "recap")[0].models.run_dir / "measured.json"
    measured: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {"success": {}, "critics": {}}
    for name in arms:
        if name in measured["success"]:
            continue
        kind = name.split("_")[0]
        settings = CRITICS.get(kind, "recap") if kind not in KINDS else kind
        context, state = open_arm(task, seed, overrides, settings)
        begin_arm(out.parent, kind)
        if kind in CRITICS:
            state = label(CRITICS[kind], state, context, measured)
            write_file(out, to_json(measured), out.name)
        evaluate_arm(name, make_policy(name, state, context), context, measured, out)


def label(kind: str, state: LoopState, context: StageContext, measured: dict[str, Any]) -> LoopState:
    """``state`` with critics and labels of ``kind``; made once, and kept under that name."""
    run_dir = context.models.run_dir
    stored = run_dir / f"labelled_{kind}.json"
    if not stored.exists():
        made = state
        for name in ("fit_value", "check_value", "label_advantages"):
            made = run_stage(name, made, context)
        measured["critics"][kind] = {key: made.records[1][key] for key in ("value_check", "good_share")}
        critics = [keep(run_dir, path, f"{path}_{kind}") for path in made.critics]
        labels = keep(run_dir, made.labels, f"{made.labels}_{kind}")
        write_file(stored, to_json({"critics": critics, "labels": labels}), stored.name)
    kept = json.loads(stored.read_text())
    return replace(state, critics=tuple(kept["critics"]), labels=kept["labels"])


def make_policy(name: str, state: LoopState, context: StageContext) -> str:
    """The checkpoint of the arm ``name``."""
    kind, _, told = name.partition("_")
    if kind == "random":
        return train(permute_labels(state, context), context, kind)
    if kind in KINDS:
        made = train(state, context, kind)
        return guide(made, context, 1.0 if told == "bad" else float(told), is_good=told != "bad")
    path = f"checkpoints/iteration_001/{name}"
    if name in WEIGHTED:
        imitate_weighted(name, state, context, path)
        return path
    cloning = replace(context.config_of(clone_policy.Config), num_steps=NUM_STEPS)
    clone_policy.imitate(state, cloning, context, BASELINES[name], path)
    return path


@dataclass(frozen=True)
class WeightedImitation:
    """``dataset``, whose starts are drawn in proportion to ``weight`` f64 [N]."""

    dataset: ImitationDataset
    weight: Tensor

    def images(self) -> dict[str, Tensor]:
        return self.dataset.images()

    def observations(self, block_size: int) -> Iterator[Observation]:
        return self.dataset.observations(block_size)

    def proprio(self) -> Tensor:
        return self.dataset.proprio()

    def actions(self) -> Tensor:
        return self.dataset.actions()

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> ImitationBatch:
        chosen = torch.multinomial(self.weight, batch_size, replacement=True, generator=generator)
        return self.dataset.load(self.dataset.starts[chosen.numpy()], chunk_length)


def imitate_weighted(name: str, state: LoopState, context: StageContext, path: str) -> None:
    """Save at ``path`` a policy that imitates all episodes, each chunk as often as the arm ``name`` says."""
    if context.models.has(path):
        return
    version = context.store.version(state.dataset)
    labels = read_labels(context.models.run_dir / state.labels, version.fingerprint)
    policy = context.models.new_policy(version.normalisation, derive_seed(context.seed, "018", name))
    cache = context.open_cache(state.dataset)
    dataset = ImitationDataset(cache, BASELINES["everything"], policy.spec.robot.camera_names)
    is_good = torch.from_numpy(LabelledImitation(dataset, labels).is_good)
    if name == "good":
        weight = (is_good == 1).double()
    else:
        episode, frame = dataset.starts.T
        advantage = labels.advantage[(np.cumsum(cache.num_steps) - cache.num_steps)[episode] + frame]
        relative = (advantage - np.nanmean(advantage)) / np.nanstd(advantage)
        weight = torch.from_numpy(np.where(np.isnan(relative), 0, np.exp(relative).clip(max=MAX_WEIGHT)))
    policy = fit_by_imitation(
        policy,
        WeightedImitation(dataset, weight.double()),
        replace(context.config_of(clone_policy.Config), num_steps=NUM_STEPS),
        context.setup.make_generators(context.seed, "018", name),
        context.setup,
        context.reporter,
        name=name,
        first_step=0,
    )
    context.models.save_policy(policy, path)
    context.setup.drop_checkpoint(name)


def train(state: LoopState, context: StageContext, name: str) -> str:
    """The checkpoint of a policy that `improve_policy` trained on ``state.labels``, kept under ``name``."""
    path = f"checkpoints/iteration_001/{name}"
    if not context.models.has(path):
        made = run_stage("improve_policy", state, context).newest
        keep(context.models.run_dir, made, path)
    return path


def guide(checkpoint: str, context: StageContext, guidance: float, is_good: bool) -> str:
    """A copy of the policy that acts with ``guidance``; without ``is_good`` it is told that its actions are bad."""
    path = f"{checkpoint}_{guidance:g}" if is_good else f"{checkpoint}_bad"
    if not context.models.has(path):
        policy = context.models.load_policy(checkpoint)
        assert isinstance(policy, TokenVLA)
        policy.guidance = guidance
        if not is_good:
            with torch.no_grad():
                policy.indicator[1] = policy.indicator[0]
        context.models.save_policy(policy, path)
    return path


def permute_labels(state: LoopState, context: StageContext) -> LoopState:
    """``state`` with the labels of all labelled frame steps permuted."""
    run_dir = context.models.run_dir
    labels = read_labels(run_dir / state.labels, context.store.version(state.dataset).fingerprint)
    cache = context.open_cache(state.dataset)
    source = np.repeat([meta.source for meta in cache.metas], cache.num_steps)
    generator = np.random.default_rng(context.seed)
    advantage, is_good = labels.advantage.copy(), labels.is_good.copy()
    for name in np.unique(source):
        known = np.flatnonzero(~np.isnan(labels.advantage) & (source == name))
        order = generator.permutation(known)
        advantage[known], is_good[known] = labels.advantage[order], labels.is_good[order]
    permuted: AdvantageLabels = replace(labels, advantage=advantage, is_good=is_good)
    write_labels(run_dir / "labels/permuted", permuted)
    return replace(state, labels="labels/permuted")


def report(overrides: list[str]) -> None:
    """Write result.json and recap.png from the loops that have been measured."""
    tasks = {task: summarise(seeds) for task, seeds in read_measured(overrides, "recap").items()}
    write_file(HERE / "result.json", to_json({"tasks": tasks}), "result.json")
    for task, figures in tasks.items():
        print_arms(task, figures["arms"], "successes")
    plot_success(tasks, HERE / "recap.png")


def summarise(seeds: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Of each arm the success, alone and minus the imitation of successes; and what its critics know."""
    return {
        "arms": compare_arms(seeds, ARMS, "successes"),
        "critics": {seed: measured["critics"] for seed, measured in seeds.items()},
    }


if __name__ == "__main__":
    measure_or_report(str(__doc__), measure, report, arms=ARMS)
