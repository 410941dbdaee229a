"""Weights that no rank holds whole: FSDP2 (`torch.distributed.fsdp.fully_shard`) for networks that do not fit.

Between steps every rank holds a share of a sharded module's weights, and so of its optimizer state and average. For the
time of a forward and backward pass the weights are gathered, and gradients are added up over the ranks into the shares.
One group for the whole module: our denoisers call the parts of their blocks, which FSDP2's hooks on a block would not
see. A sharded module is called through its ``forward``, which returns its loss in a plain tuple.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(module: nn.Module, names: Set[str], device: torch.device) -> None:
    """Share the parameters of ``names`` out among all ranks, in place; the others stay whole."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    whole = {parameter for name, parameter in module.named_parameters() if name not in names}
    sharded = fully_shard(module, mesh=mesh, ignored_params=whole, reshard_after_forward=False)
    sharded.set_gradient_divide_factor(1.0)  # losses are weighed already, see `DataParallel.weigh`
    sharded.set_force_sum_reduction_for_comms(True)


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    # told by its method, since importing DTensor takes two seconds, also of processes that never share weights out
    return hasattr(tensor, "to_local")


def to_local(tensor: Tensor) -> Tensor:
    """This rank's share, a view; the tensor itself where it is whole."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors, those that were sharded in the processor's memory; every rank has to call it.

    By name, since the ranks may hold them in different orders.
    """
    return {n: t.full_tensor().cpu() if is_sharded(t) else t for n, t in sorted(tensors.items())}


def share_like(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `gather`: of whole ``tensors`` this rank takes its share where those of ``like`` are sharded."""
    shared = dict(tensors)
    for name, reference in like.items():
        if name in shared and is_sharded(reference):
            from torch.distributed.tensor import distribute_tensor

            value = shared[name].to(reference.device)
            shared[name] = distribute_tensor(value, reference.device_mesh, reference.placements, src_data_rank=None)
    return shared
