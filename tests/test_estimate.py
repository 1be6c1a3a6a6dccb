import gzip
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnseg import estimate as estimates
from nnseg.axes import Order, Shape, Spacing
from nnseg.dataset import DatasetSpec
from nnseg.errors import MachineError
from nnseg.estimate import (
    CaseSize,
    bytes_of_case,
    bytes_to_read,
    bytes_to_score,
    check_disk,
    estimate,
    free_memory,
    is_risky,
    room_for,
    sizes_of_cases,
    workers_for,
)
from nnseg.fingerprint import Fingerprint
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.plan import Plan, make_plan

INTENSITY = Intensity(
    mean=1.0, median=1.0, std=1.0, min=0.0, max=2.0, percentile_00_5=0.0, percentile_99_5=2.0
)
SPACING = (3.0, 1.0, 1.0)


def fingerprint(*shapes: Shape, channels: int = 2, share: float = 1.0) -> Fingerprint:
    return Fingerprint(
        spacings=(SPACING,) * len(shapes),
        shapes=shapes,
        intensities=(INTENSITY,) * channels,
        median_relative_size=share,
        case_ids=tuple("abcdef"[: len(shapes)]),
    )


def make(order: Order = (0, 1, 2), channels: int = 2) -> Plan:
    """A plan with a 2D configuration, and 3D ones at the files' spacing and at a coarser one."""
    labels = Labels(labels={"background": 0, "organ": 1})
    names = ("T1", "T2")[:channels]
    spec = DatasetSpec(channels=names, labels=labels, num_training=2, file_ending=".nii.gz")
    plan = make_plan(spec, fingerprint((20, 64, 70), channels=channels), dataset="Dataset900_Test")
    full = replace(plan.configuration("3d_fullres"), spacing=SPACING)
    flat = replace(plan.configuration("2d"), spacing=(None, 1.0, 1.0))
    coarse = replace(full, name="3d_lowres", data="3d_lowres", spacing=(3.0, 2.0, 2.0))
    configurations = {"2d": flat, "3d_fullres": full, "3d_lowres": coarse}
    return replace(plan, order=order, configurations=configurations)


def size(shape: Shape = (20, 64, 70), spacing: Spacing = SPACING, share: float = 1.0) -> CaseSize:
    z, y, x = shape
    return CaseSize(shape=shape, spacing=spacing, voxels=z * y * x / share)


def foretold(names: list[str], *sizes: CaseSize, workers: int = 2, **options: Any) -> Any:
    plan = make(**options)
    return estimate(plan, [plan.configuration(name) for name in names], sizes, workers)


VOXELS = 20 * 64 * 70


def test_disk_is_that_of_the_arrays_at_their_new_shape() -> None:
    one = foretold(["3d_fullres"], size())
    assert one.disk == int(VOXELS * (2 * 4 * 0.95 + 0.2))
    coarse = foretold(["3d_lowres"], size())
    assert coarse.disk == pytest.approx(one.disk / 4, abs=1)


def test_arrays_that_configurations_share_count_once() -> None:
    full, coarse = foretold(["3d_fullres"], size()), foretold(["3d_lowres"], size())
    assert foretold(["2d", "3d_fullres"], size()).disk == full.disk
    both = foretold(["2d", "3d_fullres", "3d_lowres"], size())
    assert both.disk == pytest.approx(full.disk + coarse.disk, abs=1)
    thick = size(spacing=(6.0, 1.0, 1.0))  # here 3D doubles the slices, and 2D keeps them
    assert foretold(["2d", "3d_fullres"], thick).disk == pytest.approx(3 * full.disk, abs=2)


def test_a_plan_of_another_order_of_axes_foretells_the_same() -> None:
    turned = foretold(["3d_lowres"], size((64, 20, 70), (1.0, 3.0, 1.0)), order=(1, 0, 2))
    assert turned == foretold(["3d_lowres"], size())


def test_memory_is_that_of_the_largest_cases_under_way() -> None:
    plan = make()
    chosen = [plan.configuration("3d_fullres")]
    small, large = size((10, 32, 35)), size()
    needs = [bytes_of_case(one, plan, chosen) for one in (small, large)]
    for workers, expected in ((1, needs[1]), (2, 2 * needs[1]), (3, 2 * needs[1] + needs[0])):
        found = estimate(plan, chosen, [small, large, large, small], workers)
        assert (found.workers, found.memory) == (workers, 10**8 + expected)
    assert estimate(plan, chosen, [small], 8).workers == 1


