import pytest
import torch

from r1.models import build_reference, tiny_llama

BATCH = (
    torch.randint(256, (2, 8), generator=torch.Generator().manual_seed(0)),
    torch.tensor([3, 4]),
    torch.tensor([[True, True, True, True], [True, True, False, False]]),
)


def change(policy, amount=0.5):
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(amount)


def norm_weight(policy):
    """First weight of the final norm: 1 at the start, so that moves can be read off."""
    return policy.model.model.norm.weight[0].item()


def test_no_reference_has_no_logps_and_no_state():
    policy = tiny_llama()
    reference = build_reference("none", policy)
    assert reference.logps(policy, *BATCH) is None
    assert reference.update(policy, 1) is False
    assert reference.state_dict() == {}


def test_a_frozen_reference_starts_equal_and_never_moves():
    policy = tiny_llama(initializer_range=0.2)
    reference = build_reference("frozen", policy)
    start = policy(*BATCH, temperature=0.8)[0]
    assert torch.equal(reference.logps(policy, *BATCH, temperature=0.8), start)
    change(policy)
    assert not any(reference.update(policy, step) for step in range(1, 10))
    assert torch.equal(reference.logps(policy, *BATCH, temperature=0.8), start)


def test_a_moving_reference_is_replaced_at_multiples_of_every():
    policy = tiny_llama()
    reference = build_reference("moving", policy, every=3)
    moved = []
    for step in range(1, 8):
        change(policy, 1.0)  # the norm weight is 1 + step
        if reference.update(policy, step):
            moved.append((step, norm_weight(reference.policy)))
    assert moved == [(3, 4.0), (6, 7.0)]


def test_a_second_call_for_the_same_step_changes_nothing():
    policy = tiny_llama()
    reference = build_reference("moving", policy, every=2)
    change(policy)
    assert reference.update(policy, 2)
    change(policy)
    assert not reference.update(policy, 2)
    assert norm_weight(reference.policy) == 1.5
    assert not reference.update(policy, 0)


def test_a_mixed_reference_moves_a_share_of_the_way():
    policy = tiny_llama()
    reference = build_reference("mixed", policy, every=1, alpha=0.25)
    change(policy, 8.0)  # the policy stands at 9
    assert reference.update(policy, 1)
    assert norm_weight(reference.policy) == 3.0  # 1 + 0.25 * (9 - 1)
    assert reference.update(policy, 2)
    assert norm_weight(reference.policy) == 4.5  # 3 + 0.25 * (9 - 3)


def test_the_reference_takes_no_gradient_and_no_training_mode():
    policy = tiny_llama().train()
    reference = build_reference("moving", policy, every=2).train()
    assert not any(p.requires_grad for p in reference.parameters())
    assert not any(module.training for module in reference.modules())
    assert not reference.logps(policy, *BATCH).requires_grad
    assert all(p.requires_grad for p in policy.parameters()) and policy.training


def test_state_dict_restores_weights_and_the_step_of_the_update():
    policy = tiny_llama()
    reference = build_reference("moving", policy, every=2)
    change(policy)
    reference.update(policy, 2)
    restored = build_reference("moving", tiny_llama(seed=1), every=2)
    restored.load_state_dict(reference.state_dict())
    assert restored.policy.fingerprint() == policy.fingerprint()
    assert restored.update(policy, 2) is False
    assert restored.update(policy, 4) is True


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("frozn", {}, r"unknown reference 'frozn'. Did you mean 'frozen'\?"),
        ("moving", {}, "reference 'moving' needs 'every'"),
        ("moving", {"every": 4, "alpha": 0.5}, "reference 'moving' takes no 'alpha'"),
        ("frozen", {"every": 4}, "reference 'frozen' takes no 'every'"),
        ("mixed", {"every": 4}, "reference 'mixed' needs 'alpha'"),
        ("mixed", {"every": 4, "alpha": 1.5}, r"alpha must be in \(0, 1\]"),
        ("moving", {"every": 0}, "every must be at least 1"),
    ],
)
def test_mistakes_are_named(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        build_reference(kind, tiny_llama(), **arguments)
