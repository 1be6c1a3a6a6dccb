"""The same work done again, by more hands or in parts, leaves the same bytes."""

import shutil
from pathlib import Path

import pytest
from oracle import differences, tree_of
from tallies import Tally
from tiny import CPU, FLAT

from nnseg import load, pipeline
from nnseg.folders import Folders
from nnseg.predicted_folder import Wanted
from nnseg.verbs.prepare import preprocess

ROW = "repeated work"
MAPS = ("entropy",)
KINDS = [
    None,
    "compact",
    *(pytest.param(k, marks=pytest.mark.slow) for k in ("npz", "nifti", "chunks")),
]
PARTS = (1, 3)


def predicted(flat: Folders, out: Path, kind: str | None, parts: int = 1) -> dict[str, str]:
    model = load(flat.fold(FLAT, "nnseg", "2d", "0", 0), **CPU)
    wanted = Wanted(maps=MAPS, probabilities=kind)
    for part in range(parts):
        pipeline.predict(model, flat.test_images(FLAT), out, wanted=wanted, part=part, parts=parts)
    return {name: digest for name, digest in tree_of(out).items() if "statistics" not in name}


@pytest.mark.fault("G7")
@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_made_again_and_in_parts_leaves_the_same_bytes(
    flat: Folders, tmp_path: Path, tally: Tally, kind: str | None
) -> None:
    first = predicted(flat, tmp_path / "first", kind)
    assert len(first) >= 3 * 3
    kept = []
    for parts in PARTS:
        again = predicted(flat, tmp_path / f"again_{parts}", kind, parts)
        kept.append(differences(again, first))
    tally(ROW, kept.count([]), len(kept))
    assert kept == [[]] * len(PARTS)


@pytest.mark.fault("G7", "R33")
@pytest.mark.parametrize(
    ("workers", "apart"),
    [(2, False), (4, False), pytest.param(1, True, marks=pytest.mark.slow), (2, True)],
)
def test_any_number_of_threads_or_processes_preprocesses_to_the_same_bytes(
    flat: Folders, tmp_path: Path, tally: Tally, workers: int, apart: bool
) -> None:
    shutil.copytree(flat.raw.parent, tmp_path / "copy")
    folders = Folders.of_root(tmp_path / "copy")
    wanted = tree_of(folders.store(FLAT, "nnseg", "2d"))
    shutil.rmtree(folders.store(FLAT, "nnseg", "2d"))
    made = preprocess(folders, FLAT, workers=workers, apart=apart)
    assert made == {"2d": 6}
    found = differences(tree_of(folders.store(FLAT, "nnseg", "2d")), wanted)
    tally(ROW, int(found == []), 1)
    assert found == []
