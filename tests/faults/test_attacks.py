"""Whatever somebody puts into a file or a name: it is refused in words, or does nothing."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from attacks import DATASET, MODEL, Attack, Place, Sound, contents, faults
from attacks_on_checkpoints import attacks_on_checkpoints
from attacks_on_images import attacks_on_images
from attacks_on_models import attacks_on_models
from attacks_on_names import attacks_on_names
from attacks_on_plans import attacks_on_plans
from attacks_on_results import attacks_on_results
from attacks_on_zips import attacks_on_zips
from bad_inputs_oracle import Ended, Forks
from payloads import PAYLOADS, repickled, with_entry
from tallies import Tally
from test_porting import write_folds

from nnseg import pipeline
from nnseg.folders import Folders
from nnseg.predictor import load
from nnseg.verbs import porting

ATTACKS = (
    *attacks_on_checkpoints(),
    *attacks_on_plans(),
    *attacks_on_models(),
    *attacks_on_zips(),
    *attacks_on_images(),
    *attacks_on_results(),
    *attacks_on_names(),
)
Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def sound(flat: Folders, tmp_path_factory: pytest.TempPathFactory) -> Sound:
    """What attacks are made of; none of them changes it."""
    folder = tmp_path_factory.mktemp("sound")
    write_folds(folder / "ours")
    porting.export_model(folder / "ours" / "3d_lowres" / "fold_0", folder / "theirs")
    porting.export_model(folder / "ours" / "3d_lowres" / "fold_0", folder / "ours.zip", to="zip")
    root = folder / "root"
    shutil.copytree(flat.raw.parent, root)
    folders = Folders.of_root(root)
    pipeline.predict(
        load(root / MODEL / "fold_0"), folders.test_images(DATASET), root / "predicted"
    )
    return Sound(
        ours=folder / "ours", ours_zip=folder / "ours.zip", theirs=folder / "theirs", root=root
    )


@pytest.fixture(scope="module")
def forks(sound: Sound, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Runs commands; what it imports on the way is told from what attacks have imported."""
    folder = tmp_path_factory.mktemp("forks")
    process = Forks(folder / "runs")
    root = ("--root", str(sound.root))
    images = str(Folders.of_root(sound.root).test_images(DATASET))
    for command in (
        ("import", str(sound.theirs), "-o", str(folder / "imported")),
        ("import", str(sound.ours_zip), "--dry-run"),
        ("predict", "-i", images, "-o", str(folder / "predicted"), "-m", str(sound.root / MODEL),
         "-f", "0", "-device", "cpu", "--dry-run"),
        ("verify", str(sound.root / "predicted")),
        ("report", str(sound.root / "predicted"), "-o", str(folder / "reported"), *root),
        *((verb, "1", *root) for verb in ("doctor", "fsck")),
        ("info", *root),
        ("plan", "1", "--dry-run", *root),
        ("train", "1", "2d", "1", "--pretrained", str(folder), *root),
        ("ensemble", "-i", str(folder), str(folder), "-o", str(folder / "averaged")),
    ):  # fmt: skip
        process.rehearse(*command)
    yield process
    process.close()


@pytest.fixture(scope="module")
def usual(forks: Forks, sound: Sound) -> float:
    """The memory, in MiB, of a command on sound files."""
    ended = forks.run("import", str(sound.ours_zip), "--dry-run")
    assert ended.code == 0, ended.said
    return ended.memory


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(
            attack,
            id=attack.name,
            marks=[
                pytest.mark.fault(attack.rule),
                *([pytest.mark.slow] if attack.slow else []),
            ],
        )
        for attack in ATTACKS
    ],
)
def test_an_attack_is_refused_or_does_nothing(
    attack: Attack, sound: Sound, forks: Forks, usual: float, tmp_path: Path, tally: Tally
) -> None:
    place = Place(folder=tmp_path / "place", sound=sound)
    place.folder.mkdir()
    arguments = [str(one) for one in attack.make(place)]
    before = contents(place.folder)
    found = faults(attack, place, forks.run(*arguments), usual, before)
    tally("attacks", not found, 1)
    assert not found, "\n".join(found)


@pytest.mark.slow
def test_a_payload_would_run_where_pickles_are_trusted(sound: Sound, tmp_path: Path) -> None:
    place = Place(folder=tmp_path / "place", sound=sound)
    place.folder.mkdir()
    path = tmp_path / "checkpoint.pth"
    for name in ("os.mkdir", "os.system", "builtins.eval", "subprocess.Popen", "numpy's eval"):
        shutil.copy(sound.theirs / "fold_0" / "checkpoint_final.pth", path)
        repickled(path, with_entry(PAYLOADS[name](place)))
        program = "import sys, torch; torch.load(sys.argv[1], weights_only=False)"
        command = [sys.executable, "-W", "ignore", "-c", program, str(path)]
        subprocess.run(command, check=False, capture_output=True, timeout=200)
        for _ in range(100):  # what the payload starts may outlive it
            if place.target.exists():
                break
            time.sleep(0.05)
        assert place.target.exists(), name
        place.target.rmdir() if place.target.is_dir() else place.target.unlink()
