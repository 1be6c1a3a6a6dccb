"""The rules beside a model, and whether they were decided on what it predicts today."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from nnseg import record
from nnseg.errors import DataError, MissingError
from nnseg.folders import checkpoint_file, postprocessing_file, validated_file, validation_folder
from nnseg.labels import Labels
from nnseg.postprocess.rules import DecidedOn, Postprocessing
from nnseg.validated import is_validated, read_validated

logger = logging.getLogger(__name__)


def decided_on(predictions: Sequence[Path], labels: Labels) -> DecidedOn:
    """Say whose predictions some folders hold, for the record of rules that are decided on them.

    Args:
        predictions: Folders of label maps; of those that are a fold's validation, and proven to be
            of its final weights, these are named.
        labels: Of the dataset.
    """
    weights = {}
    for folder in predictions:
        fold = folder.absolute().parent
        if validation_folder(fold) != folder.absolute() or not validated_file(fold).is_file():
            continue
        proof = read_validated(fold)
        if proof is not None and is_validated(fold):
            weights[fold.name] = proof.weights_sha256
    return DecidedOn(labels=labels, weights_sha256=weights)


def stored_rules(folder: Path, labels: Labels) -> Postprocessing:
    """Give the rules beside a configuration's folds; a warning where they are of another model.

    Args:
        folder: Of the configuration, or of a fold of it.
        labels: Of the model.

    Raises:
        DataError: The file is damaged.
    """
    for place in (folder, folder.absolute().parent):
        file = postprocessing_file(place)
        if not file.is_file():
            continue
        found = record.load(Postprocessing, file)
        if found.rules and found.decided_on is not None:
            _hold_against(file, found.decided_on, labels)
        return Postprocessing(rules=found.rules)
    return Postprocessing()


def _hold_against(file: Path, decided: DecidedOn, labels: Labels) -> None:
    """Warn where the labels or the weights of a fold are others than rules were decided on."""
    reasons = ["the labels are others now"] if decided.labels != labels else []
    for name, weights in decided.weights_sha256.items():
        with suppress(DataError, MissingError):  # a fold that is not here predicts nothing
            final = record.read_json(checkpoint_file(file.parent / name, "final"))
            if isinstance(final, dict) and final.get("weights_sha256") != weights:
                reasons.append(f"{name} was trained anew")
    if reasons:
        logger.warning(
            "%s is applied, but was decided on other predictions: %s; `nnseg postprocess` decides "
            "again, or remove it",
            file,
            ", ".join(reasons),
        )
