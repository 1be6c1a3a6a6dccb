import numpy as np
import pytest
import torch

from nnseg.labels import Labels
from nnseg.losses.balance import balanced_weights, count_voxels
from nnseg.losses.entropy import ce

LABELS = Labels(labels={"background": 0, "a": 1, "b": 2, "ignore": 3})


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16])
def test_voxels_of_all_label_maps_are_counted_slab_by_slab(kind: type) -> None:
    maps = [np.random.default_rng(n).integers(0, 4, (35, 4 + n, 3)).astype(kind) for n in (0, 1)]
    both = np.concatenate([each.ravel() for each in maps])
    wanted = tuple(int((both == value).sum()) for value in range(4))
    assert count_voxels(maps, LABELS) == wanted


def test_balanced_labels_count_alike_in_the_cross_entropy() -> None:
    rng = np.random.default_rng(3)
    truth = torch.from_numpy(rng.choice(3, (2, 6, 7, 8), p=(0.9, 0.08, 0.02)))
    logits = torch.from_numpy(rng.normal(size=(2, 3, 6, 7, 8)))
    weights = balanced_weights(count_voxels(truth.numpy(), LABELS), LABELS)
    each = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
    means = torch.stack([each[truth == label].mean() for label in range(3)])
    torch.testing.assert_close(ce(logits, truth, LABELS, True, weights), means.mean())


def test_regions_weigh_by_their_own_voxels_and_labels_with_gaps_by_their_positions() -> None:
    regions = Labels(
        labels={"background": 0, "whole": (10, 20), "core": 20}, regions_class_order=(10, 20)
    )
    assert balanced_weights((800, 90, 10), regions) == (8.0, 80.0)
    gaps = Labels(labels={"background": 0, "a": 255, "b": 7})
    assert balanced_weights((800, 10, 80), gaps) == (10.0, 80.0)


def test_without_foreground_or_background_weights_are_finite_and_positive() -> None:
    assert balanced_weights((100, 0, 0, 5), LABELS) == (100.0, 100.0)
    assert balanced_weights((0, 4, 2, 5), LABELS) == (0.25, 0.5)
