"""Imagined episodes made by hand, for tests of what judges them."""

from collections.abc import Mapping, Sequence

import torch

from worldloop.core.types import Clip
from worldloop.evaluation.fidelity import repeat_first_frame
from worldloop.evaluation.open_loop import Branches, ImaginedEpisodes

CAMERAS = {"base_camera": (8, 8)}  # name -> height, width


def make_clip(
    success: Sequence[Sequence[int]],
    index: Sequence[Sequence[int]] | None = None,
    valid: Sequence[Sequence[bool]] | None = None,
    cameras: Mapping[str, tuple[int, int]] = CAMERAS,
    task: str = "push",
) -> Clip:
    """Black frames [N, M, height, width, 3]; ``success`` and ``valid`` (all, by default) are [N, M]."""
    solved = torch.tensor(success).float()
    N, M = solved.shape
    frames = {camera: torch.zeros(N, M, *size, 3, dtype=torch.uint8) for camera, size in cameras.items()}
    rows = torch.stack([torch.arange(N), torch.zeros(N, dtype=torch.long)], dim=1)
    return Clip(
        context={camera: images[:, :1] for camera, images in frames.items()},
        context_proprio=torch.zeros(N, 1),
        context_landmarks=torch.zeros(N, 0),
        actions=torch.zeros(N, M, 1, 1),
        frames=frames,
        proprio=torch.zeros(N, M, 1),
        landmarks=torch.zeros(N, M, 0),
        success=solved,
        holds=solved,
        valid=torch.ones(N, M, dtype=torch.bool) if valid is None else torch.tensor(valid),
        task=(task,) * N,
        instruction=("go",) * N,
        index=rows if index is None else torch.tensor(index),
        is_on_policy=torch.ones(N, dtype=torch.bool),
    )


def repeat_start(branches: Branches) -> dict[str, torch.Tensor]:
    """What a model imagines in which nothing moves."""
    num_frames = branches.logit.shape[1]
    return {camera: repeat_first_frame(start, num_frames) for camera, start in branches.start_frames.items()}


def make_episodes(
    logit: Sequence[float],
    success: Sequence[int],
    error: int | Sequence[Sequence[int]] = 0,
    valid: Sequence[Sequence[bool]] | None = None,
    cameras: Mapping[str, tuple[int, int]] = CAMERAS,
    task: str = "push",
) -> ImaginedEpisodes:
    """n episodes that are successes or failures; every pixel of frame [n, M] is ``error`` grey levels off.

    One frame each where ``error`` is a number. In a second camera it is twice as far off, and so on.
    """
    n = len(logit)
    errors = torch.full((n, 1), error) if isinstance(error, int) else torch.tensor(error)
    M = errors.shape[1]
    truth = make_clip([[int(s)] * M for s in success], valid=valid, cameras=cameras, task=task)
    off = errors[..., None, None, None].to(torch.uint8)
    frames = {camera: truth.frames[camera] + number * off for number, camera in enumerate(cameras, 1)}
    logits = torch.tensor(logit, dtype=torch.float32)[:, None].repeat(1, M)
    branches = Branches(frames, truth.proprio, logits, truth)
    outcomes = tuple("success" if s else "failure" for s in success)
    return ImaginedEpisodes(branches.best_logit.numpy(), branches.succeeds.numpy(), outcomes, branches)
