"""What preprocessing takes of memory, disk and time, told before it starts.

Sizes follow from the shapes and spacings of the cases, which the fingerprint has, and from the
plan. `bytes_of_case` and `estimate` state the formulas; their constants were measured.
"""

import logging
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nnseg.axes import Shape, Spacing, permute, three
from nnseg.errors import MachineError
from nnseg.fingerprint import Fingerprint
from nnseg.image.resample import target_shape
from nnseg.parallel import Room, cores
from nnseg.plan import Configuration, Plan
from nnseg.preprocess import planned_spacing
from nnseg.volume.damage import MOST_SHRUNK

logger = logging.getLogger(__name__)

RUNNING_SHARE = 0.5  # of the memory that is free, for all cases under way
KEPT_SHARE = 0.25  # of it, for cases kept from measuring to preprocessing
APART_SHARE = 0.25  # of it; work that may take more is done apart: it might be killed for memory

FLOAT_BYTES = 4
READ_BYTES = 6  # for each byte of an unpacked file: its bytes, its array, and its parts of the body
AHEAD_BYTES = 2**30  # of a case that is read while the one before is predicted
MAP_BYTES = 3  # a voxel of label map and mask, and of what is computed of them
SCORED_BYTES = 24  # a voxel of two label maps whose surfaces or components are looked at
SLAB_BYTES = 2**26  # at most, of the planes that are resampled at once
PROGRAM_BYTES = 10**8  # of the program without a case
SMALL_BYTES = 2**22  # cases that take less spend their time in Python, one thread at a time
STORED_SHARE = 0.95  # of the bytes of an image: float32 noise packs badly
FLAT_SHARE = 0.25  # of what is foretold of the disk, that even images with much air take
STORED_MAPS = 0.2  # bytes a voxel of label map, mask and locations
CASE_SECONDS = 4e-3  # of one core, for a case however small
READ_SECONDS = 2e-8  # of one core, a voxel and channel of a file: read, crop, normalize
MADE_SECONDS = 2e-8  # of one core, a voxel and channel: compress, hash, write
RESAMPLED_SECONDS = 1e-7  # of one core, a voxel: resample image and labels

