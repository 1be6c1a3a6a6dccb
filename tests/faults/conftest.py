"""What the fault tests share: the preload library, a warm process, data that are right, a tally."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import pytest
from injection import HERE, LIVED, Injector, Warm
from roots import (
    DATASET,
    PLAN,
    PREPROCESS,
    Right,
    copy_models,
    copy_root,
    fold_of,
    make_right,
    make_trained,
)
from struck import Struck, copy_of
from tallies import COUNTED, TOLD, Row, Tally, Test

from nnseg.folders import Folders

LINES: list[str] = []  # of the summary, told since the last report
ROWS = pytest.StashKey[dict[str, Row]]()  # what a test has counted


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Keep how a test of this folder ended, with the faults that its marks name."""
    report = yield
    if report.when == "call":
        test = Test(
            outcome=report.outcome,
            faults=[str(name) for mark in item.iter_markers("fault") for name in mark.args],
            seconds=max(LIVED, default=0.0),
            rows=item.stash.get(ROWS, {}),
        )
        report.user_properties.append((COUNTED, asdict(test)))
        report.user_properties.extend((TOLD, line) for line in LINES)
        LIVED.clear()
        LINES.clear()
    return report


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Tally:
    """Adds up how many of the faults of a row, which were injected, kept the rule."""
    rows = request.node.stash.setdefault(ROWS, {})

    def add(row: str, kept: int, injected: int, *, states: Mapping[str, int] | None = None) -> None:
        counted = Row(kept=kept, injected=injected, states=dict(states or {}))
        rows.setdefault(row, Row()).add(counted)

    return add


@pytest.fixture(scope="session")
def injector(tmp_path_factory: pytest.TempPathFactory) -> Injector:
    """Runs `python -m nnseg` below preload.c."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux":
        pytest.skip("calls are counted by a preload library, which is made for Linux")
    if compiler is None:
        pytest.skip("there is no C compiler, cc or gcc, for the preload library")
    folder = tmp_path_factory.mktemp("injector")
    library = folder / "preload.so"
    options = ["-shared", "-fPIC", "-O1", "-U_FORTIFY_SOURCE", "-Wall", "-o", str(library)]
    subprocess.run([compiler, *options, str(HERE / "preload.c"), "-ldl"], check=True)
    return Injector(library, folder)


@pytest.fixture(scope="session")
def right_of(
    injector: Injector, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Right]:
    """Gives a dataset of VARIANTS as undisturbed commands leave it."""
    made: dict[str, Right] = {}

    def give(variant: str) -> Right:
        if variant not in made:
            made[variant] = make_right(tmp_path_factory.mktemp(variant), variant, injector)
        return made[variant]

    return give


@pytest.fixture(scope="session")
def warm(
    injector: Injector,
    right_of: Callable[[str], Right],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Warm]:
    """Runs commands without torch in forks."""
    root = copy_root(right_of("2d").planned, tmp_path_factory.mktemp("rehearsal") / "root")
    where = ("--root", str(root))
    commands = [PLAN, PREPROCESS, ("fsck", "1")]
    process = Warm(injector.library, root.parent / "runs", [(*c, *where) for c in commands])
    yield process
    process.close()


@pytest.fixture(scope="session")
def warm_torch(
    injector: Injector,
    right_of: Callable[[str], Right],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Warm]:
    """Runs `nnseg train` in forks; rehearsed without data, so that torch starts no threads."""
    root = copy_root(right_of("2d").planned, tmp_path_factory.mktemp("rehearsal") / "root")
    command = ("train", "1", "2d", "0", "-device", "cpu", "--root", str(root))
    process = Warm(injector.library, root.parent / "runs", [command])
    yield process
    process.close()


@pytest.fixture(scope="session")
def struck(
    injector: Injector, flat: Folders, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Struck]:
    """Runs commands in forks, while something befalls them."""
    folder = tmp_path_factory.mktemp("struck")
    root = copy_of(flat.raw.parent, folder / "rehearsal")
    process = Struck(injector.library, folder / "runs", root)
    yield process
    process.close()


@pytest.fixture
def root(flat: Folders, tmp_path: Path) -> Path:
    """A root of one's own: phantoms that are preprocessed, fold 0 trained."""
    return copy_of(flat.raw.parent, tmp_path / "root")


@pytest.fixture(scope="session")
def trained(warm_torch: Warm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of tiny data with two folds trained and validated; tests leave it as it is."""
    return make_trained(tmp_path_factory.mktemp("trained") / "root", warm_torch)


@pytest.fixture(scope="session")
def warm_models(
    injector: Injector, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Warm]:
    """Runs commands on trained models in forks."""
    root = copy_models(trained, tmp_path_factory.mktemp("rehearsal") / "root")
    fold = root / fold_of("0")
    labels, maps = str(root / "raw" / DATASET / "labelsTr"), str(fold / "validation")
    commands = [
        ("find-best", "1"),
        ("export", str(fold.parent), "--to", "zip", "-o", str(root / "out" / "model.zip")),
        ("import", str(root / "out" / "model.zip"), "-o", str(root / "out" / "model")),
        ("ensemble", "-i", maps, "-o", str(root / "out" / "mean"), "-np", "1"),
        ("evaluate", labels, maps, "-o", str(root / "out" / "scores.json"), "--chill", "-np", "1"),
        ("postprocess", "-i", maps, "-ref", labels, "-o", str(root / "out" / "r.json")),
        ("fsck", "1"),
    ]
    where = ("--root", str(root))
    process = Warm(injector.library, root.parent / "runs", [(*c, *where) for c in commands])
    yield process
    process.close()


@pytest.fixture(scope="session")
def tell() -> Callable[[str], None]:
    """Puts a line into the summary at the end of all tests."""
    return LINES.append
