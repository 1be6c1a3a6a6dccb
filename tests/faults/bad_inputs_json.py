"""Files dataset.json that are damaged, hostile, wrong or merely odd."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_inputs import RIGHT, BadInput, Data, Refused, Used, Verdict, write_case

INVALID = Refused(cause="is not valid JSON")
LABELS = {"background": 0, "head": 1, "tail": 2}


def spoilt_json() -> tuple[BadInput, ...]:
    """List them all."""
    return tuple(bad for kind in (texts, entries, labels, maps) for bad in kind())


def texts() -> Iterator[BadInput]:
    """Files that are no JSON of an object, or more than a program should take."""
    for name, text, cause in (
        ("empty", "", "is not valid JSON"),
        ("cut off", '{"labels": {"backgr', "is not valid JSON"),
        ("a comma too many", '{"labels": {},}', "is not valid JSON"),
        ("a comment", '{"labels": {}} // mine', "is not valid JSON"),
        ("two objects", "{}{}", "is not valid JSON"),
        ("YAML", "labels:\n  background: 0\n", "is not valid JSON"),
        ("a list", "[]", "JSON list|JSON object"),
        ("null", "null", "JSON NoneType|JSON object"),
        ("a number", "7", "JSON int|JSON object"),
        ("nothing in it", "{}", "channel_names"),
        ("deep", '{"x":' * 100 + "1" + "}" * 100, "nested deeper"),
        (
            "very deep",
            '{"x":' * 100_000 + "1" + "}" * 100_000,
            "nested deeper|recursion|valid JSON",
        ),
        ("very deep lists", "[" * 100_000 + "]" * 100_000, "nested deeper|recursion|valid JSON"),
    ):
        yield _of_text(name, text.encode(), Refused(cause=cause))
    yield _of_text("latin-1", b'{"name": "M\xfcller"}', Refused(cause="cannot be read|UTF-8"))
    yield _of_text("UTF-16", '{"a": 1}'.encode("utf-16"), Refused(cause="cannot be read|UTF-8"))
    yield _of_text("zeros", bytes(500), INVALID)
    for name, old, new, cause in (
        ("NaN", '"numTraining": 5', '"numTraining": NaN', "NaN is not"),
        ("Infinity", '"numTraining": 5', '"x": -Infinity, "numTraining": 5', "Infinity is not"),
        ("1e999", '"numTraining": 5', '"x": 1e999, "numTraining": 5', "too large a number"),
        ("a key twice", '"numTraining": 5', '"numTraining": 5, "numTraining": 6', "occurs twice"),
        ("a label twice", '"head": 1', '"head": 1, "head": 2', "occurs twice"),
        ("5000 digits", '"numTraining": 5', f'"numTraining": {"9" * 5000}', "digits|valid JSON"),
    ):
        yield _bad(name, lambda d, o=old, n=new: _edit(d, o, n), Refused(cause=cause))
    yield _bad("a mark of the byte order", lambda d: _rewrite(d, lambda b: b"\xef\xbb\xbf" + b),
               Refused(cause="BOM"))  # fmt: skip
    yield _bad("other blanks", lambda d: _rewrite(d, lambda b: b"\r\n\t" + b + b"\n\n"), RIGHT)
    yield _bad("1 GB", _sparse, Refused(cause="more than the"))
    yield _bad("not there", lambda d: _json(d).unlink(), Refused(cause="does not exist", code=3))
    yield _bad("a folder", lambda d: _replace(d, Path.mkdir), Refused(cause="cannot be read"))
    yield _bad("a pipe", lambda d: _replace(d, os.mkfifo), Refused(cause="cannot be read|no file"))
    yield _bad("a link to itself", lambda d: _replace(d, lambda p: p.symlink_to(p.name)),
               Refused(cause="cannot be read|does not exist"))  # fmt: skip
    yield _bad("no right to it", lambda d: _json(d).chmod(0), Refused(cause="ermission"))


def entries() -> Iterator[BadInput]:
    """Entries that are missing, of a wrong type, or contradict the files."""
    for key in ("labels", "channel_names", "numTraining", "file_ending"):
        yield _with(f"no {key}", Refused(cause=key), **{key: ...})
        for value in (None, [1], True):
            yield _with(f"{key} {value}", Refused(cause=key), **{key: value})
    for value in ("5", 5.5, -1, 4, 6, 10**30):
        yield _with(f"numTraining {value!r}", Refused(cause="numTraining"), numTraining=value)
    for value in ("nii.gz", "", ".", ".dcm", "/../x.nii", "../../x.nii.gz", ".nii.gz\n", 7):
        yield _with(f"file_ending {value!r}", Refused(cause="file_ending"), file_ending=value)
    for value in (
        {"1": "T1", "2": "T2"}, {"0": "T1", "2": "T2"}, {"00": "T1", "1": "T2"}, {"T1": "0"}, {},
        {"0": "T1", "1": 2}, {"0": ["T1"], "1": "T2"},
    ):  # fmt: skip
        yield _with(f"channel_names {value}", Refused(cause="channel_names"), channel_names=value)
    yield _with("a channel too many", Refused(cause="channel 2 .T3. of the case does not exist"),
                "case_0_0002", channel_names={"0": "T1", "1": "T2", "2": "T3"})  # fmt: skip
    yield _with("a channel too few", Refused(cause="declares no channel"), "case_0_0001",
                channel_names={"0": "T1"})  # fmt: skip
    yield _with("modality as well", Refused(cause="channel_names and modality"),
                modality={"0": "T1", "1": "T2"})  # fmt: skip
    yield _with("modality instead", RIGHT, modality={"0": "T1", "1": "T2"}, channel_names=...)
    yield _with("more keys", RIGHT, name="x", licence=None, numTest=0, reference={"a": [1, 2]})
    channels = {"0": "<script>alert(1)</script>", "1": "{0} %s'\"; rm -rf"}
    yield _with("odd names of channels", RIGHT, channel_names=channels)
    yield _with("a channel that steers terminals", Refused(cause="channel_names has"),
                channel_names={"0": "T1", "1": "\x1b[31m\n"})  # fmt: skip


def labels() -> Iterator[BadInput]:
    """Labels that no network can learn, and some that it can."""
    for name, value in {
        "no background": {"head": 1, "tail": 2},
        "background 1": {"background": 1, "head": 2, "tail": 3},
        "nothing else": {"background": 0},
        "as text": {"background": "0", "head": "1", "tail": "2"},
        "halves": {"background": 0, "head": 1.5, "tail": 2},
        "whole floats": {"background": 0, "head": 1.0, "tail": 2},
        "truth": {"background": 0, "head": True, "tail": 2},
        "null": {"background": 0, "head": None, "tail": 2},
        "negative": {"background": 0, "head": -1, "tail": 2},
        "10^30": {"background": 0, "head": 10**30, "tail": 2},
        "65536": {"background": 0, "head": 1, "tail": 65536},
        "an integer twice": {"background": 0, "head": 1, "tail": 1},
        "no name": {"background": 0, "": 1, "tail": 2},
        "names for numbers": {"0": "background", "1": "head", "2": "tail"},
        "ignore within": {"background": 0, "ignore": 1, "tail": 2},
        "a list": ["background", "head", "tail"],
        "regions without an order": {"background": 0, "all": [1, 2], "tail": 2},
        "an empty region": {"background": 0, "all": [], "tail": [1, 2]},
        "a region of background": {"background": 0, "all": [0, 1], "tail": 2},
        "a region of words": {"background": 0, "all": ["1", 2], "tail": 2},
        "a region in a region": {"background": 0, "all": [[1], 2], "tail": 2},
    }.items():
        yield _with(f"labels: {name}", Refused(cause="labels|region"), labels=value)
    regions = {"background": 0, "all": [1, 2], "tail": 2}
    for order in ([], [1], [1, 2, 3], ["1", "2"], [1, 7], 5, [1.5, 2]):
        yield _with(f"regions_class_order {order}", Refused(cause="regions_class_order"),
                    labels=regions, regions_class_order=order)  # fmt: skip
    yield _with("regions", RIGHT, labels=regions, regions_class_order=[1, 2])
    yield _bad("labels with gaps", _with_gaps, RIGHT)
    yield _with("a label that no case has", Used(warning="no label map has label 3"),
                labels=LABELS | {"third": 3})  # fmt: skip
    yield _with("an ignore label that no case has", RIGHT, labels=LABELS | {"ignore": 3})
    yield _with("one label too few", Refused(cause="not declare"),
                labels={"background": 0, "head": 1})  # fmt: skip
    odd = {"background": 0, "</td><script>": 1, "%s {0}'\"; rm -rf": 2}
    yield _with("odd names of labels", RIGHT, labels=odd)
    yield _with("a label that steers terminals", Refused(cause="labels has"),
                labels={"background": 0, "head": 1, "\x1b[31m\n": 2})  # fmt: skip


def maps() -> Iterator[BadInput]:
    """Maps `dataset` of the cases' files."""

    def listing(
        name: str, verdict: Verdict, change: Callable[[dict[str, Any]], object]
    ) -> BadInput:
        def spoil(data: Data) -> None:
            content: dict[str, Any] = {
                case: {
                    "images": [f"imagesTr/{case}_{channel:04d}.nii.gz" for channel in (0, 1)],
                    "label": f"labelsTr/{case}.nii.gz",
                }
                for case in data.cases
            }
            change(content)
            data.declare(dataset=content)

        return _bad(f"dataset: {name}", spoil, verdict)

    def label(value: object) -> Callable[[dict[str, Any]], object]:
        return lambda content: content["case_0"].update(label=value)

    yield listing("right", RIGHT, lambda content: None)
    yield listing("empty", Refused(cause="lists 0|is empty"), dict.clear)
    yield listing("a file that is not there", Refused(cause="does not exist"),
                  label("labelsTr/none.nii.gz"))  # fmt: skip
    for name in ("/etc/hostname", "../../secret.nii.gz", "~/x.nii.gz", "$HOME/x.nii.gz", "",
                 "C:\\x.nii.gz", "labelsTr\\..\\..\\x.nii.gz"):  # fmt: skip
        yield listing(f"{name!r}", Refused(cause="does not stay in"), label(name))
    yield listing("NUL", Refused(cause="case_0|cannot be looked for|does not exist"),
                  label("labelsTr/a\0.nii.gz"))  # fmt: skip
    yield listing("a long path", Refused(cause="cannot be looked for|does not exist"),
                  label("x" * 5000))  # fmt: skip
    yield listing("a number", Refused(cause="dataset"), label(5))
    yield listing("a channel too few", Refused(cause="image files for the 2 channels"),
                  lambda c: c["case_0"]["images"].pop())  # fmt: skip
    yield listing("no images", Refused(cause="no images"), lambda c: c["case_0"].update(images=[]))
    yield listing("more keys in a case", Refused(cause="dataset.case_0"),
                  lambda c: c["case_0"].update(age=7))  # fmt: skip
    for name in ("../x", "a/b", "", "."):
        yield listing(f"case {name!r}", Refused(cause="dataset has the case"),
                      lambda c, n=name: c.update({n: c.pop("case_0")}))  # fmt: skip


