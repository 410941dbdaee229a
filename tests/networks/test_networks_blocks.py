import pytest
import torch
from torch import nn
from torch.nn import functional

from worldloop.networks.blocks import (
    Attention,
    AttentionPool,
    BoostedLinear,
    FilmResBlock,
    PatchProjection,
    TransformerBlock,
    fold_patches,
    num_groups,
)
from worldloop.networks.ema import EmaWeights
from worldloop.networks.embeddings import embed_time


def test_attention_equals_torchs_own() -> None:
    torch.manual_seed(0)
    attention = Attention(12, num_heads=3)
    x = torch.randn(2, 5, 12)
    q, k, v = (part.reshape(2, 5, 3, 4).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    reference = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 12)
    torch.testing.assert_close(attention(x), attention.out(reference), atol=1e-5, rtol=1e-5)


def test_attention_refuses_uneven_heads() -> None:
    with pytest.raises(ValueError, match="num_heads 5"):
        Attention(12, num_heads=5)


def test_res_block_starts_as_identity_and_then_reads_its_condition() -> None:
    torch.manual_seed(0)
    block = FilmResBlock(8, condition_dim=4)
    x, condition = torch.randn(2, 8, 6, 6), torch.randn(2, 4)
    assert torch.equal(block(x, condition), x)
    torch.nn.init.normal_(block.conv2.weight)
    assert not torch.allclose(block(x, condition), block(x, condition + 1))


def test_attention_pool_does_not_depend_on_token_order() -> None:
    torch.manual_seed(0)
    pool, tokens = AttentionPool(8), torch.randn(3, 7, 8)
    torch.testing.assert_close(pool(tokens), pool(tokens[:, torch.randperm(7)]), atol=1e-5, rtol=1e-5)


def test_transformer_block_keeps_shape_and_rows_apart() -> None:
    torch.manual_seed(0)
    block, x = TransformerBlock(8, 2), torch.randn(4, 5, 8)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(64, 8), (12, 4), (6, 2), (5, 1)])
def test_num_groups(channels: int, groups: int) -> None:
    assert num_groups(channels) == groups


def test_time_embedding_tells_times_apart() -> None:
    embedded = embed_time(torch.tensor([0.0, 0.01, 0.5, 1.0]), 16)
    distance = torch.cdist(embedded, embedded) + torch.eye(4)
    assert distance.min() > 0.1


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


def test_boosted_linear_starts_alike_and_learns_faster() -> None:
    torch.manual_seed(0)
    plain = torch.nn.Linear(3, 2)
    torch.manual_seed(0)
    boosted = BoostedLinear(3, 2, gain=4.0)
    x = torch.randn(5, 3)
    torch.testing.assert_close(boosted(x), plain(x))
    before = plain(x).detach()
    for layer in (plain, boosted):
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
        layer(x).sum().backward()
        optimizer.step()
    torch.testing.assert_close(boosted(x) - before, 4 * (plain(x) - before), atol=1e-5, rtol=1e-3)


def test_patch_projection_starts_linear_and_keeps_pixels_apart() -> None:
    torch.manual_seed(0)
    block = PatchProjection(3, 8, 2)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(block(x), block.linear(x))
    torch.nn.init.normal_(block.out.weight)
    assert not torch.allclose(block(2 * x), 2 * block(x) - block.linear(torch.zeros_like(x)), atol=1e-3)
    y = x.clone()
    y[:, :, 1, 2] += 1
    changed = (block(x) != block(y)).any(dim=1)
    assert changed.sum() == 2
    assert changed[:, 1, 2].all()


def test_fold_patches_is_pixel_unshuffle() -> None:
    x = torch.randn(2, 3, 8, 12)
    assert torch.equal(fold_patches(x, 4), functional.pixel_unshuffle(x, 4))
