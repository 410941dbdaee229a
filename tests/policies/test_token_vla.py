"""The token VLA: its bins, its probabilities, what it reads, and how it imitates."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from tiny_vla import PULL, PUSH, TINY, Frames, invert, make_observation, make_policy, make_spec

from worldloop.core.errors import WorldloopError
from worldloop.core.randomness import make_generator, make_row_keys
from worldloop.core.types import ImitationBatch, Observation
from worldloop.policies.token_vla.action_bins import ActionBins
from worldloop.policies.token_vla.policy import TokenVLA, smooth_targets

KNOWN = torch.tensor([0.05, 0.15, 0.5, 0.2, 0.1])


def make_known_policy(chunk_length: int = 1, **changes: object) -> TokenVLA:
    """Every action is -.6, -.3, 0, .3 or .6 with the ``KNOWN`` probabilities at temperature 1, whatever is seen."""
    policy = make_policy(replace(TINY, num_bins=5, **changes), chunk_length)  # type: ignore[arg-type]
    torch.nn.init.zeros_(policy.head.weight)
    policy.head.bias.data = KNOWN.log()
    return policy


# --- bins ---------------------------------------------------------------------------------------------------------


def test_bins_round_trip_zero_and_clipping() -> None:
    bins = ActionBins(make_spec(("dx", "gripper")).robot, -0.6, 0.6, 13, full_range=("gripper",))
    tokens = torch.arange(13)[:, None].expand(-1, 2)
    actions = bins.decode(tokens)
    assert torch.equal(bins.encode(actions), tokens)
    assert torch.equal(actions[6], torch.zeros(2))
    assert torch.allclose(actions[[0, 12]], torch.tensor([[-0.6, -1.0], [0.6, 1.0]]))
    assert bins.encode(torch.tensor([5.0, -5.0])).tolist() == [12, 0]
    # Bin width 0.1: 0.14 is nearest to 0.1, 0.16 to 0.2.
    assert bins.encode(torch.tensor([[0.14, 0.0], [0.16, 0.0]]))[:, 0].tolist() == [7, 8]


def test_bins_stay_within_the_robots_bounds() -> None:
    bins = ActionBins(make_spec(bound=0.3).robot, -0.6, 0.6, 5)
    assert bins.decode(torch.tensor([[0, 4]])).tolist() == [[pytest.approx(-0.3), pytest.approx(0.3)]]
    with pytest.raises(ValueError, match="dx"):
        ActionBins(make_spec(bound=0.3).robot, 0.5, 0.6, 5)


def test_smooth_targets_by_hand() -> None:
    target = smooth_targets(torch.tensor([0, 1, 3]), 4, 0.2)
    expected = torch.tensor([[0.8, 0.2, 0, 0], [0.1, 0.8, 0.1, 0], [0, 0, 0.2, 0.8]])
    assert torch.allclose(target, expected)


# --- probabilities ------------------------------------------------------------------------------------------------


def test_log_prob_equals_act_and_brute_force() -> None:
    policy = make_policy(replace(TINY, temperature=1.7, num_bins=3), chunk_length=1)
    observation = make_observation(4)
    for noise_key in (None, make_row_keys(4, 0, "a")):
        chunk = policy.act(observation, noise_key)
        assert chunk.actions.shape == (4, 1, 2)
        assert torch.allclose(policy.log_prob(observation, chunk), chunk.log_probs, atol=1e-5)
    # Over all 3 x 3 joint tokens the probabilities sum to one and equal the softmax' products.
    p = torch.softmax(policy(observation) / 1.7, dim=-1)
    total = torch.zeros(4, 1)
    for i, j in itertools.product(range(3), repeat=2):
        tokens = torch.tensor([i, j]).expand(4, 1, 2)
        probability = policy.log_prob(observation, replace(chunk, trace={"tokens": tokens})).exp()
        assert torch.allclose(probability, p[:, :, 0, i] * p[:, :, 1, j], atol=1e-6)
        total += probability.detach()
    assert torch.allclose(total, torch.ones(4, 1), atol=1e-5)


def test_sampling_frequencies_match_probabilities() -> None:
    policy = make_policy(replace(TINY, num_bins=5), chunk_length=1)
    n = 4000
    observation = make_observation(1).rows([0] * n)
    chunk = policy.act(observation, make_row_keys(n, 0, "frequency"))
    p = torch.softmax(policy(make_observation(1)), dim=-1)[0, 0].detach()  # [A, bins]
    for dim in range(2):
        frequency = torch.bincount(chunk.trace["tokens"][:, 0, dim], minlength=5) / n
        # Four standard errors of the largest possible binomial proportion: sqrt(.25 / 4000) = .0079.
        assert (frequency - p[dim]).abs().max() < 0.032
    both = (chunk.trace["tokens"][:, 0] == torch.tensor([0, 0])).all(dim=1).float().mean()
    assert abs(both - p[0, 0] * p[1, 0]) < 0.032  # dimensions are drawn independently


def test_temperature_sharpens_what_is_sampled_and_its_log_probs_alike() -> None:
    policy, n = make_known_policy(temperature=0.5), 4000
    chunk = policy.act(make_observation(1).rows([0] * n), make_row_keys(n, 0, "tempered"))
    p = torch.tensor([0.0025, 0.0225, 0.25, 0.04, 0.01]) / 0.325  # squared and divided by their sum
    tokens = chunk.trace["tokens"][:, 0]
    for dim in range(2):
        # Four standard errors; at temperature 1 zero would be taken in .5 of the rows instead of in .769.
        assert (torch.bincount(tokens[:, dim], minlength=5) / n - p).abs().max() < 0.032
    assert torch.allclose(chunk.log_probs[:, 0], p.log()[tokens].sum(dim=1), atol=1e-5)
    policy.temperature = 1.0  # may be set at any time
    expected = KNOWN.log()[tokens[0]].sum().item()
    assert policy.log_prob(make_observation(1), chunk.rows([0])).item() == pytest.approx(expected, abs=1e-5)


def test_noise_depends_on_key_and_step_not_on_the_batch() -> None:
    policy = make_policy()
    observation = make_observation(1).rows([0] * 6)
    observation = replace(observation, env_step=torch.tensor([0, 0, 0, 5, 5, 5]))
    keys = torch.tensor([1, 1, 2, 1, 2, 2])
    tokens = policy.act(observation, keys).trace["tokens"].flatten(1)
    assert torch.equal(tokens[0], tokens[1])
    assert torch.equal(tokens[4], tokens[5])
    assert len({tuple(tokens[i].tolist()) for i in (0, 2, 3, 4)}) == 4
    alone = policy.act(observation.rows([4]), keys[[4]])
    assert torch.equal(alone.trace["tokens"].flatten(1)[0], tokens[4])


def test_greedy_is_deterministic_and_the_likeliest() -> None:
    policy = make_policy()
    policy.version = "v7"
    observation = make_observation(3)
    first, second = policy.act(observation, None), policy.act(observation, None)
    assert torch.equal(first.actions, second.actions)
    assert first.policy_version == "v7"
    sampled = policy.act(observation, make_row_keys(3, 0, "g"))
    assert (first.log_probs >= sampled.log_probs - 1e-6).all()


# --- network ------------------------------------------------------------------------------------------------------


def test_attention_is_bidirectional() -> None:
    """The first action query must react to the last one, which a causal mask would forbid."""
    policy = make_policy()
    observation = make_observation(2)
    before = policy(observation)[:, 0, 0].detach()
    with torch.no_grad():
        policy.queries[-1] += 3.0
    assert (policy(observation)[:, 0, 0] - before).abs().max() > 1e-4


def test_every_parameter_gets_a_gradient() -> None:
    policy = make_policy()
    observation = make_observation(3)
    policy.log_prob(observation, policy.act(observation, make_row_keys(3, 0, "g"))).sum().backward()
    missing = [name for name, p in policy.named_parameters() if p.grad is None]
    assert missing == []


def test_rows_are_independent() -> None:
    policy = make_policy()
    observation = make_observation(4)
    changed = invert(observation, "base", (2,))
    a, b = policy(observation), policy(changed)
    assert torch.allclose(a[[0, 1, 3]], b[[0, 1, 3]], atol=1e-6)
    assert (a[2] - b[2]).abs().max() > 1e-4
    assert torch.allclose(policy(observation.rows([3])), a[3:], atol=1e-5)


def test_proprio_is_chosen_by_prefix_and_normalised() -> None:
    policy = make_policy()
    assert policy.proprio_index == (0, 1)
    observation = make_observation(1)
    joint_moved = replace(observation, proprio=observation.proprio + torch.tensor([0.0, 0.0, 9.0]))
    tcp_moved = replace(observation, proprio=observation.proprio + torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(policy(observation), policy(joint_moved))
    assert not torch.allclose(policy(observation), policy(tcp_moved))
    at = replace(observation, proprio=torch.tensor([[3.0, 2.0, 0.0]]))
    assert policy._normalised_proprio(at).tolist() == [[1.0, 0.0]]
    with pytest.raises(WorldloopError, match="use_proprio"):
        policy(replace(observation, proprio=None))
    blind = make_policy(replace(TINY, use_proprio=False))
    assert torch.isfinite(blind(replace(observation, proprio=None))).all()


def test_proprio_far_outside_what_training_saw_counts_as_five_standard_deviations() -> None:
    policy = make_policy()  # means 1 and 2, standard deviations 2 and 2
    observation = make_observation(1)
    edge, far = (replace(observation, proprio=torch.tensor([p])) for p in ([11.0, -8.0, 0.0], [201.0, -998.0, 0.0]))
    assert policy._normalised_proprio(edge).tolist() == [[5.0, -5.0]]
    assert torch.equal(policy(edge), policy(far))
    near = replace(observation, proprio=torch.tensor([[9.0, -6.0, 0.0]]))  # four standard deviations
    assert not torch.equal(policy(edge), policy(near))


def test_image_statistics_cancel_background_and_contrast() -> None:
    """A scene under another background and twice the contrast gives the same logits once both are fitted."""
    policy = make_policy()
    observation = make_observation(6)
    scene = torch.randint(-20, 21, observation.frames["base"].shape, generator=make_generator(3)).int()
    scene = scene - scene.float().mean(dim=(0, 1), keepdim=True).round().int()
    dim = replace(observation, frames={"base": (scene + 100).to(torch.uint8)})
    vivid = replace(observation, frames={"base": (2 * scene + 140).to(torch.uint8)})
    logits = []
    for view in (dim, vivid):
        policy.prepare(Frames({"base": view.frames["base"].flatten(0, 1)}))
        logits.append(policy(view))
    unfitted = make_policy()
    assert torch.allclose(logits[0], logits[1], atol=1e-5)
    assert (unfitted(dim) - unfitted(vivid)).abs().max() > 5e-4  # else the line above says nothing
    fresh = make_policy()
    fresh.load_state_dict(policy.state_dict())
    assert torch.equal(fresh(vivid), logits[1])


def test_number_of_frames_seen() -> None:
    observation = make_observation(1)
    changed = invert(observation, "base", (slice(None), 1))
    one, two = make_policy(), make_policy(replace(TINY, num_frames=2))
    assert torch.equal(one(observation), one(changed))
    assert not torch.allclose(two(observation), two(changed))
    with pytest.raises(ValueError, match="num_frames"):
        two(replace(observation, frames={"base": observation.frames["base"][:, -1:]}))


# --- mistakes in the config ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_bins", 12), ("num_heads", 5), ("temperature", 0.0), ("num_frames", 4), ("label_smoothing", 1.0),
        ("action_low", 0.7), ("stem_channels", ()), ("width", 0), ("augment_shift_px", -1), ("num_image_tokens", 1),
    ],
)  # fmt: skip
def test_config_names_the_bad_key(key: str, value: object) -> None:
    with pytest.raises(ValueError, match=key):
        replace(TINY, **{key: value})


def test_bad_constructions_name_the_key() -> None:
    with pytest.raises(ValueError, match="proprio_prefixes"):
        make_policy(replace(TINY, proprio_prefixes=("nothing",)))
    with pytest.raises(ValueError, match="stem_channels"):
        make_policy(replace(TINY, stem_channels=(4,) * 5))


# --- imitation ----------------------------------------------------------------------------------------------------


def train(policy: TokenVLA, batch: ImitationBatch, num_steps: int, learning_rate: float = 3e-3) -> dict[str, float]:
    optimizer = torch.optim.Adam(policy.parameters(), lr=learning_rate)
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss, metrics = policy.compute_imitation_loss(batch)
        loss.backward()
        optimizer.step()
    return metrics


def test_overfits_eight_examples() -> None:
    policy = make_policy(replace(TINY, label_smoothing=0.0))
    g = make_generator(1, "actions")
    actions = policy.bins.decode(torch.randint(0, 13, (8, 2, 2), generator=g))
    batch = ImitationBatch(make_observation(8), actions, torch.ones(8, 2, dtype=torch.bool))
    assert train(policy, batch, 150)["token_accuracy"] == 1.0
    assert torch.allclose(policy.act(batch.observation, None).actions, actions)


def test_reads_the_instruction() -> None:
    """The same images demand opposite actions under the two instructions; held-out images must show it too."""
    policy = make_policy(chunk_length=1)

    def make_batch(num_rows: int, seed: int) -> ImitationBatch:
        observation = make_observation(num_rows, PUSH, seed)
        pull = make_observation(num_rows, PULL, seed)
        both = Observation.cat([observation, pull])
        sign = torch.cat([torch.ones(num_rows), -torch.ones(num_rows)])
        actions = (0.5 * sign)[:, None, None].expand(-1, 1, 2)
        return ImitationBatch(both, actions, torch.ones(2 * num_rows, 1, dtype=torch.bool))

    train(policy, make_batch(16, 0), 60)
    _, metrics = policy.compute_imitation_loss(make_batch(64, 1))
    assert metrics["token_accuracy"] > 0.95


# --- guidance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 2.5])
def test_guidance_by_hand(guidance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """log pi_u + b (log pi_c - log pi_u), renormalised; pi_c is conditioned on good actions alone."""
    policy = make_known_policy()
    good = KNOWN.flip(0)

    def forward(observation: Observation, is_good: torch.Tensor | None = None) -> torch.Tensor:
        assert is_good is not None
        logits = torch.where((is_good == 1)[:, None], good.log(), KNOWN.log())
        assert (is_good != 0).all()
        return logits[:, None, None].expand(-1, 1, 2, -1)

    monkeypatch.setattr(policy, "forward", forward)
    policy.guidance = guidance
    expected = KNOWN ** (1 - guidance) * good**guidance
    expected /= expected.sum()
    observation = make_observation(1)
    for token in range(5):
        chunk = policy.act(observation, None)
        given = replace(chunk, trace={"tokens": torch.full((1, 1, 2), token)})
        assert policy.log_prob(observation, given).item() == pytest.approx(2 * math.log(expected[token]), abs=1e-5)
    assert chunk.trace["tokens"].unique().item() == int(expected.argmax())
    assert chunk.log_probs.item() == pytest.approx(2 * math.log(expected.max()), abs=1e-5)


def test_a_conditioned_policy_learns_which_of_two_actions_is_good() -> None:
    """From each frame one action is good and another is not; of what is unknown it learns both alike."""
    policy = make_policy(replace(TINY, label_smoothing=0.0), chunk_length=1)
    observation = Observation.cat([make_observation(8)] * 4)
    is_good = torch.tensor([1, 0, -1, -1]).repeat_interleave(8)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0]).repeat_interleave(8)
    batch = ImitationBatch(observation, (0.5 * sign)[:, None, None].expand(-1, 1, 2), torch.ones(32, 1) > 0)
    optimizer = torch.optim.Adam(policy.parameters(), 3e-3)
    for _ in range(150):
        loss, _ = policy.compute_conditioned_loss(batch, is_good)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    seen, up = make_observation(8), int(policy.bins.encode(torch.tensor([0.5, 0.5]))[0])
    shares = {}
    for guidance in (0.0, 1.0, 2.0):
        policy.guidance = guidance
        chunk = replace(policy.act(seen, None), trace={"tokens": torch.full((8, 1, 2), up)})
        shares[guidance] = (policy.log_prob(seen, chunk) / 2).exp().mean().item()  # of two action dimensions
    assert shares[0.0] == pytest.approx(0.5, abs=0.1)
    assert shares[1.0] > 0.95
    assert shares[2.0] > shares[1.0]
    unconditioned = policy(seen)
    assert torch.equal(unconditioned, policy(seen, torch.full((8,), -1)))


def test_guidance_is_part_of_the_weights() -> None:
    policy, other = make_policy(), make_policy()
    assert other.guidance == 0
    policy.guidance = 1.5
    other.load_state_dict(policy.state_dict())
    assert other.guidance == 1.5


def test_imitation_loss_and_its_metrics_by_hand() -> None:
    policy = make_known_policy(chunk_length=2, label_smoothing=0.3)
    actions = torch.tensor([[[0.0, 0.3], [0.0, 0.3]], [[0.6, -0.6], [0.0, 99.0]]])
    valid = torch.tensor([[True, True], [True, False]])
    batch = ImitationBatch(make_observation(2), actions, valid)
    loss, metrics = policy.compute_imitation_loss(batch)
    # .7 on the bin, .15 on each of two neighbours or .3 on the only one.
    zero = -(0.7 * math.log(0.5) + 0.15 * math.log(0.15) + 0.15 * math.log(0.2))
    beside = -(0.7 * math.log(0.2) + 0.15 * math.log(0.5) + 0.15 * math.log(0.1))
    first, last = -(0.7 * math.log(0.05) + 0.3 * math.log(0.15)), -(0.7 * math.log(0.1) + 0.3 * math.log(0.2))
    expected = {
        "loss_imitation": (2 * zero + 2 * beside + first + last) / 6,
        "token_accuracy": 2 / 6,  # zero is the likeliest; the third zero is not valid
        "action_error": (2 * 0.3 + 2 * 0.6) / 6,
    }
    assert metrics == pytest.approx(expected, abs=1e-5)
    assert loss.item() == metrics["loss_imitation"]


def test_imitation_loss_masks_what_is_not_valid() -> None:
    policy = make_policy(replace(TINY, label_smoothing=0.0), chunk_length=2)
    observation = make_observation(2)
    actions = torch.zeros(2, 2, 2)
    valid = torch.tensor([[True, True], [True, False]])
    loss, _ = policy.compute_imitation_loss(ImitationBatch(observation, actions, valid))
    log_p = torch.log_softmax(policy(observation), dim=-1)[..., 6]  # zero is token 6 of 13
    expected = -(log_p[0].mean(dim=-1).sum() + log_p[1, 0].mean()) / 3
    assert torch.allclose(loss, expected, atol=1e-5)
    garbage = actions.clone()
    garbage[1, 1] = 99.0
    masked, _ = policy.compute_imitation_loss(ImitationBatch(observation, garbage, valid))
    assert torch.allclose(masked, loss)


def test_imitation_without_generator_is_deterministic_and_with_one_augments() -> None:
    policy = make_policy()
    batch = ImitationBatch(make_observation(4), torch.zeros(4, 2, 2), torch.ones(4, 2, dtype=torch.bool))
    plain = policy.compute_imitation_loss(batch)[0].item()
    assert plain == policy.compute_imitation_loss(batch)[0].item()
    augmented = policy.compute_imitation_loss(batch, generator=make_generator(0))[0].item()
    assert augmented != plain
    assert augmented == policy.compute_imitation_loss(batch, generator=make_generator(0))[0].item()
