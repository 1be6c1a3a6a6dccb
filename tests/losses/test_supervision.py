import pytest
import torch
from loss_oracle import PLAIN, example

from nnseg.losses.build import LOSSES, dice_ce
from nnseg.losses.entropy import ce
from nnseg.losses.supervision import deep_supervision_loss


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_deep_supervision_compares_with_the_nearest_voxel_of_the_label_map(name: str) -> None:
    loss = LOSSES[name]
    segmentation = torch.randint(0, 3, (2, 4, 6, 8), generator=torch.Generator().manual_seed(0))
    full, _ = example(PLAIN, (4, 6, 8))
    half, _ = example(PLAIN, (4, 3, 2))
    found = deep_supervision_loss(loss, [full, half], segmentation, PLAIN, False, (0.6, 0.4, 0))
    nearest = torch.nn.functional.interpolate(
        segmentation[:, None].float(), (4, 3, 2), mode="nearest-exact"
    )[:, 0].long()
    wanted = 0.6 * loss(full, segmentation, PLAIN, False)
    wanted = wanted + 0.4 * loss(half, nearest, PLAIN, False)
    torch.testing.assert_close(found, wanted)


def test_an_output_of_weight_zero_is_not_looked_at() -> None:
    logits, segmentation = example(PLAIN)
    broken = torch.full((2, 3, 2, 2, 3), torch.nan)
    found = deep_supervision_loss(ce, [logits, broken], segmentation, PLAIN, False, (1.0, 0.0))
    assert torch.equal(found, ce(logits, segmentation, PLAIN, False))


def test_an_output_that_counts_may_not_be_left_out() -> None:
    logits, segmentation = example(PLAIN)
    with pytest.raises(ValueError, match="1 outputs do not cover"):
        deep_supervision_loss(dice_ce, [logits], segmentation, PLAIN, False, (0.6, 0.4))
    with pytest.raises(ValueError, match="argument 2 is"):
        deep_supervision_loss(dice_ce, [logits, logits], segmentation, PLAIN, False, (1.0,))
