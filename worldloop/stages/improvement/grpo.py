"""A round of GRPO inside the world model."""

from __future__ import annotations

from functools import partial

from worldloop.core.errors import WorldloopError
from worldloop.core.interfaces import LikelihoodPolicy
from worldloop.core.success import Calibrations
from worldloop.rl.grpo import GrpoObjective
from worldloop.stages.context import StageContext
from worldloop.stages.improvement.config import NAME, ImprovementConfig
from worldloop.stages.improvement.groups import open_groups
from worldloop.stages.improvement.rounds import count_steps, divide_steps
from worldloop.storage.run_state import LoopState
from worldloop.training.optimizer import Optimizer
from worldloop.training.trainer import Trainer
from worldloop.value.critic import value_as_return


def improve_by_grpo(
    state: LoopState, config: ImprovementConfig, context: StageContext, tasks: tuple[str, ...], path: str
) -> LoopState:
    """One round of GRPO in ``tasks`` from ``state.newest``, into the checkpoint ``path``; returns its figures."""
    policy, reference = (load_likelihood_policy(start, config, context) for start in (state.newest, state.start))
    paths = state.critics if config.uses_value else ()
    critics = [context.models.load_critic(path).to(context.device) for path in paths]
    setup = context.setup
    key = (context.seed, state.iteration, NAME, state.num_rounds)
    generators = setup.make_generators(*key)
    num_groups = config.groups_per_update // setup.num_microbatches
    groups = open_groups(policy, state, config, context, tasks, key, setup, generators, num_groups=num_groups)
    done, end = divide_steps(config)[state.num_rounds : state.num_rounds + 2]
    trainer = Trainer(
        policy,
        partial(Optimizer, learning_rate=config.learning_rate, num_steps=None, weight_decay=0.0, warmup_steps=4),
        setup,
        context.reporter,
        name=NAME,
        unit="update",
        first_step=count_steps(state, config),
        ema_decay=config.ema_decay,
    )
    objective = GrpoObjective(
        policy,
        reference.eval(),
        config,
        groups.imagine,
        generators,
        calibrations=state.calibrations or Calibrations(),
        num_microbatches=setup.num_microbatches,
        data_parallel=setup.data_parallel,
        device=context.device,
        value=partial(value_as_return, critics) if critics else None,
    )
    context.models.save_policy(trainer.fit(objective, end - done), path)
    setup.drop_checkpoint(NAME)
    first, last = objective.history.first_success, objective.history.last_success
    context.reporter.log(f"imagined success {first:.3f} -> {last:.3f} over {end - done} updates")
    before = state.recorded("imagined_success_in_training", {"first_update": first})
    return state.record(
        imagined_success_in_training=before | {"last_update": last},
        imagined_frames=state.recorded("imagined_frames", 0) + int(objective.history.num_frames),
    )


def load_likelihood_policy(path: str, config: ImprovementConfig, context: StageContext) -> LikelihoodPolicy:
    policy = context.models.load_policy(path).to(context.device)
    if not isinstance(policy, LikelihoodPolicy):
        raise WorldloopError(
            f"improve_policy.method grpo needs exact log-probabilities, and {type(policy).__name__} is no "
            "LikelihoodPolicy: use improve_policy.method=imitate_imagined, or give it log_prob"
        )
    policy.temperature = config.temperature
    return policy
