"""Datasets whose files do not belong together, are named oddly, or cannot be got at."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from bad_inputs import (
    GOOD,
    RIGHT,
    SIZE,
    Array,
    BadInput,
    Data,
    Refused,
    Used,
    Verdict,
    affine_of,
    nifti,
    write_case,
)
from bad_inputs_formats import nrrd

LISTED = Refused(cause="", code=6)  # of a case among others that are predicted
Spoil = Callable[[Data], object]


def spoilt_datasets() -> tuple[BadInput, ...]:
    """List them all but those of a spoilt dataset.json."""
    kinds = (grids, sizes, names, files, counts, links)
    return tuple(bad for kind in kinds for bad in kind())


def grids() -> Iterator[BadInput]:
    """Files of a case that lie elsewhere than its first image."""
    for what, cause, change in (
        ("5 mm off", "origin or direction", _shifted(5)),
        ("0.1 mm off", "origin or direction", _shifted(0.1)),
        ("mirrored", "origin or direction", lambda a: a @ np.diag([-1, 1, 1, 1])),
        ("turned by 5 degrees", "origin or direction|degrees", _turned(5)),
        ("of another spacing", "spacing", lambda a: a @ np.diag([1, 1, 1.1, 1])),
    ):
        yield _elsewhere(what, change, Refused(cause=cause))
        yield _elsewhere(what, change, Refused(cause=cause), of_label=False)
    for what, change in (
        ("off by rounding", _shifted(1e-5)),
        ("turned by rounding", _turned(1e-6)),
    ):
        yield _elsewhere(what, change, RIGHT)
        yield _elsewhere(what, change, RIGHT, of_label=False)
    for what, cut in (
        ("a slice less", np.s_[:, :, :-1]), ("a slice more", np.s_[:, :, [*range(9), 0]]),
        ("a column less", np.s_[:-1]), ("half of it", np.s_[::2, ::2, ::2]),
    ):  # fmt: skip
        yield _of_shape(what, lambda v, c=cut: v[c])
        yield _of_shape(what, lambda v, c=cut: v[c], of_label=False)
    yield _of_shape("axes in another order", lambda v: v.transpose(2, 0, 1))


def sizes() -> Iterator[BadInput]:
    """Cases of unusual sizes and of no contrast."""
    row = "unusual sizes"
    for what, shape in (
        ("one voxel", (1, 1, 1)), ("one slice", (15, 13, 1)), ("one row", (1, 1, 9)),
        ("smaller than a patch", (5, 4, 3)), ("long and thin", (300, 2, 1)),
    ):  # fmt: skip
        warning = "every voxel is|no foreground|" if np.prod(shape) == 1 else ""
        yield _bad(what, row, _resized(shape), Used(warning=warning), predicted=RIGHT)
    constant = Used(warning="every voxel is")
    yield _bad("constant", row, _filled(7), constant, predicted=RIGHT, names=("case_0_0000",))
    yield _bad("all zero", row, _filled(0), constant, predicted=RIGHT, names=("case_0_0000",))
    yield _bad("no foreground", "label values", _unlabelled("case_0"),
               Used(warning="no foreground"), names=("labelsTr/case_0",))  # fmt: skip
    all_empty = _unlabelled(*(f"case_{number}" for number in range(GOOD)))
    yield _bad("no foreground at all", "label values", all_empty, Refused(cause="none of the 5"),
               names=("labelsTr",))  # fmt: skip


def names() -> Iterator[BadInput]:
    """Cases named in ways that programs stumble over."""
    for name in (
        "müller", "mu\u0308ller", "脳", "two words", " space", "100%d",
        "{0}", "{case_id}", "$HOME", "`id`", "a;b", "a&b|c", "it's", 'a"b', "<b>", "-d", "a\\b",
        "case.nii.gz", "case_0000", "%s%n", "\u202egpj", "*", "?", "~", "#1", "a" * 200,
    ):  # fmt: skip
        shown = repr(name if len(name) < 20 else f"{name[:9]}...")
        yield _bad(f"case {shown}", "names", _renamed(name), RIGHT, predicted=RIGHT)
    yield _bad("201 bytes", "names", _renamed("b" * 201), Refused(cause="201 bytes|200 bytes"),
               names=("b" * 50,), predicted=Refused(cause="200 bytes", code=6))  # fmt: skip
    for name, shown in (("new\nline", r"new\x0aline"), ("tab\there", r"tab\x09here"),
                        ("\x1b[2Jcase", r"\x1b[2Jcase")):  # fmt: skip
        yield _bad(shown, "names", _renamed(name), Refused(cause="control character"),
                   names=(shown,),
                   predicted=Refused(cause="control character", code=6))  # fmt: skip
    latin = os.fsdecode(b"caf\xe9")
    yield _bad("no UTF-8", "names", _renamed(latin), Refused(cause="no text in UTF-8"),
               names=(r"caf\xe9",),
               predicted=Refused(cause="no text in UTF-8", code=6))  # fmt: skip
    yield _bad("the label map composed otherwise", "names", _composed_otherwise, RIGHT)


def files() -> Iterator[BadInput]:
    """Files that are missing, misnamed or too many."""
    row, image, label = "files of a case", "case_0_0000.nii.gz", "case_0.nii.gz"
    lost = Refused(cause="does not exist|lacks|has no image")
    yield _bad("a channel is missing", row, lambda d: d.image(channel=1).unlink(), lost,
               names=("case_0_0001",), predicted=LISTED)  # fmt: skip
    yield _bad("the first channel is missing", row, lambda d: d.image().unlink(), lost,
               names=("case_0_0000",), predicted=LISTED)  # fmt: skip
    yield _bad(
        "no label map", row, lambda d: d.label().unlink(), lost, names=(f"labelsTr/{label}",)
    )
    yield _bad("no image", row, lambda d: [p.unlink() for p in d.files()[:2]], lost,
               names=(f"labelsTr/{label}",))  # fmt: skip
    undeclared = Refused(cause="declares no channel|does not declare")
    yield _bad("a third channel", row, lambda d: _copy(d.image(), "case_0_0002.nii.gz"), undeclared,
               names=("case_0_0002",), predicted=LISTED)  # fmt: skip
    yield _bad("a channel that is none", row,
               lambda d: d.image(channel=1).rename(d.folder / "imagesTr" / "case_0_0007.nii.gz"),
               Refused(cause="does not exist"), names=("case_0_0001", "case_0_0007"),
               predicted=LISTED)  # fmt: skip
    strange = Refused(cause="name does not say|does not end as")
    for name in ("case_0.nii.gz", "case_0_00.nii.gz", "case_0_0000 (1).nii.gz", "notes.txt",
                 "case_0_T1.nii.gz", "Thumbs.db", "case_0_0000.nii.gz.part", "_0000.nii.gz",
                 "case_0_0000.dcm"):  # fmt: skip
        yield _bad(f"{name} besides", row, lambda d, n=name: _copy(d.image(), n), strange,
                   names=(name,))  # fmt: skip
    yield _bad(r"Icon\r besides", row, lambda d: _copy(d.image(), "Icon\r"),
               Refused(cause="control character"), names=(r"Icon\x0d",),
               predicted=RIGHT)  # fmt: skip
    yield _bad("the label map named as an image", row,
               lambda d: d.label().rename(d.folder / "labelsTr" / image), lost,
               names=(f"labelsTr/{label}",))  # fmt: skip
    for name in (f"._{image}", ".DS_Store", f".{image}"):
        yield _bad(f"{name} besides", "litter", lambda d, n=name: _litter(d, n), RIGHT,
                   predicted=RIGHT)  # fmt: skip
    yield _bad("a folder besides", "litter", lambda d: (d.folder / "imagesTr" / "old").mkdir(),
               RIGHT, predicted=RIGHT)  # fmt: skip
    twice = Refused(cause="claims? to be the same file")
    yield _bad("two formats of an image", row, lambda d: _other_format(d.image()), twice,
               names=("case_0_0000",), predicted=LISTED)  # fmt: skip
    yield _bad("two formats of a label map", row, lambda d: _other_format(d.label()), twice,
               names=("labelsTr/case_0",))  # fmt: skip
    yield _bad(".NII.GZ", row, lambda d: _ends(d.image(), ".NII.GZ"), RIGHT, predicted=RIGHT)


def counts() -> Iterator[BadInput]:
    """Too few cases, and cases that are there twice."""
    row = "number of cases"
    for count in (4, 3, 2, 1):
        yield _bad(f"{count}", row, _keep(count), Used(warning="fold"))
    yield _bad("none", row, _keep(0), Refused(cause="no file is named"), names=("imagesTr",))
    for name in ("imagesTr", "labelsTr"):
        yield _bad(f"no {name}", row, lambda d, n=name: shutil.rmtree(d.folder / n),
                   Refused(cause="does not exist"), names=(name,))  # fmt: skip
    same = Used(warning="same voxels as case case_0")
    yield _bad("a case twice", "duplicates", _twice, same, names=("case_1_0000",))
    yield _bad("a channel twice", "duplicates", _channel_twice,
               Used(warning="same voxels as case_0_0000"), names=("case_0_0001",))  # fmt: skip


def links() -> Iterator[BadInput]:
    """Things that are no files, or that cannot be opened."""
    row = "no file, or closed"
    gone = Refused(cause="does not exist|is a folder|no file|link")
    for what, put in (
        ("a folder", Path.mkdir), ("a pipe", os.mkfifo),
        ("a link to nothing", lambda p: p.symlink_to("nothing.nii.gz")),
        ("a link to itself", lambda p: p.symlink_to(p.name)),
    ):  # fmt: skip
        yield _bad(f"{what}, image", row, lambda d, p=put: _replace(d.image(), p), gone,
                   names=("case_0_0000",), predicted=LISTED)  # fmt: skip
        yield _bad(f"{what}, label map", row, lambda d, p=put: _replace(d.label(), p), gone,
                   names=("labelsTr/case_0",))  # fmt: skip
        yield _bad(f"{what}, a whole case", row,
                   lambda d, p=put: [_replace(file, p) for file in d.files()], gone,
                   names=("case_0_0000",), predicted=LISTED)  # fmt: skip
    yield _bad("a link to a file elsewhere", row, _linked, RIGHT, predicted=RIGHT)
    closed = Refused(cause="ermission")
    yield _bad("no right to an image", row, lambda d: d.image().chmod(0), closed,
               names=("case_0_0000",), predicted=LISTED)  # fmt: skip
    yield _bad("no right to a label map", row, lambda d: d.label().chmod(0), closed,
               names=("labelsTr/case_0",))  # fmt: skip
    yield _bad("no right to the images", row, lambda d: (d.folder / "imagesTr").chmod(0),
               Refused(cause="ermission|listed"), names=("imagesTr",))  # fmt: skip


def _bad(
    name: str,
    row: str,
    spoil: Spoil,
    verdict: Verdict,
    *,
    names: tuple[str, ...] = (),
    predicted: Verdict | None = None,
) -> BadInput:
    return BadInput(
        name=name, row=row, spoil=spoil, verdict=verdict, names=names, predicted=predicted
    )


def _elsewhere(
    what: str, change: Callable[[Array], Array], verdict: Verdict, *, of_label: bool = True
) -> BadInput:
    """Give a case of which the label map, or the second channel, lies elsewhere."""

    def spoil(data: Data) -> None:
        truth, affine = data.cases["case_0"], change(affine_of())
        voxels = truth.label if of_label else truth.channels[1]
        path = data.label() if of_label else data.image(channel=1)
        path.write_bytes(nifti(voxels, affine=affine))

    file = "labelsTr/case_0" if of_label else "case_0_0001"
    return _bad(f"{'label map' if of_label else 'channel'} {what}", "other grids", spoil, verdict,
                names=(file,), predicted=None if of_label else _listed(verdict))  # fmt: skip


def _of_shape(what: str, cut: Callable[[Array], Array], *, of_label: bool = True) -> BadInput:
    """Give a case of which the label map, or the second channel, has another shape."""

    def spoil(data: Data) -> None:
        truth = data.cases["case_0"]
        voxels = truth.label if of_label else truth.channels[1]
        path = data.label() if of_label else data.image(channel=1)
        path.write_bytes(nifti(cut(voxels)))

    verdict = Refused(cause="shape")
    file = "labelsTr/case_0" if of_label else "case_0_0001"
    return _bad(f"{'label map' if of_label else 'channel'} with {what}", "other grids", spoil,
                verdict, names=(file,), predicted=None if of_label else LISTED)  # fmt: skip


def _listed(verdict: Verdict) -> Verdict:
    return LISTED if isinstance(verdict, Refused) else verdict


def _shifted(mm: float) -> Callable[[Array], Array]:
    move = np.eye(4)
    move[0, 3] = mm
    return lambda affine: move @ affine


def _turned(degrees: float) -> Callable[[Array], Array]:
    angle = np.radians(degrees)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return lambda affine: turn @ affine


def _resized(shape: tuple[int, int, int]) -> Spoil:
    def spoil(data: Data) -> None:
        rng = np.random.default_rng(11)
        label = np.zeros(shape, np.uint8)
        label[: (shape[0] + 1) // 2] = 1
        channels = tuple(rng.normal(loc=3 * label).astype("f4") for _ in range(2))
        data.change(channels=channels, label=label)
        write_case(data, "case_0")

    return spoil


def _filled(value: float) -> Spoil:
    def spoil(data: Data) -> None:
        truth = data.cases["case_0"]
        data.change(channels=(np.full(SIZE, value, "f4"), truth.channels[1]))
        write_case(data, "case_0")

    return spoil


def _unlabelled(*cases: str) -> Spoil:
    def spoil(data: Data) -> None:
        for case in cases:
            data.change(case, label=np.zeros(SIZE, np.uint8))
            write_case(data, case)

    return spoil


def _renamed(name: str) -> Spoil:
    return lambda data: data.rename("case_0", name)


def _composed_otherwise(data: Data) -> None:
    data.rename("case_0", "müller")
    data.label("müller").rename(data.label("mu\u0308ller"))


def _copy(path: Path, name: str) -> None:
    shutil.copy(path, path.with_name(name))


def _litter(data: Data, name: str) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (data.folder / folder / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")


def _other_format(path: Path) -> None:
    voxels: Any = np.zeros(SIZE, np.uint8)
    path.with_name(path.name.replace(".nii.gz", ".nrrd")).write_bytes(nrrd(voxels))


def _ends(path: Path, ending: str) -> None:
    path.rename(path.with_name(path.name.removesuffix(".nii.gz") + ending))


def _keep(count: int) -> Spoil:
    def spoil(data: Data) -> None:
        for case in list(data.cases)[count:]:
            data.remove(case)
        data.declare(numTraining=count)

    return spoil


def _twice(data: Data) -> None:
    for mine, other in zip(data.files("case_1"), data.files(), strict=True):
        shutil.copy(other, mine)
    data.cases["case_1"] = data.cases["case_0"]


def _channel_twice(data: Data) -> None:
    shutil.copy(data.image(), data.image(channel=1))
    first, _ = data.cases["case_0"].channels
    data.change(channels=(first, first))


def _replace(path: Path, put: Callable[[Path], object]) -> None:
    path.unlink()
    put(path)


def _linked(data: Data) -> None:
    for path in data.files():
        elsewhere = data.folder.parent / f"of {path.parent.name}"
        elsewhere.mkdir(exist_ok=True)
        path.symlink_to(path.rename(elsewhere / path.name))
