"""Bytes flip or get lost: nnseg fsck finds them all, and no training uses a damaged file."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from injection import Warm
from oracle import LEFT_OUT, differences, tree_of
from roots import DATASET, PREPROCESS, Right, copy_root
from tallies import Tally

FSCK = ("fsck", "1")
ONE_STEP = "--epochs 1 --iterations 1 --validation-iterations 1 --batch-size 2 --no-validation"
KINDS = ("flip", "flip", "cut")
# Somebody may have meant it where what is left is sound: a warning names the file.
MAY_BE_EDITED = ("nnseg.json", "splits_final.json")


def train(warm_torch: Warm, root: Path, configuration: str) -> tuple[int, str]:
    """Train a step; give the exit code and what was said."""
    arguments = ("train", "1", configuration, "0", *ONE_STEP.split(), "-device", "cpu")
    outcome = warm_torch.run(root, *arguments)
    shutil.rmtree(root / "results")
    return outcome.code, outcome.said


def damage(path: Path, kind: str, rng: random.Random) -> str:
    """Flip a bit, or cut the end off, in place: whatever else is a name of the file has it, too."""
    data = path.read_bytes()
    if kind == "flip":
        place, bit = rng.randrange(len(data)), rng.randrange(8)
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :])
        return f"bit {bit} of byte {place} of {path.name}"
    left = rng.choice([0, rng.randrange(len(data)), len(data) - 1])
    path.write_bytes(data[:left])
    return f"{path.name} cut to {left} of {len(data)} bytes"


def means_the_same(path: Path, right: Path) -> bool:
    """Whether a damaged record says what it did, with other blanks: only fsck minds that."""
    try:
        return bool(json.loads(path.read_bytes()) == json.loads(right.read_bytes()))
    except ValueError:
        return False


@pytest.mark.fault("R09", "R10", "G6", "B1.1")
@pytest.mark.parametrize(
    ("variant", "count"),
    [
        ("2d", 8),
        pytest.param("2d", 150, marks=pytest.mark.slow),
        pytest.param("linked", 50, marks=pytest.mark.slow),
    ],
)
def test_a_flipped_or_cut_byte_is_found_never_trained_on_and_put_right_by_the_next_run(
    warm: Warm,
    warm_torch: Warm,
    right_of: Callable[[str], Right],
    tally: Tally,
    tmp_path: Path,
    variant: str,
    count: int,
) -> None:
    right = right_of(variant)
    root = copy_root(right.done, tmp_path / "root")
    files = sorted((root / "preprocessed").glob("*/nnseg/*/*"))
    rng = random.Random(count)
    found, refused, unused, wrong, missed = 0, 0, 0, [], set[int]()
    for number in range(count):
        before, path = len(wrong), rng.choice(files)
        what = damage(path, KINDS[number % len(KINDS)], rng)
        fsck = warm.run(root, *FSCK)
        if fsck.code == 3 and path.name in fsck.said:
            found += 1
        else:
            wrong.append(f"{what}: fsck ends with {fsck.code}: {fsck.said}")
        code, said = train(warm_torch, root, path.parent.name)
        same = means_the_same(path, right.done / path.relative_to(root))
        if code == 3 and path.name in said:
            refused += 1
        elif code == 0 and same:
            unused += 1
        else:
            wrong.append(f"{what}: a training ends with {code}: {said}")
        again = warm.run(root, *FSCK, "--redo") if same else warm.run(root, *PREPROCESS)
        left = differences(tree_of(root / "preprocessed"), right.tree)
        wrong += [f"{what}: after the next run ({again.code}), {text}" for text in left]
        if left:
            shutil.rmtree(root)
            copy_root(right.done, root)
        if len(wrong) > before:
            missed.add(number)
    states = {"found by fsck": found, "refused by a training": refused, "means the same": unused}
    tally("damage, preprocessed files", count - len(missed), count, states=states)
    assert not wrong, "\n".join(wrong)


def kept_files(root: Path) -> list[Path]:
    """List what is kept of trained models: weights, probabilities, plans, and their records."""
    folders = (root / "results", root / "preprocessed" / DATASET)
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in paths if not LEFT_OUT.fullmatch(path.name))


@pytest.fixture(scope="module")
def chosen(trained: Path, warm_models: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with trained models of which one is chosen; tests put right what they damage."""
    root = tmp_path_factory.mktemp("chosen") / "root"
    shutil.copytree(trained, root)
    outcome = warm_models.run(root, "find-best", "1")
    assert outcome.code == 0, outcome.said
    return root


@pytest.mark.fault("R19", "G6", "B1.3")
@pytest.mark.parametrize("count", [20, pytest.param(240, marks=pytest.mark.slow)])
def test_a_flipped_or_cut_byte_of_a_model_its_probabilities_or_a_plan_is_found(
    chosen: Path, warm_models: Warm, tally: Tally, count: int
) -> None:
    right = warm_models.run(chosen, *FSCK)
    assert right.code == 0, right.said
    files, rng, wrong = kept_files(chosen), random.Random(count), []
    rng.shuffle(files)  # so that a few of them are of all kinds
    for number in range(count):
        path = files[number % len(files)]
        data = path.read_bytes()
        what = damage(path, KINDS[number % len(KINDS)], rng)
        fsck = warm_models.run(chosen, *FSCK)
        codes = (0, 3) if path.name in MAY_BE_EDITED else (3,)
        if fsck.code not in codes or path.name not in fsck.said or "Traceback" in fsck.said:
            wrong.append(f"{what}: fsck ends with {fsck.code}: {fsck.said}")
        path.write_bytes(data)
    tally("damage, models and plans", count - len(wrong), count)
    assert not wrong, "\n".join(wrong)


def test_what_is_right_passes_fsck_and_can_be_trained_on(
    warm: Warm, warm_torch: Warm, right_of: Callable[[str], Right], tmp_path: Path
) -> None:
    root = copy_root(right_of("2d").done, tmp_path / "root")
    outcome = warm.run(root, *FSCK)
    assert outcome.code == 0, outcome.said
    code, said = train(warm_torch, root, "2d")
    assert code == 0, said


@pytest.mark.fault("R12")
@pytest.mark.parametrize("again", [(*FSCK, "--redo"), PREPROCESS], ids=["fsck", "preprocess"])
@pytest.mark.parametrize("name", ["image.b2nd", "json"])
def test_a_case_that_lacks_its_data_or_its_record_is_not_done_and_is_made_again(
    warm: Warm,
    right_of: Callable[[str], Right],
    tmp_path: Path,
    name: str,
    again: tuple[str, ...],
) -> None:
    right = right_of("2d")
    root = copy_root(right.done, tmp_path / "root")
    path = next((root / "preprocessed").glob(f"*/nnseg/*/*.{name}"))
    path.unlink()
    outcome = warm.run(root, *FSCK)
    assert outcome.code == 3
    assert path.name in outcome.said or path.name.split(".")[0] in outcome.said
    outcome = warm.run(root, *again)
    assert outcome.code == 0, outcome.said
    assert tree_of(root / "preprocessed") == right.tree
