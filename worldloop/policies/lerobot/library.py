"""What is needed of the package `lerobot`, which is imported when a policy of it is built.

A LeRobot policy is described by three JSON objects: its config and its two processor pipelines, as in the files of its
folder. `open_parts` builds it from them, with fresh weights or with those of the folder.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldloop.core.errors import WorldloopError, first_line
from worldloop.policies.lerobot.statistics import Table

STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
_KEY = "policy.lerobot.config"
# Fields of LeRobot's config classes that follow from the run; one that a class does not have is left out.
_FORCED: dict[str, Any] = {
    "device": "cpu",  # the trainer moves the policy; the processors follow it
    "compile_model": False,  # a compiled policy cannot draw its noise by row
    "temporal_ensemble_coeff": None,  # whole chunks are executed
    "pretrained_path": None,
    "pretrained_revision": None,
}
_OURS = ("input_features", "output_features", "n_action_steps", *_FORCED)
# Their `predict_action_chunk` reads a history that their `select_action` keeps, or there is no chunk at all.
_STATEFUL = ("tdmpc", "vqbet", "multi_task_dit", "gaussian_actor", "lingbot_va")
_FILES_NEEDED = ("vlm_model_name", "tokenizer_name", "text_tokenizer_name", "vision_backbone")


@dataclass(frozen=True)
class Features:
    """The shapes of what the policy reads and does, by LeRobot's names; images are (3, height, width)."""

    images: dict[str, tuple[int, ...]]
    state: tuple[int, ...]
    action: tuple[int, ...]

    @property
    def statistics(self) -> dict[str, tuple[int, ...]]:
        """Feature -> the shape of one of its statistics."""
        return dict.fromkeys(self.images, (3, 1, 1)) | {STATE: self.state, ACTION: self.action}


@dataclass(frozen=True)
class Description:
    """A LeRobot policy as JSON: config.json, and the processors' files; ``None``: those that LeRobot makes anew."""

    config: dict[str, Any]
    preprocessor: dict[str, Any] | None = None
    postprocessor: dict[str, Any] | None = None

    @property
    def type(self) -> str:
        return str(self.config.get("type", ""))


@dataclass
class Parts:
    """A LeRobot policy (`PreTrainedPolicy`) and its two processor pipelines."""

    policy: nn.Module
    preprocessor: Any
    postprocessor: Any

    @property
    def config(self) -> Any:
        return self.policy.config

    def describe(self) -> dict[str, Any]:
        """The JSON objects from which `open_parts` builds the same policy, without its weights and statistics."""
        import draccus
        from lerobot.configs import PreTrainedConfig

        processors = {PREPROCESSOR: self.preprocessor, POSTPROCESSOR: self.postprocessor}
        described = {name: _without_state(pipeline.get_config()) for name, pipeline in processors.items()}
        described["config"] = draccus.encode(self.config, PreTrainedConfig)
        return json.loads(json.dumps(described))  # type: ignore[no-any-return]

    def use_statistics(self, table: Table) -> None:
        """Let both processors normalise by ``table``."""
        from lerobot.processor.normalize_processor import hotswap_stats

        self.preprocessor = hotswap_stats(self.preprocessor, table)
        self.postprocessor = hotswap_stats(self.postprocessor, table)

    def read_statistics(self) -> Table:
        """Those that the processors hold."""
        table: Table = {}
        for step in (*self.preprocessor.steps, *self.postprocessor.steps):
            if _is_normaliser(step):
                for feature, values in step._tensor_stats.items():
                    table.setdefault(feature, {}).update(values)
        return table

    def follow(self, device: torch.device) -> None:
        """Let the preprocessor put its tensors on ``device``, where the policy is."""
        from lerobot.processor import DeviceProcessorStep

        if self.config.device == device.type:
            return
        self.config.device = device.type
        for step in self.preprocessor.steps:
            if isinstance(step, DeviceProcessorStep):
                step.device, step.tensor_device, step.non_blocking = device.type, device, device.type == "cuda"

    def save(self, folder: Path) -> None:
        """Write what LeRobot loads: config, weights and processors, which put their tensors on the CPU."""
        device = next(self.policy.parameters()).device
        self.follow(torch.device("cpu"))
        self.policy.save_pretrained(folder)  # type: ignore[operator]
        self.preprocessor.save_pretrained(folder, config_filename=f"{PREPROCESSOR}.json")
        self.postprocessor.save_pretrained(folder, config_filename=f"{POSTPROCESSOR}.json")
        self.follow(device)


