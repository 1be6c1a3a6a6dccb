from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnseg import record
from nnseg.errors import DataError
from nnseg.folders import postprocessing_file
from nnseg.labels import Labels
from nnseg.postprocess import KeepLargest, MinimumSize, Postprocessing
from nnseg.postprocess.rules import going, values_of

RULES = Postprocessing(
    rules=(KeepLargest(labels=("liver", "spleen")), MinimumSize(label="gall", smallest=0.25))
)


def test_a_rule_says_in_words_what_it_does() -> None:
    assert [str(rule) for rule in RULES.rules] == [
        "keep the largest component of liver, spleen",
        "take out components of gall under 0.25 ml",
    ]


def test_a_rule_is_about_the_integers_of_all_its_labels() -> None:
    labels = Labels(
        labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3)}, regions_class_order=(1, 2)
    )
    assert values_of(KeepLargest(labels=("core", "whole")), labels) == (1, 2, 3)
    assert values_of(MinimumSize(label="core", smallest=1), labels) == (2, 3)


def test_what_is_outside_of_a_rule_never_goes() -> None:
    sizes = np.array([0, 4, 9, 9])
    spacing = (1.0, 1.0, 1.0)
    largest = KeepLargest(labels=("liver",))
    least = MinimumSize(label="liver", smallest=9, unit="voxels")
    for rule in (largest, least):
        assert going(rule, sizes, spacing).tolist() == [False, True, False, False]


def test_a_spacing_that_was_rounded_takes_out_no_component_of_just_the_size() -> None:
    rule = MinimumSize(label="liver", smallest=0.007)  # 10 voxels of 0.7 mm^3
    sizes = np.array([0, 10])
    for spacing in ((0.7, 1.0, 1.0), (float(np.float32(0.7)), 1.0, 1.0), (0.7 * (1 - 5e-7), 1, 1)):
        assert going(rule, sizes, spacing).tolist() == [False, False]
    assert going(rule, sizes, (0.7 * (1 - 1e-5), 1.0, 1.0)).tolist() == [False, True]


def test_rules_come_back_from_their_file_in_order(tmp_path: Path) -> None:
    record.save(RULES, postprocessing_file(tmp_path))
    assert record.load(Postprocessing, tmp_path / "postprocessing.json") == RULES
    kinds = [rule["kind"] for rule in record.to_json(RULES)["rules"]]
    assert kinds == ["keep_largest", "minimum_size"]


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        ({"labels": ["liver"]}, "kind"),
        ({"kind": "keep_smallest", "labels": ["liver"]}, "keep_smallest"),
        ({"kind": "keep_largest", "labels": []}, "names no label"),
        ({"kind": "keep_largest", "labels": ["liver"], "unit": "ml"}, "unit: unexpected"),
        ({"kind": "minimum_size", "labels": ["liver"]}, "smallest: field required"),
        ({"kind": "minimum_size", "label": "liver", "smallest": 1, "unit": "mm"}, "'ml' or"),
        ({"kind": "minimum_size", "label": "liver", "smallest": 0}, "0 ml; it must be above 0"),
        ({"kind": "minimum_size", "label": "liver", "smallest": "1"}, "valid number"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused(rule: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError, match=rf"^rules\.json: .*{fault}"):
        record.parse(Postprocessing, {"rules": [rule]}, "rules.json")
