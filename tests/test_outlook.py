"""What `nnseg predict --dry-run` says."""

import dataclasses
import json

import pytest

from nnseg.errors import DataError, MissingError, PartlyDoneError
from nnseg.verbs.outlook import Outlook, Stage
from nnseg.verbs.predicting import raise_failed

OUTLOOK = Outlook(
    source="in",
    target="out",
    cases=("a", "b", "c", "d"),
    done=frozenset({"a"}),
    failed={"c": DataError("c_0000.nii.gz is damaged; get it again")},
    stages=(
        Stage(model="D p 3d_lowres", folds=1, mirrors=1, device="cpu", precision="fp32"),
        Stage(model="D p 3d_cascade_fullres", folds=5, mirrors=8, device="cpu", precision="bf16"),
    ),
    step=0.5,
    memory=1_234_000_000,
    device_memory=0,
    disk=12_300_000,
)


def test_an_outlook_says_what_would_be_done_by_which_networks_and_what_it_takes() -> None:
    assert str(OUTLOOK).splitlines() == [
        "in to out: 4 cases, 1 done, 2 to do, 1 cannot be predicted",
        "D p 3d_lowres: 1 fold, no mirrors, on cpu in fp32",
        "D p 3d_cascade_fullres: 5 folds, 8 mirrors, on cpu in bf16",
        "prediction would take about 1.2 GB of memory and at most 12 MB of disk; nothing was "
        "written",
    ]
    on_gpu = dataclasses.replace(OUTLOOK, device_memory=10**10)
    assert "1.2 GB of memory, 10 GB of the GPU's and at most" in str(on_gpu)


def test_where_all_is_done_a_prediction_would_take_nothing() -> None:
    done = dataclasses.replace(OUTLOOK, cases=("a",), failed={}, memory=0, disk=0)
    text = str(done)
    assert text.startswith("in to out: 1 cases, 1 done, 0 to do\n")
    assert text.endswith("prediction would take nothing; nothing was written")


def test_other_programs_are_told_of_every_case() -> None:
    told = json.loads(json.dumps(OUTLOOK.to_json()))
    assert told["cases"] == {
        "a": "done",
        "b": "to do",
        "c": "c_0000.nii.gz is damaged; get it again",
        "d": "to do",
    }
    assert [stage["folds"] for stage in told["stages"]] == [1, 5]
    assert (told["memory"], told["disk"], told["written"]) == (1_234_000_000, 12_300_000, False)


def test_what_failed_among_others_is_partly_done_and_alone_it_is_itself() -> None:
    raise_failed({}, 3)
    failed = {"b": MissingError("gone"), "a": DataError("cut")}
    with pytest.raises(PartlyDoneError) as partly:
        raise_failed(failed, 3)
    assert str(partly.value) == "2 of 3 cases failed:\n  case b: gone\n  case a: cut"
    with pytest.raises(MissingError, match="2 of 2 cases failed"):
        raise_failed(failed, 2)
