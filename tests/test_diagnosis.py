from dataclasses import replace

import pytest

from nnseg.diagnosis import Symptoms, diagnose, has_learnt_nothing

SOUND = Symptoms(
    losses=(0.9, 0.7),
    dice={"liver": 0.0, "tumour": None},
    foreground_share=0.05,
    absent=(),
    lost=(),
    lr=0.01,
    precision="bf16",
)


@pytest.mark.parametrize(
    ("dice", "nothing"),
    [
        ({"a": 0.0, "b": None}, True),
        ({"a": None}, True),
        ({"a": 0.0, "b": 0.001}, False),
    ],
)
def test_nothing_is_learnt_where_no_label_is_hit(
    dice: dict[str, float | None], nothing: bool
) -> None:
    assert has_learnt_nothing(dice) is nothing


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"absent": ("tumour",)}, "label tumour: in no training case"),
        ({"lost": ("a", "b"), "absent": ("a", "b")}, "labels a, b: in the label maps, but gone"),
        ({"losses": (0.9, float("nan"))}, "not finite (nan); use --precision fp32"),
        ({"losses": (float("inf"),), "precision": "fp32"}, "not finite (inf); lower --lr"),
        ({"losses": (0.9, 1.2)}, "the loss rises (0.9 to 1.2); lower --lr (it is 0.01)"),
        ({"foreground_share": 0.0}, "no patch that was looked at has a label"),
        ({"foreground_share": 5e-5}, "labels fill 5e-05 of the patches"),
    ],
)
def test_each_cause_is_named_alone_with_what_to_do(change: dict[str, object], words: str) -> None:
    (only,) = diagnose(replace(SOUND, **change))  # type: ignore[arg-type]
    assert words in only


def test_without_a_cause_patience_is_advised() -> None:
    (only,) = diagnose(SOUND)
    assert "more epochs" in only


def test_several_causes_are_all_named() -> None:
    found = diagnose(replace(SOUND, absent=("tumour",), foreground_share=0.0, losses=(1.0, 2.0)))
    assert len(found) == 3
    assert "tumour" in found[0]