def test_a_case_takes_its_file_its_body_and_its_largest_array() -> None:
    plan = make()
    chosen = [plan.configuration(name) for name in ("3d_fullres", "3d_lowres")]
    found = bytes_of_case(size(share=0.5), plan, chosen)
    floats = 2 * 4 * (2 * VOXELS + VOXELS + VOXELS)
    assert found == floats + 3 * 2 * VOXELS + 4 * VOXELS
    shape = (200, 512, 640)
    large = bytes_of_case(size(shape), plan, chosen)
    voxels = 200 * 512 * 640
    assert large == 2 * 4 * 3 * voxels + 3 * 2 * voxels + 2**26


def test_small_cases_are_done_one_by_one_unless_more_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimates, "cores", lambda: 3)
    assert workers_for({"a": 1, "b": 2**22 - 1}, None) == 1
    assert workers_for({"a": 1, "b": 2**22}, None) == 3
    assert workers_for({"a": 1}, 2) == 2
    assert workers_for({}, None) == 1


def test_time_is_shared_by_the_workers_and_resampling_costs_more() -> None:
    one, two = (foretold(["3d_fullres"], size(), size(), workers=n).seconds for n in (1, 2))
    assert one == pytest.approx(2 * two)
    thick = size(spacing=(6.0, 1.0, 1.0))
    assert foretold(["3d_fullres"], thick).seconds > 2 * foretold(["3d_fullres"], size()).seconds


def test_sizes_are_those_of_the_fingerprint_and_else_the_plans_median() -> None:
    plan = make(order=(1, 0, 2))
    found = sizes_of_cases(plan, fingerprint((20, 64, 70), (9, 8, 7), share=0.5), ["b", "new"])
    assert found["b"] == CaseSize(shape=(9, 8, 7), spacing=SPACING, voxels=2 * 9 * 8 * 7)
    # the plan's medians are in plan order, (1, 0, 2) of the files'
    assert found["new"].shape == (64, 20, 70)
    assert found["new"].spacing == (1.0, 3.0, 1.0)
    assert sizes_of_cases(plan, None, ["b"])["b"].shape == (64, 20, 70)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (99.4, "99 s"), (100.0, "2 min"), (7200.0, "120 min")],
)
def test_an_estimate_reads_well(seconds: float, text: str) -> None:
    one = estimates.Estimate(
        cases=3, workers=2, memory=1_500_000_000, disk=12_345_678_901, seconds=seconds
    )
    start = "3 cases, 2 at once: about 1.5 GB of memory, 12 GB of disk and "
    assert str(one) == start + text


def test_reading_is_foretold_from_what_files_unpack_to(tmp_path: Path) -> None:
    packed, plain, other = (tmp_path / name for name in ("a.nii.gz", "b.nii", "c.png"))
    packed.write_bytes(gzip.compress(bytes(5000)))
    plain.write_bytes(bytes(700))
    other.write_bytes(bytes(90))
    assert bytes_to_read([packed]) == 6 * 5000
    assert bytes_to_read([plain, other]) == 6 * (700 + 4 * 90)
    packed.write_bytes(b"")
    assert bytes_to_read([packed, tmp_path / "gone.nii"]) == 0