def describe_fresh(policy_type: str, values: Mapping[str, Any], chunk_length: int) -> Description:
    """A policy of ``policy_type`` with sizes ``values``; by default its chunks are as long as ``chunk_length``.

    A horizon that must divide by a power of two is the next one that does. Raises `WorldloopError` for a type or a
    field that LeRobot does not know.
    """
    names = _list_fields(policy_type)
    defaults: dict[str, Any] = {"n_obs_steps": 1, "chunk_size": chunk_length, "do_mask_loss_for_padding": True}
    if "horizon" in names:
        config_class = _find_config_class(policy_type)
        factor = 2 ** len(values.get("down_dims", getattr(config_class, "down_dims", ())))
        defaults["horizon"] = -(-chunk_length // factor) * factor
    config = {key: value for key, value in defaults.items() if key in names}
    return Description(config | {"type": policy_type} | _check_values(policy_type, values))


def read_folder(folder: Path, values: Mapping[str, Any]) -> Description:
    """The policy in ``folder``, a folder that LeRobot wrote, with the fields ``values`` of its config changed."""
    files = [folder / "config.json", folder / "model.safetensors"]
    files += [folder / f"{name}.json" for name in (PREPROCESSOR, POSTPROCESSOR)]
    for file in files:
        if not file.is_file():
            raise WorldloopError(
                f"policy.lerobot.path: {folder} has no {file.name}: give a folder that LeRobot wrote, e.g. "
                "checkpoints/last/pretrained_model; LeRobot's migrate_policy_normalization adds missing processors"
            )
    try:
        config, preprocessor, postprocessor = (json.loads(file.read_text()) for file in (files[0], *files[2:]))
        policy_type = str(config["type"])
    except (ValueError, KeyError, TypeError) as error:
        raise WorldloopError(f"policy.lerobot.path: {folder} is not what LeRobot writes ({error})") from error
    if config.get("use_peft"):
        raise WorldloopError(f"policy.lerobot.path: {folder} holds a PEFT adapter: merge it into its policy first")
    changes = _check_values(policy_type, values)
    for entry in preprocessor["steps"]:
        settings = entry.get("config", {})
        if "tokenizer_name" in settings and settings["tokenizer_name"] == config.get("vlm_model_name"):
            settings["tokenizer_name"] = changes.get("vlm_model_name", settings["tokenizer_name"])
    # Diffusion's default would learn from padding.
    masks = {"do_mask_loss_for_padding": True} if "do_mask_loss_for_padding" in config else {}
    return Description(config | masks | changes, preprocessor, postprocessor)


def open_parts(
    description: Description, features: Features, table: Table, chunk_length: int, weights: Path | None
) -> Parts:
    """Build the policy that ``description`` describes, and its processors, which normalise by ``table``.

    ``weights``: the folder to load weights from; ``None``: fresh ones. An empty ``table``: the processors keep the
    statistics of that folder. Raises `WorldloopError` if LeRobot cannot build it, or if it cannot work here.
    """
    for pipeline in (description.preprocessor, description.postprocessor):
        _check_steps(pipeline)
    with _explained(description.type, description.config), redirect_stdout(io.StringIO()):  # LeRobot prints a lot
        config = _make_config(description, features, chunk_length)
        _check_config(config, chunk_length)
        policy = _make_policy(config, weights)
        preprocessor, postprocessor = _make_processors(description, config, table, weights)
    for step in (*preprocessor.steps, *postprocessor.steps):
        if step.state_dict() and not _is_normaliser(step):
            raise WorldloopError(
                f"LeRobot's {config.type} has the processor {type(step).__name__} with a state of its own, "
                "which no checkpoint here can keep"
            )
    return Parts(policy, preprocessor, postprocessor)


def _make_config(description: Description, features: Features, chunk_length: int) -> Any:
    """An instance of LeRobot's config class."""
    import draccus
    from lerobot.configs import FeatureType, PolicyFeature

    policy_type = description.type
    config_class, names = _find_config_class(policy_type), _list_fields(policy_type)
    values = {key: value for key, value in description.config.items() if key != "type"}
    forced = _FORCED | {"n_action_steps": min(chunk_length, values.get("chunk_size", chunk_length))}
    values |= {key: value for key, value in forced.items() if key in names}
    features_of_folder = ("input_features", "output_features")
    values = {key: _resolve(key, value) for key, value in values.items() if key not in features_of_folder}
    config = draccus.decode(config_class, values)
    config.input_features = {
        name: PolicyFeature(FeatureType.VISUAL, shape) for name, shape in features.images.items()
    } | {STATE: PolicyFeature(FeatureType.STATE, features.state)}
    config.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, features.action)}
    return config


