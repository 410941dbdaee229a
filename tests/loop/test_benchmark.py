"""`worldloop benchmark-ood` on the toy simulator: conditions, the held-out side, going on, and refusals."""

import json
import shutil
from pathlib import Path

import pytest

from worldloop.config.loading import load_config
from worldloop.core.errors import WorldloopError
from worldloop.loop import benchmark
from worldloop.loop.run import make_context, run_loop
from worldloop.reporting.generalisation import format_conditions, plot_conditions
from worldloop.reporting.progress import SilentDisplay
from worldloop.rollout.sides import begins_on, find_side
from worldloop.runtime.inline import InlineRuntime
from worldloop.simulators.toy.simulator import ToySimulator
from worldloop.stages import seed_dataset

DEBUG = Path(__file__).resolve().parents[2] / "configs/debug.yaml"
STATES = 12


@pytest.fixture(scope="module")
def one_sided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Iteration 0 of a loop whose successes all begin on the right."""
    root = tmp_path_factory.mktemp("sides")
    changes = ["runtime=inline", f"run_root={root}", "num_iterations=0", "seed_dataset.held_out_side=left"]
    return run_loop(load_config(DEBUG, [*changes, "clone_policy.num_steps=20", "evaluate_policy.num_states=5"])).path


def test_no_success_of_the_held_out_side_is_recorded(one_sided: Path) -> None:
    config = load_config(one_sided / "config.yaml")
    context = make_context("seed_dataset", config, one_sided, InlineRuntime(0, 0, SilentDisplay()), SilentDisplay())
    cache = context.open_cache("v000")
    episodes = [cache.episode(e) for e in range(len(cache))]
    is_left = [begins_on(e.sim_state[0], e.meta.task, context.spec, "left") for e in episodes]
    assert sum(is_left) > 5, "play on the held-out side stays"
    assert not any(e.is_success for e, left in zip(episodes, is_left, strict=True) if left)
    experts = [left for e, left in zip(episodes, is_left, strict=True) if e.meta.variant == "expert"]
    assert len(experts) >= 0.9 * config.section(seed_dataset.Config).episodes["expert"]
    assert not any(experts)
    assert benchmark.count_held_out_successes(context, "left") == 0
    assert benchmark.count_held_out_successes(context, "right") > 5
    there = benchmark.choose_states(context, STATES, "left")
    assert len(there) == STATES
    assert find_side(there, context.spec, "left").all()
    assert not find_side(there, context.spec, "right").any()
    assert there.split == "evaluation"


def test_each_condition_is_scored_once(one_sided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = []
    score = benchmark.score_condition
    monkeypatch.setattr(benchmark, "score_condition", lambda *a, **k: scored.append(k["name"]) or score(*a, **k))
    result = benchmark.run_benchmark(one_sided, "", STATES, None, SilentDisplay())
    assert scored == ["in distribution", "position"]
    assert result["policy"] == "checkpoints/iteration_000/policy"
    for condition in result["conditions"].values():
        assert condition["success"]["n"] == STATES
        assert condition["expert"]["rate"] > 0.8
        assert condition["transit"] is None, "the toy's landmarks have two dimensions"
    stored = json.loads((one_sided / "benchmark_ood/iteration_000_policy_12.json").read_text())
    assert stored["conditions"] == result["conditions"]
    scored.clear()
    assert benchmark.run_benchmark(one_sided, "", STATES, None, SilentDisplay()) == result
    assert scored == []
    stored["conditions"].pop("position")
    (one_sided / "benchmark_ood/iteration_000_policy_12.json").write_text(json.dumps(stored))
    assert benchmark.run_benchmark(one_sided, "", STATES, None, SilentDisplay()) == result
    assert scored == ["position"], "an interrupted benchmark goes on"
    scored.clear()
    benchmark.run_benchmark(one_sided, "", 3, None, SilentDisplay())
    assert scored == ["in distribution", "position"], "of other states nothing is known"
    scored.clear()
    assert (
        benchmark.run_benchmark(one_sided, "checkpoints/iteration_000/policy/", STATES, None, SilentDisplay()) == result
    )
    assert scored == [], "they are kept beside"
    lines = format_conditions(result).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert "training has 0 successes that begin left, where position is tested" in lines
    picture = plot_conditions(result, tmp_path / "plot.png")
    assert picture is not None
    assert picture.stat().st_size > 1000


def test_a_variation_changes_the_simulator_alone(one_sided: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The states are those of the run; a simulator that cannot vary has no variation."""
    seen = []
    monkeypatch.setattr(ToySimulator, "VARIATIONS", ("fog",), raising=False)
    monkeypatch.setattr(benchmark, "vary_simulator", lambda config, name: seen.append(name) or config)
    result = benchmark.run_benchmark(one_sided, "", 4, ["fog"], SilentDisplay())
    assert seen[-3:] == ["", "", "fog"]
    assert set(result["conditions"]) >= {"fog"}


@pytest.mark.parametrize(
    ("policy", "variations", "message"),
    [
        ("checkpoints/nothing", None, "has no policy 'checkpoints/nothing'"),
        ("", ["smoke"], "unknown variation 'smoke'; this simulator has: none"),
    ],
)
def test_what_is_not_there_is_named(one_sided: Path, policy: str, variations: list[str] | None, message: str) -> None:
    with pytest.raises(WorldloopError, match=message):
        benchmark.run_benchmark(one_sided, policy, 3, variations, SilentDisplay())


def test_only_a_run_can_be_tested(tmp_path: Path) -> None:
    with pytest.raises(WorldloopError, match="is no run directory"):
        benchmark.run_benchmark(tmp_path, "", 3, None, SilentDisplay())


def test_a_run_that_cannot_be_written_stops_before_the_first_condition(
    one_sided: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "score_condition", lambda *_, **__: pytest.fail("a condition was scored"))
    run = shutil.copytree(one_sided, tmp_path / "run")
    shutil.rmtree(run / "benchmark_ood", ignore_errors=True)
    (run / "benchmark_ood").touch()
    with pytest.raises(WorldloopError, match=r"cannot write .*/benchmark_ood"):
        benchmark.run_benchmark(run, "", 3, None, SilentDisplay())