def test_a_gzip_over_4_gb_counts_as_more_than_its_file(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(bytes(4_000_000) + (3).to_bytes(4, "little"))
    assert bytes_to_read([path]) == 6 * (2**32 + 3)


def test_a_damaged_gzip_counts_as_no_more_than_its_bytes_can_be_unpacked_to(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(bytes(96) + (2**32 - 1).to_bytes(4, "little"))
    assert bytes_to_read([path]) == 6 * 1100 * 100


def test_scoring_takes_so_much_of_each_voxel_or_what_reading_takes(tmp_path: Path) -> None:
    small, large = tmp_path / "a.nii", tmp_path / "b.nii"  # 8 and 64 bits a voxel
    small.write_bytes(bytes(300))
    large.write_bytes(bytes(2400))
    assert bytes_to_score(small, small) == 24 * 300
    assert bytes_to_score(small, small, overlap=True) == 6 * 600
    assert bytes_to_score(small, large) == 6 * 2700
    assert bytes_to_score(small, tmp_path / "gone.nii") == 6 * 300


def test_work_is_risky_when_the_largest_cases_may_take_a_quarter_of_what_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimates, "free_memory", lambda: 1000)
    needs = {"a": 125, "b": 125, "c": 1}
    assert not is_risky(needs, 2)
    assert is_risky(needs, 3)
    assert is_risky({"a": 251}, 1)
    assert is_risky({"a": 1, "b": 251, "c": 2}, 1)
    assert not is_risky({}, 4)
    assert room_for(needs).total == 500
    assert room_for(needs).needs == needs


@pytest.fixture
def two_mb_free(monkeypatch: pytest.MonkeyPatch) -> None:
    left = shutil.disk_usage("/")._replace(free=2_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: left)


@pytest.mark.usefixtures("two_mb_free")
def test_a_disk_that_surely_does_not_suffice_is_refused_with_both_figures(tmp_path: Path) -> None:
    check_disk(8_000_000, tmp_path / "not" / "there")
    wanted = rf"{tmp_path}: preprocessing needs about 9 MB of disk, and 2 MB are free; make room"
    with pytest.raises(MachineError, match=wanted):
        check_disk(9_000_000, tmp_path / "not" / "there")


@pytest.mark.usefixtures("two_mb_free")
def test_a_disk_that_may_not_suffice_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_disk(2_000_000, tmp_path)
    assert caplog.text == ""
    check_disk(3_000_000, tmp_path)
    assert "preprocessing may need 3 MB of disk, and 2 MB are free" in caplog.text


@pytest.mark.usefixtures("two_mb_free")
def test_what_will_be_replaced_counts_as_free(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    check_disk(9_000_000, tmp_path, freed=7_000_000)
    assert caplog.text == ""
    with pytest.raises(MachineError):
        check_disk(40_000_000, tmp_path, freed=7_000_000)


# ---------------------------------------------------------------- free memory


def machine(root: Path, groups: str, *, kilobytes: int = 8_000_000) -> None:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "self" / "cgroup").write_text(groups)
    text = f"MemTotal: 9000000 kB\nMemAvailable: {kilobytes} kB\n"
    (root / "proc" / "meminfo").write_text(text)


def group(folder: Path, version: int, limit: str, used: int, cache: int) -> None:
    folder.mkdir(parents=True)
    limit_name, used_name, cache_name = estimates.GROUP_FILES[0 if version == 2 else 1]
    (folder / limit_name).write_text(f"{limit}\n")
    (folder / used_name).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{cache_name} {cache}\n")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(estimates, "PROC", tmp_path / "proc")
    monkeypatch.setattr(estimates, "CONTROL_GROUPS", tmp_path / "groups")
    return tmp_path


def test_free_memory_is_what_the_system_calls_available(elsewhere: Path) -> None:
    machine(elsewhere, "0::/\n")
    assert free_memory() == 8_000_000 * 1024


@pytest.mark.parametrize(
    ("version", "line", "folder"),
    [(2, "0::/box/inner", "box/inner"), (1, "4:memory:/box", "memory/box")],
)
def test_a_control_group_bounds_free_memory_and_its_cache_is_free(
    elsewhere: Path, version: int, line: str, folder: str
) -> None:
    machine(elsewhere, f"12:cpuset:/other\n{line}\n")
    group(elsewhere / "groups" / folder, version, "2000000", 700_000, 100_000)
    assert free_memory() == 2_000_000 - 700_000 + 100_000


def test_a_group_above_bounds_too_and_one_without_a_limit_does_not(elsewhere: Path) -> None:
    machine(elsewhere, "0::/box/inner\n")
    group(elsewhere / "groups" / "box", 2, "5000000", 1_000_000, 0)
    group(elsewhere / "groups" / "box" / "inner", 2, "max", 900_000, 0)
    assert free_memory() == 4_000_000


def test_a_group_that_is_full_leaves_nothing(elsewhere: Path) -> None:
    machine(elsewhere, "0::/box\n")
    group(elsewhere / "groups" / "box", 2, "1000", 2000, 0)
    assert free_memory() == 0


def test_where_nothing_is_told_all_of_the_machines_memory_counts(elsewhere: Path) -> None:
    assert free_memory() > 10**8
