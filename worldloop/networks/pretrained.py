"""Frozen networks of the package `transformers`: sentence encoders and vision backbones, from a folder or the Hub.

Their weights are in no checkpoint and no optimizer. A checkpoint keeps where they are and which version they are
(`Source`). A process loads each once, however many policies read it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldloop.core.errors import WorldloopError, first_line
from worldloop.core.files import hash_folder
from worldloop.core.hub import HUB_ADDRESS, fetch_snapshot
from worldloop.networks.instruction import TextProjection

_HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_MIN_SPREAD = 1e-3  # of unit vectors; less is one instruction in several spellings
_IMAGES_AT_ONCE = 64  # images per pass of a backbone, to bound memory


@dataclass(frozen=True)
class Source:
    """Where a pretrained network is.

    - ``setting``: the setting that named it; ``address``: its absolute folder, or hf://owner/name@commit
    - ``folder``: where its files are on this machine; ``version``: the commit, or a hash of the folder's files
    """

    setting: str
    address: str
    folder: str
    version: str


def find_source(setting: str, address: str, known_version: str = "") -> Source:
    """The network at ``address``, a folder or hf://owner/name@revision; what is on the Hub is downloaded once.

    Raises `WorldloopError` if it is not there, or if its version is not ``known_version`` ("": any is right).
    """
    if (name := HUB_ADDRESS.fullmatch(address)) is not None:
        folder = fetch_snapshot(name["name"], name["revision"], _HUB_FILES)
        source = Source(setting, f"hf://{name['name']}@{folder.name}", str(folder), folder.name)
    else:
        folder = Path(os.path.expanduser(address)).resolve()
        if not (folder / "config.json").is_file():
            raise WorldloopError(
                f"{setting} {address} is no folder with a config.json: give one that transformers' save_pretrained "
                "wrote, or hf://owner/name@revision"
            )
        source = Source(setting, str(folder), str(folder), hash_folder(folder))
    if known_version and source.version != known_version:
        raise WorldloopError(
            f"{setting} {source.address} is not what the policy has learned with (version {source.version[:12]}, then "
            f"{known_version[:12]}): put it back as it was, or clone the policy anew"
        )
    return source


class SentenceEncoder:
    """Sentences -> unit vectors f32 [dim], as the package sentence-transformers computes them. Frozen, in fp32.

    The last hidden states are averaged over the sentence's tokens, or the first is taken if the folder's
    ``1_Pooling/config.json`` says so. A sentence is encoded alone and once, so its vector depends on nothing else.
    """

    def __init__(self, source: Source) -> None:
        import transformers

        folder = Path(source.folder)
        self._takes_first = _takes_first_token(source, folder)
        with _explained(source, "a sentence encoder"):
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
            self._model = _load_model(folder)
            limit = getattr(self._model.config, "max_position_embeddings", None) or self._tokenizer.model_max_length
            self._max_length = int(min(limit, self._tokenizer.model_max_length))
            self._known: dict[str, Tensor] = {}
            self.dim = len(self.encode(""))

    def encode(self, text: str) -> Tensor:
        """The unit vector of ``text``, on the CPU. It is cached: do not modify it."""
        if text not in self._known:
            self._known[text] = self._compute(text)
        return self._known[text]

    @torch.no_grad()
    def _compute(self, text: str) -> Tensor:
        tokens = self._tokenizer(text, truncation=True, max_length=self._max_length, return_tensors="pt")
        with torch.autocast("cpu", enabled=False):
            hidden = self._model(**tokens).last_hidden_state[0]  # [num_tokens, dim]
        pooled = hidden[0] if self._takes_first else hidden.mean(dim=0)
        return torch.nn.functional.normalize(pooled, dim=0)


class VisionBackbone:
    """Images -> feature maps, the last hidden state of a vision model. Frozen.

    Images are resized to the square that the model's own processor asks for, not cropped, and normalised by it.
    ``channels``, ``height`` and ``width`` are those of a feature map.
    """

    def __init__(self, source: Source) -> None:
        import transformers

        folder = Path(source.folder)
        with _explained(source, "a vision backbone with an image processor"):
            self._processor: Any = transformers.AutoImageProcessor.from_pretrained(folder)
            model = _load_model(folder)
            self._model: Any = getattr(model, "vision_model", model)  # of CLIP or SigLIP only its eyes
            self._side = _find_side(self._processor)
            self.channels, self.height, self.width = self(torch.zeros(1, 8, 8, 3, dtype=torch.uint8)).shape[1:]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """u8 [..., h, w, 3] -> f32 [..., channels, height, width], on the images' device."""
        flat = images.flatten(0, -4)
        self._model.to(flat.device)
        return torch.cat([self._compute(part) for part in flat.split(_IMAGES_AT_ONCE)]).unflatten(0, images.shape[:-3])

    def _compute(self, images: Tensor) -> Tensor:
        pixel_values = self._prepare(images)
        hidden = self._model(pixel_values=pixel_values).last_hidden_state.float()
        return hidden if hidden.ndim == 4 else _arrange(hidden, pixel_values, self._model.config)

    def _prepare(self, images: Tensor) -> Tensor:
        """u8 [N, h, w, 3] -> f32 [N, 3, side, side], resized and normalised as the processor says, but not cropped."""
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional

        processor, device = self._processor, images.device
        kinds = {2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}  # numbers of PIL
        kind = kinds[int(processor.resample)]
        pixels = functional.resize(images.movedim(-1, 1), [self._side] * 2, interpolation=kind, antialias=True).float()
        if processor.do_rescale:
            pixels = pixels * processor.rescale_factor
        if processor.do_normalize:
            mean, std = (
                torch.tensor(values, device=device)[:, None, None]
                for values in (processor.image_mean, processor.image_std)
            )
            pixels = (pixels - mean) / std
        return pixels


