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
@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "limit"),
    [(32, 1.2e9), (64, 1.5e9)],  # bytes; the sums of so many planes take 0.42 and 0.84 GB of them
)
def test_an_image_of_256_voxels_a_side_takes_little_of_the_7_gigabytes_of_its_100_classes(
    tell: Callable[[str], None], depth: int, limit: float
) -> None:
    before, after = measured("classes", 256, 100, depth)
    tell(f"256^3 voxels, 100 classes, tiles {depth} deep: {after - before} MiB over imports")
    assert (after - before) * MIB <= limit
