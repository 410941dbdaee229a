"""The critics that a run makes: of its cameras, from its world model or from other weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from world_model_toy import ONE_CAMERA, TWO_CAMERAS, ToyEpisodes, make_model, tiny_config, toy_normalisation, toy_spec

from worldloop.core.errors import WorldloopError
from worldloop.factory.build import build_critic
from worldloop.factory.config import PolicyConfig
from worldloop.factory.models import Models
from worldloop.training.data_parallel import DataParallel
from worldloop.value.categorical import CategoricalCritic
from worldloop.value.config import KINDS, ValueConfig
from worldloop.value.success_critic import SuccessCritic
from worldloop.value.viva import VivaCritic
from worldloop.world_model.model import VideoWorldModel

MakeModels = Callable[..., Models]


@pytest.fixture
def make_models(tmp_path: Path) -> MakeModels:
    """``make_models(kind, cameras=, ...)``: of a run of two cameras, with a fitted world model at ``fitted``."""

    def make(kind: str, cameras: tuple[str, ...] = (), **value: Any) -> Models:
        config = tiny_config(cameras=cameras)
        models = Models(
            PolicyConfig(), config, ValueConfig(kind, **value), toy_spec(TWO_CAMERAS), 2, tmp_path, DataParallel()
        )
        world_model = make_model(config, TWO_CAMERAS)
        with torch.no_grad():
            for p in world_model.parameters():
                p.add_(0.01)
        models.save_world_model(world_model, "fitted")
        return models

    return make


def weights_of(model: torch.nn.Module, part: str) -> dict[str, torch.Tensor]:
    """The weights of ``model`` that lie in ``part``, by their names in there."""
    return {n.removeprefix(part): value.clone() for n, value in model.state_dict().items() if n.startswith(part)}


def test_viva_starts_from_the_fitted_world_model_or_from_other_weights(make_models: MakeModels) -> None:
    models = make_models("viva")
    fitted = models.load_world_model("fitted").state_dict()
    started = weights_of(models.new_critic(toy_normalisation(), "fitted", seed=0), "world_model.")
    assert started.keys() == fitted.keys()
    assert all(torch.equal(started[name], fitted[name]) for name in fitted)

    models = make_models("viva", from_world_model=False)
    random = weights_of(models.new_critic(toy_normalisation(), "", seed=0), "world_model.")
    assert random.keys() == fitted.keys()
    matrices = [name for name, value in fitted.items() if name.startswith("denoiser.") and value.ndim > 1]
    assert matrices
    assert not any(torch.equal(random[name], fitted[name]) for name in matrices)
    assert torch.equal(random["proprio_mean"], fitted["proprio_mean"]), "proprio is scaled in the same way"


@pytest.mark.parametrize("from_world_model", [True, False])
def test_each_critic_has_weights_of_its_own(make_models: MakeModels, from_world_model: bool) -> None:
    models = make_models("viva", from_world_model=from_world_model)
    first, second, again = (models.new_critic(toy_normalisation(), "fitted", seed=seed) for seed in (0, 1, 0))
    for part, is_equal in (("value_in.weight", False), ("world_model.denoiser.condition.0.weight", from_world_model)):
        weights = [critic.state_dict()[part] for critic in (first, second, again)]
        assert torch.equal(weights[0], weights[1]) == is_equal
        assert torch.equal(weights[0], weights[2])
        assert weights[0].data_ptr() not in (weights[1].data_ptr(), weights[2].data_ptr())


@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_is_of_its_kind_and_reads_what_the_world_model_imagines(make_models: MakeModels, kind: str) -> None:
    critic = make_models(kind, cameras=("above.camera",)).new_critic(toy_normalisation(), "fitted", seed=0)
    assert isinstance(critic, {"categorical": CategoricalCritic, "success": SuccessCritic, "viva": VivaCritic}[kind])
    assert critic.spec.robot.camera_names == ("above.camera",)
    observation = ToyEpisodes(3, cameras=TWO_CAMERAS).first_observation(3)
    values = critic.eval().value(observation)
    assert torch.equal(values, critic.value(observation.with_cameras(["above.camera"])))
    assert make_models(kind).new_critic(toy_normalisation(), "fitted", seed=0).spec.robot.cameras == TWO_CAMERAS


def test_a_missing_world_model_is_named(make_models: MakeModels) -> None:
    with pytest.raises(WorldloopError, match="nowhere does not exist"):
        make_models("viva").new_critic(toy_normalisation(), "nowhere", seed=0)
    make_models("categorical").new_critic(toy_normalisation(), "nowhere", seed=0)


def test_a_critic_is_saved_with_the_settings_of_the_run(make_models: MakeModels) -> None:
    models = make_models("viva", copies="64")
    critic = models.new_critic(toy_normalisation(), "fitted", seed=0).eval()
    assert not models.has("critic")
    models.save_critic(critic, "critic")
    assert models.has("critic")
    loaded = models.load_critic("critic")
    assert isinstance(loaded, VivaCritic)
    assert loaded.config == models.value_config
    observation = ToyEpisodes(3, cameras=TWO_CAMERAS).first_observation(3)
    assert torch.equal(loaded.value(observation), critic.value(observation))


@pytest.mark.parametrize("kind", KINDS)
def test_building_draws_from_its_seed_alone_and_needs_a_world_model_only_for_viva(kind: str) -> None:
    built = []
    world_model = make_model()

    def make_world_model() -> VideoWorldModel:
        built.append(world_model)
        return world_model

    state = torch.get_rng_state()
    critics = [
        build_critic(ValueConfig(kind), toy_spec(ONE_CAMERA), toy_normalisation(), make_world_model, seed=seed)
        for seed in (0, 0, 1)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert len(built) == (3 if kind == "viva" else 0)
    own = [{n: v for n, v in c.state_dict().items() if not n.startswith("world_model.")} for c in critics]
    assert all(torch.equal(own[0][name], own[1][name]) for name in own[0])
    assert not all(torch.equal(own[0][name], own[2][name]) for name in own[0])
