"""Shares and partners as they are drawn; images, and losses to both targets, by hand."""

import numpy as np
import pytest
import torch

from nnseg.model.mixup import Mixed, Mixing, draw_mixing, mix, mixed_loss


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_those_of_the_beta_distribution(alpha: float) -> None:
    rng = np.random.default_rng(0)
    shares = np.array([draw_mixing(alpha, 4, rng).share for _ in range(4000)])
    assert ((shares >= 0) & (shares <= 1)).all()
    assert shares.mean() == pytest.approx(0.5, abs=0.025)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.08)


@pytest.mark.parametrize("samples", [2, 3, 7])
def test_every_sample_is_the_partner_of_one_other(samples: int) -> None:
    rng = np.random.default_rng(1)
    partners = set()
    for _ in range(80):
        mixing = draw_mixing(0.4, samples, rng)
        chosen = tuple(mixing.partner(sample, samples) for sample in range(samples))
        assert sorted(chosen) == list(range(samples))
        assert all(partner != sample for sample, partner in enumerate(chosen))
        partners.add(chosen)
    assert len(partners) == samples - 1  # any of the others


def test_a_batch_of_one_is_mixed_with_a_sample_behind_it() -> None:
    assert draw_mixing(0.4, 1, np.random.default_rng(1)).partner(0, 1) == 1


def test_equal_generators_mix_alike() -> None:
    first, second, third = (draw_mixing(0.4, 9, np.random.default_rng(n)) for n in (1, 1, 2))
    assert first == second != third


def test_images_are_added_by_their_shares() -> None:
    own, partner = torch.tensor([[1.0, -2.0]]), torch.tensor([[5.0, 2.0]])
    torch.testing.assert_close(mix(own, partner, 0.75), torch.tensor([[2.0, -1.0]]))
    assert torch.equal(mix(own, partner, 1.0), own)
    assert torch.equal(mix(own, partner, 0.0), partner)


def test_the_loss_is_the_sum_of_those_to_both_targets_by_their_shares() -> None:
    output = torch.tensor([2.0, 4.0], requires_grad=True)

    def loss(target: torch.Tensor) -> torch.Tensor:
        return ((output - target) ** 2).sum()

    own, other = torch.tensor([1, 4]), torch.tensor([2, 0])  # losses 1 and 16
    found = mixed_loss(loss, own, Mixed(segmentation=other, share=0.75))
    assert found.item() == 0.75 * 1 + 0.25 * 16
    found.backward()
    assert output.grad is not None
    assert output.grad.tolist() == [0.75 * 2, 0.25 * 8]
    assert mixed_loss(loss, own, None).item() == 1


def test_a_sample_has_the_partner_that_its_mixing_says() -> None:
    assert [Mixing(share=0.5, shift=2).partner(each, 3) for each in range(3)] == [2, 0, 1]
