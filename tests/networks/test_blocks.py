import pytest
import torch
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


def test_res_block_by_its_pieces() -> None:
    torch.manual_seed(0)
    block = FilmResBlock(4, condition_dim=3)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    x, condition = torch.randn(2, 4, 5, 5), torch.randn(2, 3)
    film = condition @ block.film.weight.T + block.film.bias
    scale, shift = film[:, :4, None, None], film[:, 4:, None, None]
    h = functional.silu(functional.group_norm(x, 4, block.norm1.weight, block.norm1.bias))
    h = functional.conv2d(h, block.conv1.weight, block.conv1.bias, padding=1)
    h = functional.group_norm(h, 4, block.norm2.weight, block.norm2.bias)
    h = functional.silu(h + scale * h + shift)
    expected = x + functional.conv2d(h, block.conv2.weight, block.conv2.bias, padding=1)
    torch.testing.assert_close(block(x, condition), expected, atol=1e-5, rtol=1e-5)


def test_attention_pool_equals_torchs_own_attention() -> None:
    torch.manual_seed(0)
    pool, tokens = AttentionPool(8), torch.randn(3, 7, 8)
    normed = functional.layer_norm(tokens, (8,))
    query = pool.query.expand(3, 1, 8)
    read = functional.scaled_dot_product_attention(query, normed, pool.value(normed), scale=1.0)[:, 0]
    torch.testing.assert_close(pool(tokens), read, atol=1e-5, rtol=1e-5)


def test_attention_pool_does_not_depend_on_token_order() -> None:
    torch.manual_seed(0)
    pool, tokens = AttentionPool(8), torch.randn(3, 7, 8)
    torch.testing.assert_close(pool(tokens), pool(tokens[:, torch.randperm(7)]), atol=1e-5, rtol=1e-5)


def test_transformer_block_by_its_pieces() -> None:
    torch.manual_seed(0)
    block, x = TransformerBlock(8, 2), torch.randn(4, 5, 8)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    attended = x + block.attention(functional.layer_norm(x, (8,), block.norm1.weight, block.norm1.bias))
    h = functional.layer_norm(attended, (8,), block.norm2.weight, block.norm2.bias)
    first, _, last = block.mlp
    expected = attended + last(functional.silu(first(h)))
    torch.testing.assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_transformer_block_keeps_shape_and_rows_apart() -> None:
    torch.manual_seed(0)
    block, x = TransformerBlock(8, 2), torch.randn(4, 5, 8)
    torch.testing.assert_close(block(x)[1:2], block(x[1:2]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(64, 8), (12, 4), (6, 2), (5, 1)])
def test_num_groups(channels: int, groups: int) -> None:
    assert num_groups(channels) == groups


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
