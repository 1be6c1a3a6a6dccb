"""What lies around a command: shared memory, folders, the locale, packages, very many files."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from injection import CHECKOUT, PATIENCE
from oracle import differences, tree_of
from struck import (
    DATASET,
    PREPROCESS,
    TRAIN,
    Struck,
    final_weights,
    fits_user,
    fold_of,
    predict,
    results_in,
    without_store,
)
from tallies import Tally

FEW = 10
STARTS_WITHIN = 10.0  # seconds of the processor, of which a few go to the first case itself
FLAT = 64 * 2**20  # bytes that so many more names may take


def all_three(struck: Struck, root: Path, *befalls: tuple[object, ...]) -> tuple[Any, ...]:
    """Preprocess, train and predict; give what is left."""
    without_store(root)
    for number, command in enumerate((PREPROCESS, TRAIN, predict(root, root / "out"))):
        mine = [[str(word).replace("NUMBER", str(number)) for word in one] for one in befalls]
        done = struck.run(root, *command, befalls=mine)
        assert done.code == 0, done.said
        assert fits_user(done)
    preprocessed = tree_of(root / "preprocessed")
    return preprocessed, final_weights(root), results_in(root / "out")


@pytest.fixture(scope="module")
def right(struck: Struck, flat: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """What the three commands leave where nothing befalls them."""
    root = tmp_path_factory.mktemp("right") / "root"
    shutil.copytree(flat.raw.parent, root)
    return all_three(struck, root)


@pytest.mark.fault("R28", "B1.2")
def test_hardly_any_shared_memory_is_needed(
    struck: Struck, root: Path, right: tuple[Any, ...], tally: Tally
) -> None:
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("this container may not mount a small /dev/shm")
    assert all_three(struck, root, ("small_disk", "/dev/shm", 64)) == right
    tally("surroundings", 3, 3)


@pytest.mark.fault("R39")
def test_without_a_home_temporary_files_and_a_current_folder_all_goes_on(
    struck: Struck, root: Path, right: tuple[Any, ...], tmp_path: Path, tally: Tally
) -> None:
    assert all_three(struck, root, ("homeless", tmp_path / "gone_NUMBER")) == right
    tally("surroundings", 3, 3)


@pytest.mark.fault("R39")
@pytest.mark.parametrize("utf8", [True, False])
def test_in_the_plainest_locale_names_in_any_script_are_read_and_told(
    root: Path, tally: Tally, utf8: bool
) -> None:
    raw = root / "raw" / DATASET
    for path in [*raw.glob("imagesTr/2d_001*"), *raw.glob("labelsTr/2d_001*")]:
        path.rename(path.with_name(path.name.replace("2d_001", "größe_é")))
    (raw / "imagesTr" / "größe_é_0000.nii.gz").write_bytes(b"no image")
    names = ("LANG", "PYTHONUTF8", "PYTHONCOERCECLOCALE", "PYTHONIOENCODING")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    plain["LC_ALL"] = "C"
    if not utf8:  # as where Python takes a locale without UTF-8 at its word
        plain |= {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = subprocess.run(
        [sys.executable, "-m", "nnseg", "doctor", "1", "--root", str(root)],
        cwd=CHECKOUT,
        env=plain,
        capture_output=True,
        timeout=PATIENCE,
    )
    said = ended.stdout + ended.stderr
    assert ended.returncode == 3, said
    assert b"Traceback" not in said
    assert b"bug of ours" not in said
    told = "größe_é" if utf8 else r"gr\\\S+e_\\\S+"  # letters that it lacks are spelled out
    assert re.search(f"{told}_0000.nii.gz".encode(), said), said
    tally("surroundings", 1, 1)


@pytest.mark.fault("R40")
@pytest.mark.parametrize("lack", ["matplotlib", "its log"])
def test_a_training_goes_on_without_its_plots_or_its_log_and_says_so(
    struck: Struck, root: Path, right: tuple[Any, ...], tally: Tally, lack: str
) -> None:
    befalls = [("without", lack)] if lack == "matplotlib" else []
    if lack == "its log":
        (fold_of(root) / "log.txt").mkdir(parents=True)
    done = struck.run(root, *TRAIN, befalls=befalls)
    assert done.code == 0, done.said
    assert fits_user(done)
    assert re.search(r"log\.txt|no log can be kept" if lack == "its log" else lack, done.said)
    assert final_weights(root) == right[1]
    tally("surroundings", 1, 1)


@pytest.mark.fault("R42")
@pytest.mark.parametrize("many", [2000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_of_very_many_scans_the_first_is_begun_soon_and_the_names_take_little_memory(
    struck: Struck, root: Path, tmp_path: Path, tell: Callable[[str], None], tally: Tally, many: int
) -> None:
    images, model = root / "raw" / DATASET / "imagesTs", root / "results" / DATASET / "nnseg/2d"
    first, found = sorted(images.iterdir())[0], {}
    for count in (FEW, many):
        scans, out, note = (tmp_path / f"{what}_{count}" for what in ("scans", "out", "note"))
        scans.mkdir()
        for number in range(count):
            (scans / f"scan_{number:05d}_0000.nii.gz").symlink_to(first)
        command = predict(root, out, "-m", str(model))
        command = tuple(str(scans) if word == str(images) else word for word in command)
        strike = ("note_then_stop", note, out, "[!.]*.proof.json")
        ended = struck.run(root, *command, befalls=[strike])
        assert ended.code in (0, 130), ended.said
        found[count] = json.loads(note.read_text())
        done = json.loads((out / "run.json").read_text())["cases"]
        assert "scan_00000" in done
        assert count == FEW or len(done) < many
    more = found[many]["bytes"] - found[FEW]["bytes"]
    seconds = found[many]["processor_seconds"]
    tell(f"of {many} scans the first is done after {seconds:.1f} s, {more / 2**20:.0f} MiB more")
    assert seconds < STARTS_WITHIN
    assert more < FLAT
    tally("surroundings", 1, 1)


@pytest.mark.fault("R36")
def test_results_are_not_written_among_the_images_they_are_of(
    struck: Struck, root: Path, tally: Tally
) -> None:
    images = root / "raw" / DATASET / "imagesTs"
    before = tree_of(images)
    for out in (images, images / ".." / "imagesTs"):
        refused = struck.run(root, *predict(root, out))
        assert refused.code == 2, refused.said
        assert fits_user(refused)
        assert "the output must not be the input; give another folder" in refused.said
        assert not differences(tree_of(images), before)
    tally("surroundings", 2, 2)
