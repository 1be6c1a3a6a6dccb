"""Memory that predictions take: no more after many of them, and not what their logits would."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from injection import CHECKOUT, HERE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux does")
MIB = 2**20


def measured(*arguments: object) -> tuple[int, int]:
    """Run memory_of_predictions.py; give the two figures that it prints, in MiB."""
    command = [sys.executable, str(HERE / "memory_of_predictions.py"), *map(str, arguments)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    first, second = map(int, done.stdout.split())
    return first // MIB, second // MIB


@pytest.mark.fault("R43")
@pytest.mark.parametrize(
    ("early", "late"), [(15, 60), pytest.param(30, 300, marks=pytest.mark.slow)]
)
def test_many_predictions_in_one_process_take_no_more_memory_than_some(
    tell: Callable[[str], None], tmp_path: Path, early: int, late: int
) -> None:
    before, after = measured("many", tmp_path, early, late)
    tell(f"{before} MiB after {early} predictions in one process, {after} MiB after {late}")
    assert after <= 1.05 * before


@pytest.mark.fault("R26", "G10")
@pytest.mark.parametrize(
    ("planes", "side", "depth", "limit"),
    [
        (512, 64, 16, 0.42e9),  # bytes: half of the logits
        # the sums of so many planes take 0.42 and 0.84 GB of these; the logits would take 6.7
        pytest.param(256, 256, 32, 1.2e9, marks=pytest.mark.slow),
        pytest.param(256, 256, 64, 1.5e9, marks=pytest.mark.slow),
    ],
)
def test_an_image_of_100_classes_takes_little_of_the_memory_of_its_logits(
    tell: Callable[[str], None], planes: int, side: int, depth: int, limit: float
) -> None:
    before, after = measured("classes", planes, side, 100, depth)
    image = f"{planes} x {side} x {side} voxels, 100 classes"
    tell(f"{image}, tiles {depth} deep: {after - before} MiB more than with the network built")
    assert (after - before) * MIB <= limit
