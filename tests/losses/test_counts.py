import numpy as np
import pytest
import torch
from loss_oracle import KINDS, example

from nnseg.labels import Labels
from nnseg.losses.counts import hard_counts


@pytest.mark.parametrize("labels", KINDS)
def test_hard_counts_equal_counting_voxel_by_voxel(labels: Labels) -> None:
    logits, segmentation = example(labels)
    found = hard_counts(logits, segmentation, labels)
    for index, members in enumerate(labels.foreground.values()):
        counts = [0, 0, 0]
        for place in np.ndindex(*segmentation.shape):
            truth, scores = segmentation[place].item(), logits[place[0]][(slice(None), *place[1:])]
            if truth == labels.ignore:
                continue
            yes = (
                scores[index].item() > 0
                if labels.has_regions
                else scores.argmax().item() == members[0]
            )
            true = truth in members
            counts[0] += yes and true
            counts[1] += yes and not true
            counts[2] += true and not yes
        assert found[:, index].tolist() == counts
    assert found.shape == (3, len(labels.foreground))


def test_counting_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> float:
        raise AssertionError("a value was fetched from the device")

    drawn = [(parameter.values[0], example(parameter.values[0])) for parameter in KINDS]
    for method in ("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, method, refuse)
    for labels, (logits, segmentation) in drawn:
        hard_counts(logits, segmentation, labels)
