"""Sharding with FSDP2 (`torch.distributed.fsdp.fully_shard`), for networks that do not fit on one device.

Between steps every rank holds only a share of a sharded module's weights, optimizer state and averaged weights. For a
forward and backward pass the weights are gathered. Gradients are summed over the ranks, and each rank keeps its share.
The whole module is one FSDP2 group: our denoisers call parts of their blocks directly, and FSDP2's hooks on a block
would miss these calls. A sharded module must be called through its ``forward``, which returns the loss in a plain
tuple.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def shard(module: nn.Module, names: Set[str], device: torch.device) -> None:
    """Shard the parameters called ``names`` over all ranks, in place. Other parameters stay whole."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    whole = {parameter for name, parameter in module.named_parameters() if name not in names}
    sharded = fully_shard(module, mesh=mesh, ignored_params=whole, reshard_after_forward=False)
    sharded.set_gradient_divide_factor(1.0)  # losses are weighed already, see `DataParallel.weigh`
    sharded.set_force_sum_reduction_for_comms(True)


def is_sharded(tensor: Tensor) -> TypeGuard[DTensor]:
    # checks for the method because importing DTensor takes two seconds, also in processes that never shard weights
    return hasattr(tensor, "to_local")


def to_local(tensor: Tensor) -> Tensor:
    """This rank's share as a view, or the tensor itself if it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The whole tensors. Sharded ones are gathered on the CPU. Every rank must call it.

    Tensors are gathered in the order of their names, because the ranks may hold them in different orders.
    """
    return {n: t.full_tensor().cpu() if is_sharded(t) else t for n, t in sorted(tensors.items())}


def share_like(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `gather`: shard each of the whole ``tensors`` whose namesake in ``like`` is sharded."""
    shared = dict(tensors)
    for name, reference in like.items():
        if name in shared and is_sharded(reference):
            from torch.distributed.tensor import distribute_tensor

            value = shared[name].to(reference.device)
            shared[name] = distribute_tensor(value, reference.device_mesh, reference.placements, src_data_rank=None)
    return shared
