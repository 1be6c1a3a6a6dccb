"""Why a network has learnt nothing yet: what is looked at when the Dice is 0 after two epochs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LOOKED_AT_AFTER = 2  # epochs; before, a network may well predict background only
RARE = 1e-4  # share of foreground voxels in patches, below which little can be learnt


@dataclass(frozen=True, slots=True, kw_only=True)
class Symptoms:
    """What is known of a training that shows no Dice."""

    losses: tuple[float, ...]  # of the training, epoch by epoch
    dice: Mapping[str, float | None]  # pseudo Dice of each label in the last epoch
    foreground_share: float  # of the voxels of some training patches
    absent: Sequence[str]  # labels that no training case of this fold has
    lost: Sequence[str]  # labels that cases have, but not after resampling
    lr: float
    precision: str


def has_learnt_nothing(dice: Mapping[str, float | None]) -> bool:
    """Whether no label has a Dice over 0; a label that was never seen has none."""
    return not any(value for value in dice.values())


def diagnose(symptoms: Symptoms) -> tuple[str, ...]:
    """Name what may be the cause, the most certain first, each with what to do; never nothing."""
    found = []
    if symptoms.lost:
        found.append(
            f"{_names(symptoms.lost)}: in the label maps, but gone after resampling; plan with a "
            "finer --target-spacing"
        )
    if absent := [name for name in symptoms.absent if name not in symptoms.lost]:
        found.append(
            f"{_names(absent)}: in no training case of this fold; check the labels of "
            "dataset.json and the folds"
        )
    if not all(map(math.isfinite, symptoms.losses)):
        remedy = "use --precision fp32" if symptoms.precision != "fp32" else "lower --lr"
        found.append(f"the loss is not finite ({symptoms.losses[-1]}); {remedy}")
    elif len(symptoms.losses) > 1 and symptoms.losses[-1] > symptoms.losses[0]:
        found.append(
            f"the loss rises ({symptoms.losses[0]:.3g} to {symptoms.losses[-1]:.3g}); lower --lr "
            f"(it is {symptoms.lr:g})"
        )
    if symptoms.foreground_share == 0:
        found.append(
            "no patch that was looked at has a label; check that the label maps lie on the images "
            "(`nnseg doctor`)"
        )
    elif symptoms.foreground_share < RARE:
        found.append(
            f"labels fill {symptoms.foreground_share:.2g} of the patches; it may only take more "
            "epochs, or a larger patch"
        )
    return tuple(found) or (
        "nothing is wrong with patches, labels or loss: it may only take more epochs (a network "
        "predicts background first)",
    )


def _names(labels: Sequence[str]) -> str:
    return f"label{'s' if len(labels) > 1 else ''} {', '.join(labels)}"
