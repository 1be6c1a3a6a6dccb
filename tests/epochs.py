"""Epochs as a training reports them."""

from nnseg.learning.resume import EpochReport


def epoch(number: int, dice: float | None = 0.861) -> EpochReport:
    return EpochReport(
        epoch=number,
        epochs=100,
        lr=0.0094,
        loss=0.4123,
        validation_loss=-0.51,
        dice=dice,
        dice_average=dice,
        label_dice={"Anterior": dice, "Posterior": 1.0},
        seconds=23.14,
        wait_share=0.043,
    )
