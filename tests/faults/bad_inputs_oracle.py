"""What became of a bad input, judged by the rule; it knows the phantoms, but none of our code."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from bad_inputs import DATASET, Array, BadInput, Data, Refused, TrueCase, Used
from injection import CHECKOUT, HERE
from oracle import half_files

PATIENCE = 30.0  # seconds
MOST_MEMORY = 300.0  # MiB beyond what the same command takes for the good phantoms
REMEDY = re.compile(
    r"[;:,] (?:or |then |do not )?(?:add|annotate|check|convert|copy|correct|declare|export|flatten"
    r"|free|give|keep|let|link|list|make|name|pair|put|remove|rename|repair|resample|restore|save|set"
    r"|split|take|use|wait|write|it must be|they must be|each must|one of|`nnseg)\b"
)
BUG = re.compile(r"Traceback|a bug of ours|Error:|Exception")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    said: str
    seconds: float
    memory: float  # MiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What is wrong with how a bad input was taken; `state` is the word for it in the table."""

    bad: BadInput
    state: str  # OK, SILENT, HANG, MEMORY, TRACEBACK or MESSAGE
    wrong: str = ""
    helps: bool = True  # whether a refusal says what to do
    seconds: float = 0.0


class Forks:
    """The process that runs commands in forks; see bad_inputs_forks.py."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._numbers = count()
        scratch.mkdir()
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "bad_inputs_forks.py")],
            env=os.environ | {"OMP_NUM_THREADS": "1"},  # a fork does not have the others' threads
            cwd=CHECKOUT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def rehearse(self, *arguments: str) -> None:
        """Have the process do a command itself, so that forks find everything imported."""
        self._send(arguments=arguments, environment={}, output=None)

    def run(self, *arguments: str, patience: float = PATIENCE) -> Ended:
        """Run a command in a fork, to its end or for `patience` seconds."""
        output = self.scratch / str(next(self._numbers))
        output.touch()
        self._send(arguments=arguments, environment={}, output=str(output), patience=patience)
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        assert answer, "the process that runs commands has ended"
        code, seconds, memory = map(float, answer.split())
        said = output.read_text(errors="backslashreplace")
        return Ended(code=int(code), said=said, seconds=seconds, memory=memory)

    def close(self) -> None:
        self._process.communicate(timeout=PATIENCE)

    def _send(self, **request: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)


def judge(bad: BadInput, ended: Ended, usual: Ended, wrong: Iterator[str]) -> Judgement:
    """Judge a command that met a bad input.

    Args:
        bad: The input.
        ended: How the command ended.
        usual: How it ends for good phantoms.
        wrong: What is wrong with the files that it left; asked only where it ended well.
    """
    verdict, code, said = bad.verdict, ended.code, ended.said

    def state(word: str, text: str = "", *, helps: bool = True) -> Judgement:
        shown = f"{bad}: {word}: {text}\n  {code}, {ended.seconds:.1f} s: {said[-1500:]}"
        return Judgement(
            bad=bad,
            state=word,
            wrong="" if word == "OK" else shown,
            helps=helps,
            seconds=ended.seconds,
        )

    if ended.seconds >= PATIENCE:
        return state("HANG")
    if ended.memory > usual.memory + MOST_MEMORY:
        return state("MEMORY", f"{ended.memory:.0f} MiB, {usual.memory:.0f} MiB are usual")
    if code < 0 or BUG.search(said):
        return state("TRACEBACK")
    if isinstance(verdict, Used):
        if code != 0:
            return state("MESSAGE", "was refused")
        if not re.search(verdict.warning, said):
            return state("SILENT", f"no warning of {verdict.warning!r}")
        if not verdict.warning and "nnseg: " in said:
            return state("MESSAGE", "a warning")
        found = next(wrong, None)
        return state("OK") if found is None else state("SILENT", found)
    if code == 0:
        return state("SILENT", "was used")
    if code != verdict.code:
        return state("MESSAGE", f"exit code {verdict.code} was due")
    if not re.search(verdict.cause, said):
        return state("MESSAGE", f"no cause, {verdict.cause!r}")
    for name in bad.names:
        if name not in said:
            return state("MESSAGE", f"{name} is not named")
    found = next(wrong, None)
    if found is not None:
        return state("SILENT", found)
    return state("OK", helps=REMEDY.search(said) is not None)


def wrong_with_prepared(data: Data, root: Path) -> Iterator[str]:
    """Say what is untrue of the preprocessed cases of a dataset.

    Where its spacing is the usual one nothing is resampled: labels are as drawn, and an image is
    as drawn but for its scale, by which it gets a mean of 0 and a deviation of 1.
    """
    above = root / "preprocessed" / DATASET
    yield from half_files(above)
    measured = json.loads((above / "fingerprint.json").read_text())
    spacings = dict(zip(measured["case_ids"], measured["spacings"], strict=True))
    if spacings.keys() != data.cases.keys():
        yield f"the cases are {sorted(spacings)}"
        return
    usual = np.median([truth.spacing for truth in data.cases.values()], axis=0)
    flat = next(iter(data.cases.values())).label.shape[2] == 1
    for case, truth in data.cases.items():
        axes = slice(0, 2 if data.ending == ".png" else 3)
        if not np.allclose(spacings[case][::-1][axes], truth.spacing[axes], rtol=1e-5):
            yield f"{case} has the spacing {spacings[case]}"
        if np.array_equal(truth.spacing, usual):
            name = "2d" if data.ending == ".png" or flat else "3d_fullres"
            folder = above / "nnseg" / (name if (above / "nnseg" / name).is_dir() else "2d")
            yield from wrong_with_arrays(folder, case, truth)


def wrong_with_arrays(folder: Path, case: str, truth: TrueCase) -> Iterator[str]:
    """Say what is untrue of a preprocessed case that kept its spacing."""
    import blosc2

    image, label = (
        blosc2.open(str(folder / f"{case}.{name}.b2nd"), mode="r")[...]
        for name in ("image", "segmentation")
    )
    if not np.array_equal(np.squeeze(label), np.squeeze(truth.label.T)):
        yield f"{case} has other labels"
    for found, drawn in zip(image, truth.channels, strict=True):
        wanted = drawn.T.astype(np.float64)
        scale = wanted.std()
        wanted = (wanted - wanted.mean()) / (scale if scale > 1e-6 else 1)
        if found.shape != wanted.shape or not np.allclose(found, wanted, atol=1e-3):
            yield f"{case} has other voxels"


def wrong_with_predicted(
    case: str, image: Path, out: Path, wanted: Array | None = None
) -> Iterator[str]:
    """Say what is wrong with a predicted label map: its grid is the image's, its values `wanted`.

    Args:
        case: Its id.
        image: The image's file.
        out: The folder of label maps.
        wanted: (x, y, z); None asks for labels of the phantoms alone.
    """
    found = [path for path in out.iterdir() if path.name in (f"{case}.nii.gz", f"{case}.png")]
    if not found:
        yield f"{case} has no label map"
        return
    (voxels, affine), (drawn, grid) = load(found[0]), load(image)
    shape = drawn.shape if wanted is None else wanted.shape
    if voxels.shape != shape:
        yield f"{case} has the shape {voxels.shape}"
    elif wanted is not None and not np.array_equal(voxels, wanted):
        yield f"{case} has {(voxels != wanted).sum()} other voxels"
    elif not set(np.unique(voxels)) <= {0, 1, 2}:
        yield f"{case} has the labels {np.unique(voxels)}"
    if grid is not None and not np.allclose(affine, grid, atol=1e-4):
        yield f"{case} lies elsewhere"


def load(path: Path) -> tuple[Array, Array | None]:
    """Read voxels (x, y, z) and, of NIfTI, the matrix to mm, without our code."""
    if path.suffix == ".png":
        from PIL import Image

        return np.asarray(Image.open(path)).T[:, :, None], None
    image = nibabel.load(path)
    return np.asarray(image.dataobj).reshape(image.shape[:3]), image.affine


def table(judged: list[Judgement]) -> list[str]:
    """Give the lines of a table: inputs by row, and what became of them."""
    states = ("OK", "SILENT", "HANG", "MEMORY", "TRACEBACK", "MESSAGE")
    rows: Mapping[str, list[Judgement]] = {
        row: [one for one in judged if one.bad.row == row]
        for row in dict.fromkeys(one.bad.row for one in judged)
    }
    lines = [f"{'bad inputs':24}{'inputs':>8}" + "".join(f"{state:>10}" for state in states)]
    for row, ones in (*rows.items(), ("all", judged)):
        found = [sum(one.state == state for one in ones) for state in states]
        lines.append(f"{row:24}{len(ones):8}" + "".join(f"{number:10}" for number in found))
    return lines


def refusals(judged: list[Judgement]) -> list[Judgement]:
    return [one for one in judged if isinstance(one.bad.verdict, Refused) and one.state == "OK"]
