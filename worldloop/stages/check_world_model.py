"""How far can the world model be trusted? Held-out episodes are imagined and compared; calibrates the success head.

Every validation episode is imagined open loop from its first frame with its recorded actions. Its score is the highest
success probability on the way; its label is the simulator's. The same again with the context reset to reality every few
chunks tells how trust falls with the horizon. Scripted and on-policy episodes are reported apart.

The figure that says whether the model is good enough is the AUC of its success head over whole on-policy episodes:
reinforcement learning lives on telling the policy's successes from its failures, over the whole horizon. Below
``required_auc`` the loop fits on, up to ``max_fits`` times, and then collects instead of improving the policy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from worldloop.core.randomness import make_generator
from worldloop.evaluation.horizon import Horizon, judge_horizon
from worldloop.evaluation.judgement import judge_world_model
from worldloop.evaluation.open_loop import (
    SOURCES,
    ImaginedEpisodes,
    cut_branches,
    imagine_branches,
    imagine_episodes,
)
from worldloop.evaluation.visual_state import fit_probe
from worldloop.reporting.check import choose_all_videos, describe_check, make_record, summarise_for_card, write_check
from worldloop.stages.context import Schedule, StageContext
from worldloop.storage.card import choose_starts
from worldloop.storage.run_state import LoopState

NAME = "check_world_model"


@dataclass(frozen=True)
class Config:
    batch_size: int = 64  # episodes imagined at once
    num_videos: int = 4  # imagined | simulated pairs in TensorBoard, per source: half of them the worst judged
    max_episodes: int = 400  # validation episodes per source, at most (the latest)
    reset_every: tuple[int, ...] = (1, 2, 4)  # chunks after which the context is reset to reality, besides never
    probe_steps: int = 600  # optimizer steps of the frame probe; 0: no state error, visual alignment, action following
    probe_batch_size: int = 64  # simulated frames per step
    floor_quantile: float = 0.05  # of the held-out frames' expected PSNR; what is lower is not trusted in imagination
    required_auc: float = 0.7  # of the success head on held-out on-policy episodes, to improve a policy; 0: no rule
    max_fits: int = 2  # fits per iteration to reach it

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
    """Judge ``state.world_model`` on all validation episodes; decides ``calibration`` and ``trust``."""
    world_model = context.models.load_world_model(state.world_model).to(context.device).for_imagination()
    train, held_out = (context.open_clips(state.dataset, split) for split in ("train", "validation"))
    spec, reporter, seed, batch_size = context.spec, context.reporter, context.seed, config.batch_size

    probe = None
    if config.probe_steps and spec.landmarks:
        probe = fit_probe(
            train,
            spec.landmarks,
            confirm_frames=spec.success_confirm_frames,
            num_steps=config.probe_steps,
            batch_size=config.probe_batch_size,
            generator=make_generator(seed, state.iteration, "check_world_model/probe"),
            device=context.device,
            reporter=reporter,
        )

    imagined: dict[str, ImaginedEpisodes] = {}
    horizons: dict[str, tuple[Horizon, ...]] = {}
    for name, sources in SOURCES.items():
        index = held_out.episode_index(source=sources)[-config.max_episodes :]
        if not len(index):
            continue
        with reporter.progress(len(index), "episode") as progress:
            imagined[name] = imagine_episodes(
                world_model, held_out, index, batch_size=batch_size, seed=seed, on_batch=progress.advance
            )
        horizons[name] = ()
        for chunks in config.reset_every:
            num_frames = chunks * (context.chunk_length // spec.actions_per_frame)
            starts = cut_branches(held_out, index, num_frames)
            with reporter.progress(len(starts), "branch") as progress:
                branches = imagine_branches(
                    world_model,
                    held_out,
                    starts,
                    num_frames,
                    batch_size=batch_size,
                    seed=seed,
                    on_batch=progress.advance,
                )
            horizons[name] += (judge_horizon(chunks, branches, imagined[name]),)

    check = judge_world_model(
        imagined,
        horizons,
        held_out,
        probe=probe,
        landmarks=spec.landmarks,
        floor_quantile=config.floor_quantile,
        required_auc=config.required_auc,
    )
    videos = choose_all_videos(check, config.num_videos)
    for line in describe_check(check):
        reporter.log(line)
    with reporter.writer(NAME, purge_step=state.iteration) as writer:
        write_check(writer, state.iteration, check, videos, fps=spec.hz / spec.actions_per_frame)
    context.models.save_card(state.world_model, check.calibration, summarise_for_card(check), choose_starts(train))
    state = state.record(num_fits=state.num_fits, **make_record(check, videos))
    return replace(state, calibration=check.calibration, trust=check.trust)
