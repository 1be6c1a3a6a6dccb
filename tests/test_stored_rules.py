"""Rules that lie beside a model, held against what they were decided on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nnseg import record
from nnseg.folders import (
    checkpoint_file,
    postprocessing_file,
    summary_file,
    validated_file,
    validation_folder,
)
from nnseg.labels import Labels
from nnseg.postprocess import KeepLargest, Postprocessing
from nnseg.postprocess.rules import DecidedOn
from nnseg.postprocess.stored import decided_on, stored_rules
from nnseg.validated import Validated

LABELS = Labels(labels={"background": 0, "organ": 1})
RULES = (KeepLargest(labels=("organ",)),)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a configuration with two folds, trained and validated."""
    for name in ("fold_0", "fold_1"):
        fold = tmp_path / name
        validation_folder(fold).mkdir(parents=True)
        summary_file(validation_folder(fold)).write_text("{}")
        record.save(Validated(weights_sha256=f"of {name}"), validated_file(fold))
        train(fold, f"of {name}")
    return tmp_path


def train(fold: Path, weights: str) -> None:
    checkpoint_file(fold, "final").write_text(json.dumps({"weights_sha256": weights}))


def decide(model: Path) -> Postprocessing:
    folders = [validation_folder(model / name) for name in ("fold_0", "fold_1")]
    rules = Postprocessing(rules=RULES, decided_on=decided_on(folders, LABELS))
    record.save(rules, postprocessing_file(model))
    return rules


def test_rules_know_the_weights_whose_predictions_they_were_decided_on(model: Path) -> None:
    weights = {"fold_0": "of fold_0", "fold_1": "of fold_1"}
    assert decide(model).decided_on == DecidedOn(labels=LABELS, weights_sha256=weights)
    read = record.load(Postprocessing, postprocessing_file(model))
    assert read.decided_on == DecidedOn(labels=LABELS, weights_sha256=weights)
    train(model / "fold_0", "others")  # its validation is of the weights of before
    found = decided_on([validation_folder(model / "fold_0"), model, model / "fold_1"], LABELS)
    assert found.weights_sha256 == {}


@pytest.mark.parametrize("where", [".", "fold_0"])
def test_rules_of_this_model_are_given_in_silence(
    model: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    decide(model)
    assert stored_rules(model / where, LABELS) == Postprocessing(rules=RULES)
    assert stored_rules(model / where, LABELS).decided_on is None  # or each result would be anew
    assert caplog.records == []


def test_a_fold_that_was_trained_anew_since_then_is_named(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decide(model)
    train(model / "fold_1", "others")
    assert stored_rules(model, LABELS).rules == RULES
    (entry,) = caplog.records
    assert "was decided on other predictions: fold_1 was trained anew" in entry.getMessage()
    caplog.clear()
    checkpoint_file(model / "fold_1", "final").unlink()
    stored_rules(model, LABELS)
    assert caplog.records == []


def test_labels_that_have_changed_are_said(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    decide(model)
    stored_rules(model, Labels(labels={**LABELS.labels, "lesion": 2}))
    assert "the labels are others now" in caplog.text


def test_rules_of_an_older_version_are_applied_as_they_are(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = record.to_json(Postprocessing(rules=RULES))
    del content["decided_on"]
    postprocessing_file(model).write_text(json.dumps(content))
    assert stored_rules(model, LABELS).rules == RULES
    assert caplog.records == []


def test_what_rules_were_decided_on_does_not_make_them_others(model: Path) -> None:
    decided = decide(model)
    assert decided == replace(decided, decided_on=None) == Postprocessing(rules=RULES)
