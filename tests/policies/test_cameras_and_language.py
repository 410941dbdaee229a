"""The token VLA with several cameras, and with several tasks that look the same."""

from dataclasses import replace

import pytest
import torch
from reporters import RecordingReporter
from tiny_vla import BASE, HAND, PULL, PUSH, TINY, Frames, invert, make_observation, make_policy, make_spec

from worldloop.core.randomness import make_generator, make_row_keys
from worldloop.core.types import ImitationBatch
from worldloop.policies.imitation import ImitationConfig, fit_by_imitation
from worldloop.training.resume import TrainingSetup

BOTH = (BASE, HAND)


def test_every_camera_has_a_stem_of_its_own_and_is_read() -> None:
    policy, observation = make_policy(cameras=BOTH), make_observation(2, cameras=BOTH)
    assert policy.stems.cameras == ("base", "hand")
    assert policy.prefix_type.shape == (2 * TINY.num_image_tokens + 2, TINY.width)
    seen = policy(observation)
    for camera in ("base", "hand"):
        assert (policy(invert(observation, camera, (slice(None), -1))) - seen).abs().max() > 1e-4
    policy.log_prob(observation, policy.act(observation, make_row_keys(2, 0, "g"))).sum().backward()
    assert [name for name, p in policy.named_parameters() if p.grad is None] == []


def test_a_policy_reads_the_cameras_that_its_config_names() -> None:
    """It is the policy of a robot with that camera alone; what the others show makes no difference."""
    policy, alone = make_policy(replace(TINY, cameras=("hand",)), cameras=BOTH), make_policy(cameras=(HAND,))
    assert policy.spec == make_spec(cameras=(HAND,))
    observation = make_observation(2, cameras=BOTH)
    assert torch.equal(policy(observation), alone(observation.with_cameras(["hand"])))
    batch = ImitationBatch(observation, torch.zeros(2, 2, 2), torch.ones(2, 2, dtype=torch.bool))
    other = replace(batch, observation=observation.with_cameras(["hand"]))
    losses = [policy.compute_imitation_loss(b, make_generator(0))[0].item() for b in (batch, other)]
    assert losses[0] == losses[1], "augmentation draws for the cameras that are read"
    with pytest.raises(ValueError, match=r"policy\.token_vla\.cameras: camera 'wrist' is not one of base, hand"):
        make_policy(replace(TINY, cameras=("wrist",)), cameras=BOTH)


def test_what_a_camera_lacks_is_named() -> None:
    policy, observation = make_policy(cameras=BOTH), make_observation(2, cameras=BOTH)
    with pytest.raises(ValueError, match="the observation has no camera 'hand': it has base"):
        policy(observation.with_cameras(["base"]))
    with pytest.raises(ValueError, match="the episodes to imitate have no camera 'hand': they have base"):
        policy.prepare(Frames({"base": observation.frames["base"][:, -1]}))
    larger = make_observation(2, cameras=(BASE, replace(HAND, height=16)))
    with pytest.raises(ValueError, match=r"the image of camera 'hand' .* expected \(.*, 8, 12\)"):
        policy(larger)
    message = "stem_channels has 3 stride-2 layers; camera 'hand' is 8 x 12 pixels, allowed: multiples of 8"
    with pytest.raises(ValueError, match=message):
        make_policy(replace(TINY, stem_channels=(4, 4, 4)), cameras=BOTH)


def test_background_and_contrast_are_each_cameras_own() -> None:
    """The base camera shows grey levels 100 and 110 in turn; everything that the moving one shows is another image."""
    policy = make_policy(cameras=BOTH)
    base = torch.tensor([100, 110], dtype=torch.uint8)[:, None, None, None].repeat(1, 16, 16, 3)
    hand = torch.randint(0, 256, (40, 8, 12, 3), generator=make_generator(5), dtype=torch.uint8)
    policy.prepare(Frames({"base": base, "hand": hand}))
    (_, fixed), (_, moving) = policy.stems.items()
    assert torch.allclose(fixed.background, torch.full((3, 16, 16), 105 / 127.5 - 1))
    assert fixed.contrast.item() == pytest.approx(5 / 127.5, abs=1e-6)
    assert torch.allclose(moving.background, hand.float().mean(0).movedim(-1, 0) / 127.5 - 1, atol=1e-5)
    assert moving.contrast.item() == pytest.approx(
        hand.float().sub(hand.float().mean(0)).std().item() / 127.5, rel=1e-3
    )


# --- language -----------------------------------------------------------------------------------------------------

INSTRUCTIONS = {
    1.0: (PUSH, "move the cube forward onto the target", "slide the block away from you"),
    -1.0: (PULL, "drag the cube back to the target", "bring the block towards you"),
}


class TwoTasks:
    """An `ImitationSource` of two tasks that look the same and want opposite actions; words alone tell which."""

    def images(self) -> dict[str, torch.Tensor]:
        return {"base": make_observation(40).frames["base"][:, -1]}

    def sample(self, generator: torch.Generator, batch_size: int, chunk_length: int) -> ImitationBatch:
        drawn = torch.randint(6, (batch_size,), generator=generator).tolist()
        said = [(sign, text) for sign, texts in INSTRUCTIONS.items() for text in texts]
        seen = make_observation(40).rows(torch.randint(40, (batch_size,), generator=generator))
        observation = replace(seen, instruction=tuple(said[i][1] for i in drawn))
        actions = 0.5 * torch.tensor([said[i][0] for i in drawn])[:, None, None].expand(-1, chunk_length, 2)
        return ImitationBatch(observation, actions, torch.ones(batch_size, chunk_length, dtype=torch.bool))


def test_the_instruction_alone_says_which_of_two_tasks_that_look_the_same_is_done() -> None:
    policy, setup = make_policy(chunk_length=2), TrainingSetup()
    config = ImitationConfig(num_steps=160, batch_size=24, learning_rate=3e-3, precision="fp32")
    generators = setup.make_generators("two tasks")
    fit_by_imitation(
        policy, TwoTasks(), config, generators, setup, RecordingReporter(), name="clone_policy", first_step=0
    )
    for sign, texts in INSTRUCTIONS.items():
        for text in texts:
            actions = policy.act(make_observation(20, text, seed=1), None).actions  # pictures that it never saw
            assert torch.allclose(actions, torch.full_like(actions, 0.5 * sign)), text
