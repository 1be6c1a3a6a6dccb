import pytest
import torch
from loss_oracle import PLAIN, REGIONS, example

from nnseg.labels import Labels
from nnseg.losses.overlap import dice, focal_tversky, generalised_dice, tversky

ONE = Labels(labels={"background": 0, "a": 1})


def test_a_class_absent_from_truth_and_prediction_counts_as_perfect() -> None:
    logits = torch.full((1, 3, 2, 3, 4), -200.0)
    logits[:, 0] = 200
    assert dice(logits, torch.zeros(1, 2, 3, 4, dtype=torch.uint8), PLAIN, True).item() == -1


def test_batch_dice_sums_before_the_ratio() -> None:
    # sample 0 holds label 1 everywhere and is certain of it, sample 1 the reverse
    logits = torch.full((2, 2, 1, 1, 4), -50.0)
    logits[0, 1], logits[1, 0] = 50, 50
    segmentation = torch.ones(2, 1, 1, 4, dtype=torch.uint8)
    assert dice(logits, segmentation, ONE, False).item() == pytest.approx(-0.5, abs=1e-5)
    assert dice(logits, segmentation, ONE, True).item() == pytest.approx(-2 / 3, abs=1e-5)


def test_tversky_with_two_halves_is_dice() -> None:
    logits, segmentation = example(REGIONS)
    found = tversky(logits, segmentation, REGIONS, False, alpha=0.5, beta=0.5)
    torch.testing.assert_close(found, dice(logits, segmentation, REGIONS, False))


def certain(labels: list[int]) -> torch.Tensor:
    """Logits (1, 3, 1, 1, n) that are sure of these labels."""
    return 60 * torch.nn.functional.one_hot(torch.tensor(labels), 3).T.reshape(1, 3, 1, 1, -1)


@pytest.mark.parametrize(
    ("alpha", "beta", "index"),
    [(0.3, 0.7, 2 / (2 + 0.3 * 1 + 0.7 * 3)), (1.0, 1.0, 2 / 6), (0.0, 1.0, 2 / 5)],
)
def test_alpha_counts_false_voxels_and_beta_missed_ones(
    alpha: float, beta: float, index: float
) -> None:
    truth = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0]).reshape(1, 1, 1, 8)
    logits = certain([1, 1, 0, 0, 0, 1, 0, 0]).float()  # 2 right, 3 missed, 1 false
    weights = (1.0, 0.0)  # of label 2, which is nowhere, there is nothing to see
    found = tversky(logits, truth, PLAIN, True, weights, alpha=alpha, beta=beta)
    assert found.item() == pytest.approx(-index, rel=1e-5)
    focal = focal_tversky(logits, truth, PLAIN, True, weights, alpha=alpha, beta=beta, gamma=2.0)
    assert focal.item() == pytest.approx((1 - index) ** 0.5, rel=1e-5)


def test_generalised_dice_divides_by_the_square_of_the_volume() -> None:
    # label 1: 4 voxels, all found; label 2: 2 voxels, none found; background: 2, and 2 too many
    truth = torch.tensor([1, 1, 1, 1, 2, 2, 0, 0]).reshape(1, 1, 1, 8)
    logits = certain([1, 1, 1, 1, 0, 0, 0, 0]).float()
    above = 2 * (4 / 4**2 + 0 / 2**2 + 2 / 2**2)
    below = 8 / 4**2 + 2 / 2**2 + 6 / 2**2
    for scaled in (logits, logits.repeat(1, 1, 5, 3, 1)):  # whatever the size of the patch
        target = truth.expand(1, *scaled.shape[2:])
        found = generalised_dice(scaled, target, PLAIN, False)
        assert found.item() == pytest.approx(-above / below, rel=1e-5)


def test_in_generalised_dice_an_absent_class_counts_as_much_as_the_smallest() -> None:
    truth = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 0, 0]).reshape(1, 1, 1, 10)
    logits = certain([1, 1, 1, 1, 2, 0, 0, 0, 0, 0]).float()
    above = 2 * (4 / 4**2 + 5 / 6**2)
    below = 8 / 4**2 + 11 / 6**2 + 1 / 4**2
    found = generalised_dice(logits, truth, PLAIN, False)
    assert found.item() == pytest.approx(-above / below, rel=1e-5)


def test_generalised_dice_of_regions_that_are_all_absent_punishes_what_is_found() -> None:
    nothing = torch.zeros(1, 2, 3, 4, dtype=torch.uint8)
    logits = torch.full((1, 3, 2, 3, 4), -60.0)
    assert generalised_dice(logits, nothing, REGIONS, False).item() == pytest.approx(-1)
    leaf = torch.zeros(1, 3, 2, 3, 4, requires_grad=True)
    value = generalised_dice(leaf, nothing, REGIONS, False)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert leaf.grad is not None
    assert (leaf.grad > 0).all()


def test_a_higher_gamma_leaves_more_gradient_to_what_is_nearly_right() -> None:
    _, truth = example(PLAIN)
    slopes = []
    for gamma in (1.0, 4 / 3, 3.0):
        leaf = (6 * torch.nn.functional.one_hot(truth, 3).movedim(-1, 1)).float().requires_grad_()
        focal_tversky(leaf, truth, PLAIN, True, gamma=gamma).backward()
        assert leaf.grad is not None
        slopes.append(float(leaf.grad.abs().sum()))
    assert slopes[0] < slopes[1] < slopes[2]


def test_the_focal_power_goes_on_straight_where_its_slope_would_be_infinite() -> None:
    _, truth = example(PLAIN)
    leaf = (22 * torch.nn.functional.one_hot(truth, 3).movedim(-1, 1)).double().requires_grad_()
    value = focal_tversky(leaf, truth, PLAIN, True, gamma=3.0)
    value.backward()
    assert 0 < value.item() < 1e-8 ** (1 / 3)
    assert leaf.grad is not None
    assert 0 < float(leaf.grad.abs().max()) < 1e-6