def _make_policy(config: Any, weights: Path | None) -> nn.Module:
    """A policy with fresh weights, or with those of the folder ``weights``."""
    from lerobot.policies.factory import get_policy_class
    from lerobot.policies.pretrained import PreTrainedPolicy

    policy_class: Any = get_policy_class(config.type)
    if weights is None:
        return policy_class(config)  # type: ignore[no-any-return]
    if hasattr(config, "pretrained_backbone_weights"):
        config.pretrained_backbone_weights = None  # those of the folder replace them
    policy: nn.Module = policy_class.from_pretrained(weights, config=config)
    if policy_class.from_pretrained.__func__ is PreTrainedPolicy.from_pretrained.__func__:
        _require_all_weights(policy, weights)
    return policy


def _require_all_weights(policy: nn.Module, folder: Path) -> None:
    """Raise `WorldloopError` if a trainable weight is not in the folder: LeRobot leaves it random without a word."""
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", framework="pt") as file:
        held = set(file.keys())
    state = policy.state_dict(keep_vars=True)
    loaded = {tensor.data_ptr() for name, tensor in state.items() if name in held}
    missing = [
        name
        for name, tensor in state.items()
        if name not in held and tensor.requires_grad and tensor.data_ptr() not in loaded
    ]
    if missing:
        raise WorldloopError(
            f"policy.lerobot.path: {folder} lacks {len(missing)} weights of its config, e.g. {missing[0]}: "
            f"do the fields in {_KEY} fit its weights?"
        )


def _make_processors(description: Description, config: Any, table: Table, weights: Path | None) -> tuple[Any, Any]:
    """The pre- and the postprocessor: LeRobot's own for ``config``, or those that ``description`` tells."""
    from lerobot.policies.factory import make_pre_post_processors

    if description.preprocessor is None or description.postprocessor is None:
        return make_pre_post_processors(config, dataset_stats=table)  # type: ignore[no-any-return]
    features = {**config.input_features, **config.output_features}
    changes: dict[str, dict[str, Any]] = {
        "device_processor": {"device": config.device},
        "rename_observations_processor": {"rename_map": {}},
        "normalizer_processor": {"features": features, "norm_map": config.normalization_mapping},
    }
    unnormalise = {"features": config.output_features, "norm_map": config.normalization_mapping}
    changes_after: dict[str, dict[str, Any]] = {"unnormalizer_processor": unnormalise}
    if table:
        changes["normalizer_processor"]["stats"] = changes_after["unnormalizer_processor"]["stats"] = table
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pipelines = ((PREPROCESSOR, description.preprocessor), (POSTPROCESSOR, description.postprocessor))
        for name, pipeline in pipelines:
            (folder / f"{name}.json").write_text(json.dumps(_without_state(pipeline) if table else pipeline))
        for file in weights.glob("policy_*.safetensors") if weights and not table else ():
            (folder / file.name).symlink_to(file.resolve())
        return make_pre_post_processors(  # type: ignore[no-any-return]
            config,
            pretrained_path=str(folder),
            preprocessor_overrides=_only_present(changes, description.preprocessor),
            postprocessor_overrides=_only_present(changes_after, description.postprocessor),
        )


def _check_steps(pipeline: dict[str, Any] | None) -> None:
    """Raise `WorldloopError` if a pipeline's JSON names a class that is not LeRobot's: LeRobot would import it."""
    for entry in () if pipeline is None else pipeline["steps"]:
        if "registry_name" not in entry and not str(entry.get("class")).startswith("lerobot."):
            raise WorldloopError(
                f"policy.lerobot: a processor names the class {entry.get('class')!r}, which is not part of LeRobot and "
                "could run any code: leave that step out of policy_preprocessor.json or policy_postprocessor.json"
            )


