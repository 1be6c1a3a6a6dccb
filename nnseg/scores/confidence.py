"""What a model's own confidence is worth, measured while it predicts its validation cases."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnseg import record
from nnseg.axes import Planes, Segmentation
from nnseg.folders import confidence_file, validation_folder
from nnseg.image.crop import bounding_box
from nnseg.labels import Labels
from nnseg.scores.uncertainty import (
    Calibration,
    Correlation,
    ExpectedDice,
    calibrate,
    correlation,
    quality,
)
from nnseg.validated import read_validated

MARGIN = 8  # voxels around the labelled ones; further out any model is right
MOST_VOXELS = 200_000  # of all cases together, whose logits are kept
MOST_OF_A_CASE = 10_000
SEED = 4321


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidence:
    """Whether a model's probabilities are true, and whether its own judgement of a case is.

    `calibration` is None where no validation case has a voxel with a reference.
    """

    calibration: Calibration | None
    quality: Correlation  # of the expected Dice with the true one, over cases


def read_confidence(fold: Path, weights_sha256: str) -> Confidence | None:
    """Read what the confidence of a fold's network is worth.

    Args:
        fold: Its folder.
        weights_sha256: Of the network.

    Returns:
        None where it was not measured, or nothing proves that it was of these weights.

    Raises:
        DataError: The file is damaged.
    """
    path = confidence_file(validation_folder(fold))
    proof = read_validated(fold)
    if proof is None or proof.weights_sha256 != weights_sha256 or not path.is_file():
        return None
    return record.load(Confidence, path)


class Observer:
    """Watches the logits of validation cases go by.

    Of each case it keeps the logits of some voxels in and around what is labelled: far from it
    every model is right and sure, and would seem well calibrated whatever it does where it counts.
    """

    def __init__(self, labels: Labels, cases: int) -> None:
        self._labels = labels.consecutive
        self._of_a_case = min(MOST_OF_A_CASE, max(1, MOST_VOXELS // max(1, cases)))
        self._logits: list[NDArray[np.float32]] = []
        self._targets: list[NDArray[np.integer]] = []
        self._estimates: list[float | None] = []
        self._dice: list[float | None] = []

    def watch(self, reference: Segmentation | None) -> Callable[[Planes], None]:
        """Begin a case, and give what takes its logits (z, y, x, head), some planes at a time.

        Args:
            reference: Label positions (z, y, x) of the preprocessed case; None where there are
                none, and only the expected Dice is of use.
        """
        self._expected = ExpectedDice(self._labels)
        chosen = np.empty(0, np.int64) if reference is None else self._draw(reference)
        if reference is not None:
            self._targets.append(reference.reshape(-1)[chosen])
        start = 0

        def look(logits: Planes) -> None:
            nonlocal start
            regions = self._labels.has_regions
            decided = logits > 0 if regions else logits.argmax(axis=-1)
            self._expected.add(self._labels.probabilities(logits), decided)
            rows = logits.reshape(-1, logits.shape[-1])
            first, last = np.searchsorted(chosen, (start, start + len(rows)))
            if last > first:
                self._logits.append(rows[chosen[first:last] - start])
            start += len(rows)

        return look

    def note(self, dice: float | None) -> None:
        """End a case with its true Dice, the mean over its labels."""
        self._estimates.append(quality(self._expected.result()))
        self._dice.append(dice)

    def result(self) -> Confidence:
        """Give what all cases together say."""
        found = None
        if self._logits:
            logits, targets = np.concatenate(self._logits), np.concatenate(self._targets)
            if self._labels.has_regions:
                members = self._labels.foreground.values()
                targets = np.stack([np.isin(targets, values) for values in members], axis=-1)
            found = calibrate(logits, targets, self._labels.has_regions)
        return Confidence(calibration=found, quality=correlation(self._estimates, self._dice))

    def _draw(self, reference: Segmentation) -> NDArray[np.int64]:
        """Draw voxels with a reference from around those that are labelled: flat, ascending."""
        known = np.ones(reference.shape, np.bool_)
        if self._labels.ignore is not None:
            known = reference != self._labels.ignore
        box = [
            slice(max(0, first - MARGIN), last + MARGIN)
            for first, last in bounding_box((reference > 0) & known)
        ]
        inside = np.zeros(reference.shape, np.bool_)
        inside[tuple(box)] = True
        places = np.flatnonzero(inside & known)
        rng = np.random.default_rng((SEED, len(self._estimates)))
        if len(places) > self._of_a_case:
            places = np.sort(rng.choice(places, self._of_a_case, replace=False))
        return places