def _bad(
    name: str, spoil: Callable[[Data], object], verdict: Verdict, file: str = "dataset.json"
) -> BadInput:
    names = (file,) if isinstance(verdict, Refused) else ()
    return BadInput(name=name, row="dataset.json", spoil=spoil, verdict=verdict, names=names)


def _with(name: str, verdict: Verdict, file: str = "dataset.json", /, **changes: Any) -> BadInput:
    return _bad(name, lambda data: data.declare(**changes), verdict, file)


def _of_text(name: str, text: bytes, verdict: Verdict) -> BadInput:
    return _bad(name, lambda data: _rewrite(data, lambda old: text), verdict)


def _json(data: Data) -> Path:
    return data.folder / "dataset.json"


def _rewrite(data: Data, change: Callable[[bytes], bytes]) -> None:
    _json(data).write_bytes(change(_json(data).read_bytes()))


def _edit(data: Data, old: str, new: str) -> None:
    text = json.dumps(json.loads(_json(data).read_text()))
    assert old in text
    _json(data).write_text(text.replace(old, new, 1))


def _sparse(data: Data) -> None:
    with open(_json(data), "wb") as file:
        file.truncate(2**30)


def _replace(data: Data, put: Callable[[Path], object]) -> None:
    _json(data).unlink()
    put(_json(data))


def _with_gaps(data: Data) -> None:
    """Call the tail 7 in the files; what is trained on counts on."""
    data.declare(labels={"background": 0, "head": 1, "tail": 7})
    for case, truth in list(data.cases.items()):
        data.change(case, label=np.where(truth.label == 2, 7, truth.label).astype("u1"))
        write_case(data, case)
        data.cases[case] = truth