def _only_present(changes: dict[str, dict[str, Any]], pipeline: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The ``changes`` of steps that ``pipeline`` has; LeRobot raises for others."""
    present = {entry.get("registry_name") for entry in pipeline["steps"]}
    return {name: change for name, change in changes.items() if name in present}


def _without_state(pipeline: dict[str, Any]) -> dict[str, Any]:
    steps = [{key: value for key, value in entry.items() if key != "state_file"} for entry in pipeline["steps"]]
    return pipeline | {"steps": steps}


def _is_normaliser(step: Any) -> bool:
    from lerobot.processor import NormalizerProcessorStep, UnnormalizerProcessorStep

    return isinstance(step, NormalizerProcessorStep | UnnormalizerProcessorStep)


def _check_config(config: Any, chunk_length: int) -> None:
    """Raise `WorldloopError` unless a policy of ``config`` sees only the present and acts in long enough chunks."""
    where = f"LeRobot's {config.type}"
    if config.type in _STATEFUL or config.reward_delta_indices is not None or not config.action_delta_indices:
        raise WorldloopError(f"{where} makes no chunk of actions from one observation: it cannot act here")
    if config.observation_delta_indices not in (None, [0]):
        raise WorldloopError(
            f"{where} looks back (n_obs_steps is {config.n_obs_steps}), and an observation holds the proprio of now "
            f"alone: set {_KEY}.n_obs_steps=1, with weights trained so"
        )
    if (length := len(config.action_delta_indices)) < chunk_length:
        name = "horizon" if hasattr(config, "horizon") else "chunk_size"
        raise WorldloopError(
            f"{where} makes chunks of {length} actions, fewer than chunk_length {chunk_length}: lower chunk_length"
            f", or raise {_KEY}.{name}"
        )


def _check_values(policy_type: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values``; `WorldloopError` for a field that ``policy_type`` does not have, or that follows from the run."""
    names = _list_fields(policy_type)
    for name in values:
        if name in _OURS:
            raise WorldloopError(f"{_KEY}.{name} follows from the run: leave it out")
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(names))}"
            raise WorldloopError(f"{_KEY}.{name} is no field of LeRobot's {policy_type}; {hint}")
    return dict(values)


def _find_config_class(policy_type: str) -> Any:
    """LeRobot's config class of ``policy_type``."""
    try:
        import lerobot.policies.factory  # noqa: F401 (registers all types)
        from lerobot.configs import PreTrainedConfig
    except ImportError as error:
        raise WorldloopError(
            f"policy.kind=lerobot needs lerobot ({first_line(error)}): pip install -e '.[lerobot]' in the clone"
        ) from error
    known = PreTrainedConfig.get_known_choices()
    if policy_type not in known:
        raise WorldloopError(f"LeRobot has no policy {policy_type!r}: set policy.lerobot.type to {', '.join(known)}")
    return PreTrainedConfig.get_choice_class(policy_type)


def _list_fields(policy_type: str) -> list[str]:
    return [field.name for field in dataclasses.fields(_find_config_class(policy_type))]


def _resolve(key: str, value: Any) -> Any:
    """``value``, absolute if it is a folder here that the policy needs: a relative path breaks elsewhere."""
    if key in _FILES_NEEDED and isinstance(value, str) and (folder := Path(os.path.expanduser(value))).is_dir():
        return str(folder.resolve())
    return value


@contextmanager
def _explained(policy_type: str, values: Mapping[str, Any]) -> Iterator[None]:
    """Within this context, an error of LeRobot's or of a library below it becomes one `WorldloopError`."""
    try:
        yield
    except WorldloopError:
        raise
    except ImportError as error:
        raise WorldloopError(
            f"LeRobot's {policy_type} needs a package that is not installed ({first_line(error)}): "
            "pip install -e '.[lerobot]' in the clone, or LeRobot's own extra for it"
        ) from error
    except OSError as error:
        needed = [f"{key}={values[key]}" for key in (*_FILES_NEEDED, "pretrained_backbone_weights") if values.get(key)]
        raise WorldloopError(
            f"LeRobot's {policy_type} needs files that cannot be had ({first_line(error)[:160]}): download them where "
            f"there is a network, or name a folder, or none, in {_KEY} ({', '.join(needed) or 'defaults'})"
        ) from error
    except Exception as error:  # LeRobot, draccus and transformers raise many kinds for settings that do not fit
        cause = error.__cause__ or error  # draccus wraps what is wrong
        reason = first_line(error) if cause is error else f"{first_line(error)}: {first_line(cause)}"
        raise WorldloopError(
            f"LeRobot cannot build {policy_type} with these settings ({type(cause).__name__}: {reason}): "
            "change those in policy.lerobot"
        ) from error
