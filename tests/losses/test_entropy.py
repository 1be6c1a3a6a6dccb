import math

import pytest
import torch
from loss_oracle import IGNORING, IGNORING_REGIONS, PLAIN, example, plain_loss

from nnseg.labels import Labels
from nnseg.losses.entropy import ce, focal, topk

ONE = Labels(labels={"background": 0, "a": 1})


def test_cross_entropy_is_finite_where_the_probability_is_not() -> None:
    logits = torch.tensor([[[[500.0]], [[0.0]], [[0.0]]]], requires_grad=True)
    value = ce(logits, torch.tensor([[[1]]]), PLAIN, False)
    assert value.item() == 500
    value.backward()
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.tensor([[[[1.0]], [[-1.0]], [[0.0]]]]))


def test_cross_entropy_is_a_mean_over_all_voxels_of_the_batch() -> None:
    logits = torch.full((2, 2, 1, 1, 4), -50.0)
    logits[0, 1], logits[1, 0] = 50, 50
    segmentation = torch.ones(2, 1, 1, 4, dtype=torch.uint8)
    assert math.isclose(ce(logits, segmentation, ONE, True).item(), 50, rel_tol=1e-6)


def test_the_worst_tenth_is_at_least_one_voxel() -> None:
    logits, segmentation = example(PLAIN, (1, 2, 1))
    value = topk(logits, segmentation, PLAIN, True)
    each = torch.nn.functional.cross_entropy(logits, segmentation, reduction="none")
    torch.testing.assert_close(value, each.max())


def test_regions_that_weigh_alike_are_as_without_weights_where_most_is_ignored_too() -> None:
    logits, segmentation = example(IGNORING_REGIONS)
    segmentation[:, 1:] = 3
    given = (logits, segmentation, IGNORING_REGIONS, True)
    torch.testing.assert_close(topk(*given, (5.0, 5.0, 5.0)), topk(*given))


@pytest.mark.parametrize("labels", [IGNORING, IGNORING_REGIONS])
def test_the_worst_of_nothing_is_0_however_classes_weigh(labels: Labels) -> None:
    logits, segmentation = example(labels)
    weights = (0.0, 2.0, 9.0)[: len(labels.foreground)]
    assert topk(logits, torch.full_like(segmentation, 3), labels, True, weights).item() == 0


@pytest.mark.parametrize("labels", [IGNORING, IGNORING_REGIONS])
def test_a_worst_tenth_that_is_partly_ignored_counts_each_such_voxel_as_one(labels: Labels) -> None:
    logits, segmentation = example(labels)
    segmentation[:, :, 1:], segmentation[:, 1:] = 3, 3  # of 240 voxels less than 12 are left
    weights = (0.5, 2.0, 9.0)[: len(labels.foreground)]
    given = (logits.double(), segmentation, labels, True, weights)
    assert topk(*given).item() == pytest.approx(plain_loss("topk", *given).item(), rel=1e-9)


def test_class_weights_do_not_scale_the_worst_tenth() -> None:
    logits, segmentation = example(PLAIN)
    each = torch.nn.functional.cross_entropy(logits, segmentation, reduction="none")
    scaled = topk(logits, segmentation, PLAIN, True, (1e4, 1e4)).item()
    assert each[segmentation > 0].min().item() < scaled <= each.max().item()


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 3.5])
def test_gamma_takes_weight_from_what_is_certain(gamma: float) -> None:
    logits = torch.tensor([2.0, 0.0]).reshape(1, 2, 1, 1, 1)
    truth = torch.zeros(1, 1, 1, 1, dtype=torch.int16)
    right = 1 / (1 + math.exp(-2))
    wanted = -((1 - right) ** gamma) * math.log(right)
    assert focal(logits, truth, ONE, False, gamma=gamma).item() == pytest.approx(wanted, rel=1e-5)