@lru_cache(maxsize=4)
def open_sentence_encoder(source: Source) -> SentenceEncoder:
    """The encoder at ``source``, loaded once per process. Raises `WorldloopError` if it is none."""
    return SentenceEncoder(source)


@lru_cache(maxsize=4)
def open_vision_backbone(source: Source) -> VisionBackbone:
    """The backbone at ``source``, loaded once per process. Raises `WorldloopError` if it is none."""
    return VisionBackbone(source)


class SentenceProjection(TextProjection):
    """The vectors of ``encoder``.

    Vectors of sentences about one scene are nearly the same. So the mean over ``known``, the tasks' instructions, is
    subtracted first, and their root mean square distance from it is scaled to one. Only the projection learns.
    ``encoder`` is no submodule: it has no part in state dict and parameters.
    """

    centre: Tensor
    contrast: Tensor

    def __init__(self, encoder: SentenceEncoder, dim: int, known: Iterable[str]) -> None:
        super().__init__(encoder.dim, dim)
        self._encoder = (encoder,)
        vectors = torch.stack([encoder.encode(text) for text in dict.fromkeys(known)])
        spread = (vectors - vectors.mean(dim=0)).square().sum(dim=1).mean().sqrt()
        self.register_buffer("centre", vectors.mean(dim=0))
        self.register_buffer("contrast", spread if spread > _MIN_SPREAD else torch.ones(()))

    def read(self, text: str) -> Tensor:
        return (self._encoder[0].encode(text).to(self.centre) - self.centre) / self.contrast


def _load_model(folder: Path) -> Any:
    """The model in ``folder``, frozen, in fp32; nothing is unpickled and no code of the folder runs.

    Raises ``ValueError`` if weights are missing, which transformers would leave random. Poolers may be: they are not
    used.
    """
    import transformers
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # no report of what is expected
    logging.disable_progress_bar()
    try:
        model, found = transformers.AutoModel.from_pretrained(
            folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    finally:
        logging.set_verbosity(before)
        logging.enable_progress_bar()
    missing = [name for name in sorted(found["missing_keys"]) if "pooler" not in name]
    if missing:
        raise ValueError(f"its weights lack {len(missing)} of its config, e.g. {missing[0]}")
    return model.eval().requires_grad_(False)


def _takes_first_token(source: Source, folder: Path) -> bool:
    """How the folder says that a sentence's hidden states are pooled. Raises `WorldloopError` for another way."""
    modules, pooling = folder / "modules.json", folder / "1_Pooling" / "config.json"
    with _explained(source, "a sentence encoder"):
        entries = json.loads(modules.read_text()) if modules.is_file() else []
        kinds = [str(entry["type"]).rsplit(".", 1)[-1] for entry in entries]
        modes = json.loads(pooling.read_text()) if pooling.is_file() else {}
    chosen = sorted(name for name, value in modes.items() if name.startswith("pooling_mode_") and value is True)
    other = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    allowed: tuple[list[str], ...] = (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"], [])
    if other or chosen not in allowed:
        raise WorldloopError(
            f"{source.setting} {source.address} pools by {', '.join((*other, *chosen))}: choose an encoder that takes "
            "the mean over tokens, or the first token"
        )
    return chosen == ["pooling_mode_cls_token"]


def _find_side(processor: Any) -> int:
    """The side in pixels of the square that the model was trained on."""
    for size in (getattr(processor, "crop_size", None), processor.size):
        sides = dict(size) if size else {}
        for key in ("height", "shortest_edge"):
            if sides.get(key):
                return int(sides[key])
    raise ValueError("its image processor tells no size")


def _arrange(tokens: Tensor, pixel_values: Tensor, config: Any) -> Tensor:
    """The tokens [N, L, C] of patches, as maps [N, C, gh, gw]; class and register tokens, which come first, are left
    out."""
    height, width = pixel_values.shape[-2:]
    patch = getattr(config, "patch_size", 0)
    grid = (height // patch, width // patch) if patch else (0, 0)
    side = round(tokens.shape[1] ** 0.5)
    if not patch or grid[0] * grid[1] > tokens.shape[1]:  # a pyramid: fewer tokens than patches
        grid = (side, side)
    if not 0 <= tokens.shape[1] - grid[0] * grid[1] <= 16:
        raise ValueError(f"its {tokens.shape[1]} tokens are no grid of patches")
    return tokens[:, -grid[0] * grid[1] :].movedim(1, 2).unflatten(2, grid)


@contextmanager
def _explained(source: Source, what: str) -> Iterator[None]:
    """Within this context, an error of transformers or a library below it becomes one `WorldloopError`."""
    try:
        yield
    except WorldloopError:
        raise
    except Exception as error:  # transformers raises many kinds for a folder that does not fit
        raise WorldloopError(
            f"{source.setting} {source.address} cannot be read as {what} ({type(error).__name__}: "
            f"{first_line(error)[:160]}): give a folder of transformers with safetensors weights"
        ) from error
