"""A proposed raw dataset on disk: links or copies of the files, whole or not at all."""

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from nnseg import record
from nnseg.commit import FULL, sync_folder, whole_folder, write_whole
from nnseg.dataset import Case, spec_to_json
from nnseg.errors import MachineError, UsageError
from nnseg.folders import Folders
from nnseg.intake.proposal import Proposal
from nnseg.volume import side_files, split_ending


def lay_out(folders: Folders, proposal: Proposal, *, copy: bool = False) -> Path:
    """Make the dataset, whole or not at all, and give its folder.

    Its files are symbolic links unless `copy`: they take no room, and a correction of the original
    is one of the dataset. A link to what lies below the folder that holds the raw root is relative,
    so that both can move together; any other is absolute, so that the dataset can move alone.

    Raises:
        UsageError: The dataset is there already.
        MachineError: The disk is full, or the folder cannot be written or hold links.
    """
    target = folders.raw_folder(proposal.dataset)
    if target.exists():
        raise UsageError(f"{target} is there already; give another name or --id")
    files = _targets(proposal.cases)
    if copy:
        _check_room(folders.raw, files.values())
    with whole_folder(target) as unfinished:
        for place, source in files.items():
            path = unfinished / place
            path.parent.mkdir(parents=True, exist_ok=True)
            if copy:
                _copy(source, path)
            else:
                _link(path, _link_text(source, path.parent, folders.raw))
        text = record.json_text(spec_to_json(proposal.spec))
        write_whole(unfinished / "dataset.json", text.encode())
        for folder in {(unfinished / place).parent for place in files}:
            sync_folder(folder)
    return target


def _targets(cases: Sequence[Case]) -> dict[Path, Path]:
    """Give, for each file of the dataset, relative to its folder, the file that it is made of."""
    targets = {}
    for case in cases:
        named = [(f"imagesTr/{case.case_id}_{i:04d}", path) for i, path in enumerate(case.images)]
        named += [(f"labelsTr/{case.case_id}", path) for path in (case.label,) if path]
        for stem, source in named:
            targets[Path(stem + split_ending(source.name)[1])] = source
            for side in side_files(source):
                packed = side.name.lower().endswith(".img.gz")
                ending = side.name[-len(".img.gz") :] if packed else side.suffix
                targets[Path(stem + ending)] = side
    return targets


def _check_room(folder: Path, sources: Iterable[Path]) -> None:
    """Refuse to begin to copy what the disk cannot hold."""
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(source.stat().st_size for source in sources)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise MachineError(
            f"{folder}: the copies take {needed / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free; "
            "make room, or link the files"
        )


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with open(target, "r+b") as file:
        os.fsync(file.fileno())


def _link(path: Path, text: str) -> None:
    try:
        path.symlink_to(text)
    except OSError as error:
        if error.errno in FULL:
            raise
        reason = error.strerror or str(error)
        raise MachineError(
            f"{path.parent}: links cannot be made there ({reason}); check the folder, or give "
            "--copy"
        ) from error


def _link_text(source: Path, folder: Path, raw: Path) -> str:
    """Give what a link in `folder` must say to lead to `source`; see `lay_out` for the rule."""
    place = source.parent.resolve() / source.name
    if place.is_relative_to(raw.resolve().parent):
        return os.path.relpath(place, folder.resolve())
    return str(place)
