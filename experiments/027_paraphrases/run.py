"""Does an instruction that was never trained on still name the right task to the policy's instruction token?

    python experiments/027_paraphrases/run.py measure FOLDER     FOLDER: all-MiniLM-L6-v2, see docs/encoders.md
    python experiments/027_paraphrases/run.py report

A reader stands in for the rest of the policy: one linear layer on the instruction token, trained with it to name the
task from the tasks' own instructions. It then reads paraphrases. No simulator and no policy acts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from paraphrases import PARAPHRASES
from torch import nn

from worldloop.core.statistics import Rate, estimate_over_seeds
from worldloop.networks.instruction import InstructionEncoder
from worldloop.networks.pretrained import SentenceProjection, find_source, open_sentence_encoder
from worldloop.simulators.libero import SUITES
from worldloop.simulators.maniskill.push_pull import PULL_CUBE, PUSH_CUBE
from worldloop.simulators.metaworld.tasks import MT10

HERE = Path(__file__).parent
SEEDS, WIDTH, NUM_STEPS, LEARNING_RATE = (0, 1, 2), 128, 300, 3e-3
ARMS = ("hashed words", "sentence encoder", "sentence encoder, not centred")
INSTRUCTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "libero_goal": {task.id: task.instructions for task in SUITES["libero_goal"].values()},
    "mt10": {task.id: task.instructions for task in MT10},
    "push_and_pull": {task.id: task.instructions for task in (PUSH_CUBE, PULL_CUBE)},
}


def make_token(arm: str, folder: str, known: list[str]) -> nn.Module:
    """The policy's instruction token of ``arm``, with fresh weights."""
    if arm == "hashed words":
        return InstructionEncoder(WIDTH)
    token = SentenceProjection(open_sentence_encoder(find_source("FOLDER", folder)), WIDTH, known)
    if arm.endswith("not centred"):
        token.centre.zero_()
        token.contrast.fill_(1.0)
    return token


def read_tasks(arm: str, folder: str, tasks: dict[str, tuple[str, ...]], seed: int) -> nn.Module:
    """Token and reader, trained to name the task of each of its instructions."""
    torch.manual_seed(seed)
    texts, labels = zip(*((text, n) for n, own in enumerate(tasks.values()) for text in own), strict=True)
    model = nn.Sequential(make_token(arm, folder, list(texts)), nn.Linear(WIDTH, len(tasks)))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    for _ in range(NUM_STEPS):
        loss = nn.functional.cross_entropy(model(texts), torch.tensor(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def count_right(model: nn.Module, texts: dict[str, tuple[str, ...]], tasks: list[str]) -> int:
    """How many of ``texts``, by task, are read as their task."""
    return sum(int((model(own).argmax(-1) == tasks.index(task)).sum()) for task, own in texts.items())


def measure(folder: str) -> dict[str, Any]:
    result: dict[str, Any] = {"schema_version": 1, "num_steps": NUM_STEPS, "width": WIDTH, "sets": {}}
    for name, tasks in INSTRUCTIONS.items():
        asked = PARAPHRASES[name]
        assert set(asked) == set(tasks)
        assert not {text for own in asked.values() for text in own} & {text for own in tasks.values() for text in own}
        num_asked, num_told = (sum(map(len, texts.values())) for texts in (asked, tasks))
        arms = {}
        for arm in ARMS:
            models = [read_tasks(arm, folder, tasks, seed) for seed in SEEDS]
            right = [count_right(model, asked, list(tasks)) for model in models]
            told = [count_right(model, tasks, list(tasks)) for model in models]
            arms[arm] = {
                "right_by_seed": right,
                "accuracy_by_seed": [k / num_asked for k in right],
                "seed_0": Rate.from_counts(right[0], num_asked).to_dict(),
                "over_seeds": estimate_over_seeds([k / num_asked for k in right]).to_dict(),
                "trained_instructions": [k / num_told for k in told],
            }
        result["sets"][name] = {"num_tasks": len(tasks), "num_paraphrases": num_asked, "arms": arms}
    return result


def report() -> None:
    """Print the table of ``result.json`` and draw its bars."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sets = json.loads((HERE / "result.json").read_text())["sets"]
    figure, axes = plt.subplots(1, len(sets), figsize=(9, 2.6), sharey=True)
    for axis, (name, own) in zip(axes, sets.items(), strict=True):
        chance = 1 / own["num_tasks"]
        print(f"{name}: {own['num_tasks']} tasks, {own['num_paraphrases']} paraphrases, chance {chance:.2f}")
        for number, (arm, figures) in enumerate(own["arms"].items()):
            seeds = figures["accuracy_by_seed"]
            first = figures["seed_0"]
            print(f"  {arm:<30} {' '.join(f'{a:.3f}' for a in seeds)}  seed 0: {first}")
            axis.bar(number, sum(seeds) / len(seeds), color=f"C{number}", label=arm)
            axis.plot([number] * len(seeds), seeds, "k.")
        axis.axhline(chance, color="grey", linestyle=":")
        axis.set(title=name, xticks=[], ylim=(0, 1))
    axes[0].set_ylabel("paraphrases read right")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(HERE / "paraphrases.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["measure", "report"])
    parser.add_argument("folder", nargs="?", default="", metavar="FOLDER")
    options = parser.parse_args()
    if options.command == "measure":
        (HERE / "result.json").write_text(json.dumps(measure(options.folder), indent=1) + "\n")
    report()


if __name__ == "__main__":
    main()
