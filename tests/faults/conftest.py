"""What the fault tests share: the preload library, a warm process, a dataset that is right."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from injection import HERE, Injector, Warm
from roots import PLAN, PREPROCESS, Right, copy_root, make_right

TOLD: list[str] = []  # lines of the summary: how many faults were injected, and what was seen


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
def tell() -> Callable[[str], None]:
    """Puts a line into the summary at the end of all tests."""
    return TOLD.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TOLD:
        terminalreporter.section("faults")
        for line in TOLD:
            terminalreporter.line(line)
