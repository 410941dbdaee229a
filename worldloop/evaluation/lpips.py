"""LPIPS (Zhang et al. 2018, arXiv:1801.03924), if the backbone's weights are on this machine.

The metric is a distance of AlexNet features with learned channel weights, which torchmetrics ships. The backbone's file
is read from torch hub's local cache and never downloaded. Without the file the metric is not computed, and the reason
is returned.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn

from worldloop.core import images
from worldloop.evaluation.fidelity import check_frame_pair

BACKBONE_FILE = "alexnet-owt-7be5be79.pth"  # torchvision's AlexNet_Weights.IMAGENET1K_V1
MIN_IMAGE_SIZE = 32  # AlexNet's last pooling needs at least this many pixels
BATCH_SIZE = 64  # frames per forward pass, to bound memory


def compute_lpips(
    predicted: Tensor, target: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, None] | tuple[None, str]:
    """(distance f32 [B], None), where lower is closer; or (None, reason) if the metric is not available.

    Frames are u8 [B, M, h, w, 3]; the distance is the mean over ``valid`` bool [B, M] frames, or all. A row without
    valid frames gives NaN.
    """
    check_frame_pair(predicted, target)
    if min(predicted.shape[2:4]) < MIN_IMAGE_SIZE:
        return None, f"LPIPS needs images of at least {MIN_IMAGE_SIZE} px, got {min(predicted.shape[2:4])}"
    path = Path(torch.hub.get_dir()) / "checkpoints" / BACKBONE_FILE
    if not path.is_file():
        return None, f"LPIPS needs the AlexNet weights {BACKBONE_FILE} in torch hub's cache; the file is not there"
    try:
        network = _load_network(str(path))
    except Exception as error:
        return None, f"LPIPS could not load {BACKBONE_FILE}: {type(error).__name__}: {error}"
    B, M = predicted.shape[:2]
    first, second = predicted.flatten(0, 1).split(BATCH_SIZE), target.flatten(0, 1).split(BATCH_SIZE)
    with torch.no_grad():
        parts = [network(images.to_network(p), images.to_network(t)) for p, t in zip(first, second, strict=True)]
    per_frame = torch.cat([part.reshape(-1) for part in parts]).reshape(B, M)
    if valid is None:
        return per_frame.mean(dim=1), None
    return (per_frame * valid).sum(dim=1) / valid.sum(dim=1), None


@lru_cache(maxsize=1)
def _load_network(path: str) -> nn.Module:
    """torchmetrics' LPIPS network with the backbone weights from ``path``, read as plain tensors (no unpickling)."""
    from torchmetrics.functional.image.lpips import _LPIPS

    with torch.random.fork_rng(devices=[]):  # building the backbone draws random weights, which are replaced below
        network = _LPIPS(pretrained=True, net="alex", pnet_rand=True, eval_mode=True)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    # The backbone is cut into slices that keep torchvision's layer numbers: slice1.0.weight is features.0.weight.
    own = {key: weights["features." + key.split(".", 1)[1]] for key in network.net.state_dict()}
    network.net.load_state_dict(own)
    return network.requires_grad_(False)