PROC, CONTROL_GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
GROUP_FILES = (  # of a control group: limit, use, and cache in memory.stat; version 2 and 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseSize:
    """The size of one case's files, image order."""

    shape: Shape  # voxels of its body's box
    spacing: Spacing  # mm
    voxels: float  # of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What preprocessing is foretold to take."""

    cases: int
    workers: int
    memory: int  # bytes, of all workers together
    disk: int  # bytes
    seconds: float

    def __str__(self) -> str:
        size, unit = self.seconds, "s"
        if size >= 100:
            size, unit = size / 60, "min"
        return (
            f"{self.cases} cases, {self.workers} at once: about {in_gb(self.memory)} of memory, "
            f"{in_gb(self.disk)} of disk and {max(size, 1):.0f} {unit}"
        )


def estimate(
    plan: Plan, configurations: Sequence[Configuration], sizes: Sequence[CaseSize], workers: int
) -> Estimate:
    """Foretell what it takes to make the data of some configurations of some cases.

    Memory: 100 MB for the program and that of the largest cases, as many as are under way at once
    (`bytes_of_case`). Disk: for each voxel and channel 95 % of 4 bytes, and for each voxel a fifth
    of a byte for its labels; arrays that configurations share count once. Time: constants of one
    core, over the workers.
    """
    channels, workers = len(plan.channels), min(workers, len(sizes))
    needs = sorted((bytes_of_case(size, plan, configurations) for size in sizes), reverse=True)
    disk = seconds = 0.0
    for size in sizes:
        made = _made_voxels(size, plan, configurations)
        resampled = sum(voxels for voxels in made if voxels != math.prod(size.shape))
        disk += sum(made) * (channels * FLOAT_BYTES * STORED_SHARE + STORED_MAPS)
        seconds += channels * (size.voxels * READ_SECONDS + sum(made) * MADE_SECONDS)
        seconds += CASE_SECONDS + resampled * RESAMPLED_SECONDS
    return Estimate(
        cases=len(sizes),
        workers=workers,
        memory=PROGRAM_BYTES + sum(needs[:workers]),
        disk=int(disk),
        seconds=seconds / max(1, workers),
    )


def bytes_of_case(size: CaseSize, plan: Plan, configurations: Sequence[Configuration]) -> int:
    """Foretell the most bytes that one case takes while it is preprocessed.

    That is, in float32, all channels as the files have them, as they are cropped and normalized,
    and as the largest configuration has them; 3 bytes for each of these voxels for labels and mask;
    and as much for the planes in work as for the largest array, but at most 64 MiB.
    """
    box, largest = math.prod(size.shape), max(_made_voxels(size, plan, configurations))
    channel = FLOAT_BYTES * len(plan.channels)
    maps, slab = MAP_BYTES * (box + largest), min(SLAB_BYTES, FLOAT_BYTES * largest)
    return int(channel * (size.voxels + box + largest)) + maps + slab


def sizes_of_cases(
    plan: Plan, fingerprint: Fingerprint | None, case_ids: Sequence[str]
) -> dict[str, CaseSize]:
    """Give the size of each case from the fingerprint; a case that it lacks has the plan's median.

    The fingerprint has shapes after cropping; how much larger the files are it tells in general.
    """
    known: dict[str, CaseSize] = {}
    share = 1.0
    if fingerprint is not None:
        share = max(fingerprint.median_relative_size, 1e-3)
        for case_id, shape, spacing in zip(
            fingerprint.case_ids, fingerprint.shapes, fingerprint.spacings, strict=False
        ):
            voxels = math.prod(shape) / share
            known[case_id] = CaseSize(shape=shape, spacing=spacing, voxels=voxels)
    back = [plan.order.index(axis) for axis in range(3)]
    shape = three([max(1, round(plan.median_shape[axis])) for axis in back])
    spacing = three([plan.median_spacing[axis] for axis in back])
    median = CaseSize(shape=shape, spacing=spacing, voxels=math.prod(shape) / share)
    return {case_id: known.get(case_id, median) for case_id in case_ids}


def may_read_ahead(files: Sequence[Path]) -> bool:
    """Whether a case's files are small enough to be read while another case is worked on."""
    return bytes_to_read(files) <= AHEAD_BYTES


def bytes_to_read(files: Sequence[Path]) -> int:
    """Foretell the most bytes that reading and examining a case's files takes.

    A file that cannot be read counts as nothing: who reads it will say so.
    """
    total = 0
    for path in files:
        with suppress(OSError):
            total += READ_BYTES * _unpacked_bytes(path)
    return total


def bytes_to_score(reference: Path, prediction: Path, *, overlap: bool = False) -> int:
    """Foretell the most bytes that reading two label maps and scoring them takes.

    A voxel takes a byte of a file at least, so that the smaller file tells how many there may be.
    Each takes 24: of organs 11 were measured, with components 23, and 37 where a label's surface is
    everywhere; those still fit, as half of the free memory is given out.

    Args:
        reference: A label map, on the grid of the other.
        prediction: The other one.
        overlap: Whether no surfaces and components are looked at, which takes less than reading.
    """
    reading = bytes_to_read([reference, prediction])
    if not overlap:
        with suppress(OSError):
            voxels = min(_unpacked_bytes(path) for path in (reference, prediction))
            return max(reading, SCORED_BYTES * voxels)
    return reading


def room_for(needs: Mapping[str, int]) -> Room:
    """Give the memory that work on cases with such needs may take now."""
    return Room(total=int(RUNNING_SHARE * free_memory()), needs=needs)


def workers_for(needs: Mapping[str, int], wanted: int | None) -> int:
    """Give how many cases to work on at once: as many as are wanted, else one a core.

    Without a wish, small cases are done one by one. Most of their time goes by in Python, where two
    threads only wait for each other.
    """
    if wanted is not None:
        return wanted
    return cores() if max(needs.values(), default=0) >= SMALL_BYTES else 1


def is_risky(needs: Mapping[str, int], workers: int) -> bool:
    """Say whether the largest cases together may take so much memory that one might be killed."""
    return sum(sorted(needs.values())[-workers:]) > APART_SHARE * free_memory()


def check_disk(needed: int, folder: Path, *, freed: int = 0) -> None:
    """Refuse work that surely needs more bytes than are free; warn of what may.

    How well arrays pack is not known before. What is foretold is what noise takes; images with
    much air around the body have been seen to take half of it, and FLAT_SHARE is taken as sure.

    Args:
        needed: Bytes as `estimate` foretells them.
        folder: Where they go; it need not be there yet.
        freed: Bytes of what will be replaced.

    Raises:
        MachineError: What is needed and what is free.
    """
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if FLAT_SHARE * needed - freed > free:
        raise MachineError(
            f"{folder}: preprocessing needs about {in_gb(needed - freed)} of disk, and "
            f"{in_gb(free)} are free; make room, or take fewer configurations (-c)"
        )
    if needed - freed > free:
        logger.warning(
            "%s: preprocessing may need %s of disk, and %s are free",
            folder,
            in_gb(needed - freed),
            in_gb(free),
        )


def free_memory() -> int:
    """Give the bytes of memory that this process can still have, that of its control group at most.

    It is all of the machine's where the system does not tell more.
    """
    free = 0
    if hasattr(os, "sysconf"):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError, IndexError):
        for line in (PROC / "meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    for folder in _control_groups():
        with suppress(OSError, ValueError, IndexError):
            free = min(free, _free_in_group(folder, free))
    return free


def in_gb(count: float) -> str:
    """Give bytes for people.

    >>> in_gb(12.34e9), in_gb(1.234e9), in_gb(12_340_000)
    ('12 GB', '1.2 GB', '12 MB')
    """
    if count < 1e9:
        return f"{max(count / 1e6, 1):.0f} MB"
    return f"{count / 1e9:.0f} GB" if count >= 1e10 else f"{count / 1e9:.1f} GB"


def _made_voxels(size: CaseSize, plan: Plan, configurations: Sequence[Configuration]) -> list[int]:
    """Give the voxels of each array that a case is made into; what is shared stands there once."""
    shape, spacing = permute(size.shape, plan.order), permute(size.spacing, plan.order)
    made = {}
    for configuration in configurations:
        new = target_shape(shape, spacing, planned_spacing(spacing, configuration))
        made[new, configuration.normalization, configuration.use_mask] = math.prod(new)
    return list(made.values())


def _unpacked_bytes(path: Path) -> int:
    """Foretell the size of a file without its compression."""
    size = path.stat().st_size
    if not path.name.endswith(".gz"):
        return size if path.name.endswith((".nii", ".img")) else 4 * size
    with open(path, "rb") as file:
        file.seek(max(0, size - 4))
        unpacked = int.from_bytes(file.read(4), "little")  # modulo 2^32, as gzip has it
    while unpacked < size:
        unpacked += 2**32
    return min(unpacked, MOST_SHRUNK * size)  # of a damaged file the last bytes may say anything


def _control_groups() -> list[Path]:
    """List the folders of this process's control groups that bound memory, in either version."""
    found = []
    with suppress(OSError):
        for line in (PROC / "self" / "cgroup").read_text("utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers in ("", "memory"):
                top = CONTROL_GROUPS / controllers
                folder = top / group.lstrip("/")
                found += [folder, *(above for above in folder.parents if above.is_relative_to(top))]
    return found


def _free_in_group(folder: Path, otherwise: int) -> int:
    """Give what a control group may still take, counting what it can drop of the page cache."""
    for limit_name, used_name, cache_name in GROUP_FILES:
        if (folder / limit_name).is_file():
            limit = (folder / limit_name).read_text("ascii").strip()
            if limit == "max":
                return otherwise
            used = int((folder / used_name).read_text("ascii"))
            for line in (folder / "memory.stat").read_text("ascii").splitlines():
                if line.startswith(f"{cache_name} "):
                    used -= int(line.split()[1])
            return max(0, int(limit) - used)
    return otherwise
