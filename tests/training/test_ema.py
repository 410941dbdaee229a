"""The average of a module's weights, and copies of it."""

import pytest
import torch
from torch import nn

from worldloop.training.ema import EmaWeights


def test_ema_by_hand() -> None:
    source = torch.nn.Linear(1, 1, bias=False)
    source.weight.data.fill_(0.0)
    ema = EmaWeights(source, decay=0.5)
    source.weight.data.fill_(1.0)
    ema.update(source)  # warm-up: decay 1 / 10
    assert ema.module.weight.item() == pytest.approx(0.9)
    source.weight.data.fill_(2.0)
    ema.update(source)  # 2 / 11
    assert ema.module.weight.item() == pytest.approx(0.9 * 2 / 11 + 2 * 9 / 11)
    assert not ema.module.weight.requires_grad
    with pytest.raises(ValueError, match="ema decay"):
        EmaWeights(source, decay=1.0)


def test_statistics_of_the_data_are_copied_not_averaged() -> None:
    """E.g. the range of proprio: averaged, it would cut off what the data have."""
    source = nn.Linear(1, 1)
    source.register_buffer("reach", torch.tensor([3.0]))
    ema = EmaWeights(source, decay=0.9)
    source.reach.fill_(8.0)
    with torch.no_grad():
        source.weight.add_(1.0)
    before = ema.module.weight.clone()
    ema.update(source)
    assert ema.module.reach.tolist() == [8.0]
    assert not torch.equal(ema.module.weight, before)
    assert not torch.equal(ema.module.weight, source.weight)


def test_ema_shares_what_is_frozen_and_does_not_keep_it() -> None:
    source = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    source[0].requires_grad_(False)
    ema = EmaWeights(source, decay=0.5)
    assert ema.module[0].weight is source[0].weight
    assert ema.module[1].weight is not source[1].weight
    assert set(ema.state_dict()) == {"num_updates", "module.1.weight", "module.1.bias"}
    with torch.no_grad():
        source[1].weight.add_(1.0)
    ema.update(source)
    other = EmaWeights(source, decay=0.5)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.module[1].weight, ema.module[1].weight)
    assert not torch.equal(ema.module[1].weight, source[1].weight)


def test_a_copy_is_the_average_as_it_was_on_the_cpu() -> None:
    source = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    source[0].requires_grad_(False)
    source.to("cuda" if torch.cuda.is_available() else "cpu")
    ema = EmaWeights(source, decay=0.5)
    copied = ema.copy()
    assert copied[0].weight is ema.module[0].weight is source[0].weight, "what is frozen is shared"
    assert copied[0].bias is source[0].bias
    own = {"1.weight": 1.0, "1.bias": 0.0, "1.running_mean": 0.0, "1.running_var": 1.0, "1.num_batches_tracked": 0}
    with torch.no_grad():
        for name in own:
            source.state_dict()[name].fill_(11)
    ema.update(source)  # decay 1 / 10
    state = copied.state_dict()
    for name, value in own.items():
        assert state[name].device.type == "cpu"
        assert (state[name] == value).all(), "an update leaves the copy alone"
    later = ema.copy()
    assert later[1].weight.tolist() == pytest.approx([10.0, 10.0])  # 1 / 10 + 9 / 10 x 11
    assert later[1].bias.tolist() == pytest.approx([9.9, 9.9])  # 9 / 10 x 11
    assert later[1].num_batches_tracked == 11
    assert not later.training
    assert not any(parameter.requires_grad for parameter in later.parameters())
