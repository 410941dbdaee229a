import torch

from worldloop.networks.instruction import InstructionEncoder, hash_instruction


def make_encoder(dim: int = 32) -> InstructionEncoder:
    torch.manual_seed(0)
    return InstructionEncoder(dim)


def similarity(a: str, b: str) -> float:
    x = make_encoder(64)((a, b))
    return torch.nn.functional.cosine_similarity(x[0], x[1], dim=0).item()


def test_shape_and_any_string() -> None:
    out = make_encoder()(("push the cube", "", "推動方塊", "!!!", "push the cube"))
    assert out.shape == (5, 32)
    assert torch.isfinite(out).all()
    assert torch.equal(out[0], out[4])
    assert not torch.allclose(out[1], out[2])
    assert not torch.allclose(out[1], out[3])


def test_push_and_pull_are_apart_but_nearer_than_unrelated() -> None:
    push_pull = similarity("push the blue cube onto the target", "pull the blue cube onto the target")
    assert similarity("push the blue cube onto the target", "open a drawer") < push_pull < 0.9


def test_word_order_matters_and_case_does_not() -> None:
    assert similarity("put a on b", "put b on a") < 0.95
    assert torch.equal(hash_instruction("Push THE cube."), hash_instruction("push the cube"))


def test_a_string_is_embedded_alike_in_any_company() -> None:
    encoder = make_encoder()
    alone = encoder(("pull it",))
    together = encoder(("push it", "pull it", "push it"))
    assert torch.allclose(alone[0], together[1], atol=1e-6)


def test_hash_is_the_same_in_every_process() -> None:
    # Known positions: a change of hashing would make stored checkpoints read instructions wrongly.
    nonzero = hash_instruction("push", 1024).nonzero().flatten().tolist()
    assert nonzero == EXPECTED_BUCKETS
    assert abs(hash_instruction("push", 1024).norm().item() - 1) < 1e-6


def test_gradient_reaches_the_projection() -> None:
    encoder = make_encoder()
    encoder(("push", "pull"))[:, 0].sum().backward()
    assert encoder.project.weight.grad is not None
    assert encoder.project.weight.grad.abs().sum() > 0


EXPECTED_BUCKETS = [30, 73, 98, 119, 157, 886, 1006]
