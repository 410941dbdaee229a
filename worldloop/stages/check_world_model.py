"""How far can the world model be trusted? The stage imagines held-out episodes and calibrates the heads on them.

Every validation episode is imagined open loop from its first frame with its recorded actions. Its score is the highest
confirmed success probability; its label is the simulator's outcome. A second pass resets the context to real frames
every few chunks and shows how trust falls with the horizon. Tasks are judged separately, and so are scripted and
on-policy episodes.

The model is good enough in a task if the AUC of its success head reaches ``required_auc`` over whole on-policy
episodes: reinforcement learning needs to tell the policy's successes from its failures. If it does not, the loop fits
again, up to ``max_fits`` fits. After that the policy does not improve in imagination in this task. Nor does it if too
few on-policy episodes of either outcome are held out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from worldloop.core.randomness import make_generator
from worldloop.core.success import Calibrations
from worldloop.evaluation.actions_only import score_actions
from worldloop.evaluation.horizon import Horizon, judge_horizon
from worldloop.evaluation.judgement import WorldModelCheck, judge_world_model
from worldloop.evaluation.open_loop import (
    SOURCES,
    ImaginedEpisodes,
    cut_branches,
    imagine_branches,
    imagine_held_out,
)
from worldloop.evaluation.visual_state import fit_probe
from worldloop.reporting.check import choose_all_videos, describe_checks, make_record, summarise_for_card, write_check
from worldloop.sans.clips import ClipDataset
from worldloop.sans.starts import choose_starts
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.run_state import LoopState
from worldloop.world_model.model import VideoWorldModel


@dataclass(frozen=True)
class Config:
    batch_size: int = 64  # episodes imagined at once
    num_videos: int = 4  # videos in TensorBoard per source and task, half of them the worst judged; 0: none
    max_episodes: int = 400  # most validation episodes per source and task; the latest are used
    reset_every: tuple[int, ...] = (1, 2, 4)  # extra passes: chunks after which the context is reset to real frames
    probe_steps: int = 600  # optimizer steps of the frame probe; 0: no probe, so no figures from it
    probe_batch_size: int = 64  # simulated frames per optimizer step of the probe
    floor_quantile: float = 0.05  # quantile of held-out expected PSNR below which a frame counts as uncertain
    required_auc: float = 0.7  # least AUC of the success head to improve a policy; 0: no rule
    max_fits: int = 2  # most fits per iteration to reach required_auc

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.max_episodes < 1 or self.num_videos < 0:
            raise ValueError("check_world_model: batch_size and max_episodes must be >= 1, num_videos >= 0")
        if any(k < 1 for k in self.reset_every):
            raise ValueError(f"check_world_model.reset_every must be chunks >= 1, got {tuple(self.reset_every)}")
        if self.probe_steps < 0 or self.probe_batch_size < 1:
            raise ValueError("check_world_model: probe_steps must be >= 0 and probe_batch_size >= 1")
        if not 0 <= self.floor_quantile < 1:
            raise ValueError(f"check_world_model.floor_quantile must be in [0, 1), got {self.floor_quantile}")
        if not 0 <= self.required_auc <= 1:
            raise ValueError(f"check_world_model.required_auc must be in [0, 1], got {self.required_auc}")
        if self.max_fits < 1:
            raise ValueError(f"check_world_model.max_fits must be at least 1, got {self.max_fits}")


def takes_part(config: Config, schedule: Schedule) -> bool:
    return not schedule.is_first and schedule.uses_world_model


def run(state: LoopState, config: Config, context: StageContext) -> LoopState:
    """Judge ``state.world_model`` on validation episodes, task by task; set ``calibrations`` and ``trust``."""
    world_model = context.models.load_world_model(state.world_model).to(context.device).for_imagination()
    train, held_out = (context.open_clips(state.dataset, split, world_model.spec) for split in ("train", "validation"))
    spec, reporter = world_model.spec, context.reporter

    probe = None
    if config.probe_steps and spec.landmark_names:
        probe = fit_probe(
            train,
            spec,
            num_steps=config.probe_steps,
            batch_size=config.probe_batch_size,
            generator=make_generator(context.seed, state.iteration, "check_world_model/probe"),
            device=context.device,
            reporter=reporter,
        )

    checks: dict[str, WorldModelCheck] = {}
    for task in spec.task_ids:
        imagined = imagine_held_out(
            world_model,
            held_out,
            task,
            max_episodes=config.max_episodes,
            batch_size=config.batch_size,
            seed=context.seed,
            reporter=reporter,
            folder=context.setup.checkpoint_root,
        )
        checks[task] = judge_world_model(
            imagined,
            {name: judge_horizons(world_model, held_out, own, config, context) for name, own in imagined.items()},
            held_out,
            spec,
            task,
            probe=probe,
            floor_quantile=config.floor_quantile,
            required_auc=config.required_auc,
            actions_only={
                name: score_recorded_actions(train, held_out, task, name, own, context)
                for name, own in imagined.items()
            },
            reads_states=world_model.landmarks is not None,
        )

    videos = choose_all_videos(checks, config.num_videos)
    for line in describe_checks(checks):
        reporter.log(line)
    write_check(reporter, state.iteration, checks, videos, fps=spec.frames_per_second)
    calibrations = Calibrations({task: check.calibration for task, check in checks.items()})
    context.models.save_card(state.world_model, calibrations, summarise_for_card(checks), *choose_starts(train))
    state = state.record(num_fits=state.num_fits, **make_record(checks, videos))
    return replace(state, calibrations=calibrations, trust={task: check.trust for task, check in checks.items()})


def score_recorded_actions(
    train: ClipDataset, held_out: ClipDataset, task: str, source: str, episodes: ImaginedEpisodes, context: StageContext
) -> np.ndarray | None:
    """The floor of ``episodes`` of one source: success logits f [n] from their recorded actions alone."""
    own = train.episode_index(source=SOURCES[source], task=task)
    generator = make_generator(context.seed, "check_world_model/actions_only", task, source)
    return score_actions(train, own, held_out, episodes.branches.episode, generator)


def judge_horizons(
    world_model: VideoWorldModel,
    held_out: ClipDataset,
    episodes: ImaginedEpisodes,
    config: Config,
    context: StageContext,
) -> tuple[Horizon, ...]:
    """Judge the same episodes with the context reset to real frames, once for each entry of ``reset_every``."""
    horizons = []
    for chunks in config.reset_every:
        num_frames = chunks * (context.chunk_length // context.spec.actions_per_frame)
        starts = cut_branches(held_out, episodes.branches.episode, num_frames)
        with context.reporter.progress(len(starts), "branch") as progress:
            branches = imagine_branches(
                world_model,
                held_out,
                starts,
                num_frames,
                batch_size=config.batch_size,
                seed=context.seed,
                on_batch=progress.advance,
                keeps_frames=False,
            )
        horizons.append(judge_horizon(chunks, branches, episodes))
    return tuple(horizons)
