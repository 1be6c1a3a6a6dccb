"""What can be mended for certain in a raw dataset, decided from what a survey of it shows.

Read `make_recipe` first. Nothing is read or written here but dataset.json and splits_final.json.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnseg import record
from nnseg.dataset import Fold
from nnseg.doctor.examine import CaseFacts, LabelFacts, Survey
from nnseg.doctor.listing import Listing, read_folds
from nnseg.errors import DataError, MissingError
from nnseg.volume import Geometry, grid_fault, side_files

DRIFT = 0.1  # smallest voxels that a label map may lie beside its image and still be moved onto it
LABELS = np.iinfo(np.int32)  # what a label can be; formats hold these and not all of more
FULL = 255  # the foreground of masks that are made as pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """One thing that was put right; `rule` is that of a finding, or says what else was wrong."""

    rule: str
    file: str  # relative to the dataset's folder, with forward slashes
    done: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLabel:
    """How a label map is written anew."""

    geometry: Geometry
    foreground: int | None  # what 255 becomes; None leaves the values
    values: Mapping[int, int]  # label to number of voxels, as they are; empty if no labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a corrected copy has that the original has not."""

    mended: tuple[Mend, ...]
    dropped: frozenset[Path]
    labels: Mapping[Path, NewLabel]
    texts: Mapping[Path, str]  # JSON files with other content


def make_recipe(found: Survey, files: Sequence[Path]) -> Recipe:
    """Decide what to mend, from what the survey and the list of files show."""
    listing = found.listing
    mended, dropped = _leave_out(found, files)
    labels: dict[Path, NewLabel] = {}
    for facts in found.cases:
        if facts.label is not None and facts.label.path not in dropped:
            steps, new = _mend_label(listing, facts, facts.label)
            if steps:
                labels[facts.label.path] = new
                mended += [_mend(listing, rule, facts.label.path, done) for rule, done in steps]
    gone = {case_id for case_id, paths in listing.images.items() if dropped & paths.keys()}
    if gone and gone == listing.images.keys():
        raise DataError(
            f"{listing.folder}: no case would be left, because no image has a label map of its "
            "name; name them alike first"
        )
    texts = {}
    for path, change in (
        (listing.folder / "dataset.json", _correct_count(listing, len(listing.images) - len(gone))),
        (listing.folder / "splits_final.json", _correct_folds(listing, gone)),
    ):
        if change is not None:
            rule, done, texts[path] = change
            mended.append(_mend(listing, rule, path, done))
    return Recipe(
        mended=tuple(sorted(mended, key=lambda m: (m.file, m.rule))),
        dropped=frozenset(dropped),
        labels=labels,
        texts=texts,
    )


def _mend(listing: Listing, rule: str, path: Path, done: str) -> Mend:
    return Mend(rule=rule, file=path.relative_to(listing.folder).as_posix(), done=done)


def _leave_out(found: Survey, files: Sequence[Path]) -> tuple[list[Mend], set[Path]]:
    """Decide which files the copy lacks: those without a partner or a meaning, and hidden ones."""
    listing = found.listing
    reasons: dict[Path, tuple[str, str]] = {}
    for finding in found.findings:
        path = listing.folder / finding.file
        if finding.rule in ("file_name", "image_missing"):
            reasons[path] = finding.rule, f"left out: {finding.found}"
        elif finding.rule == "label_missing":
            for image in listing.images[finding.case_id or ""]:
                reasons[image] = finding.rule, "left out: has no label map in labelsTr"
    hidden = [path for path in files if _is_hidden(path, listing.folder)]
    kept = {path for images in listing.images.values() for path in images}
    kept = {*kept, *listing.labels.values()} - reasons.keys()
    needed = {side for path in kept for side in side_files(path)}
    sides = {side for path in reasons for side in side_files(path)} - needed
    mended = [_mend(listing, rule, path, done) for path, (rule, done) in reasons.items()]
    if hidden:
        others = f", and {len(hidden) - 1} more hidden files" if len(hidden) > 1 else ""
        done = f"left out: is hidden{others}"
        mended.append(_mend(listing, "hidden", min(hidden), done))
    return mended, {*reasons, *sides, *hidden}


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _mend_label(
    listing: Listing, facts: CaseFacts, label: LabelFacts
) -> tuple[list[tuple[str, str]], NewLabel]:
    """Decide how a label map is mended: the rules and what is done, and what it becomes."""
    steps = []
    foreground, geometry = None, label.geometry
    values = label.values or {}
    if values and not LABELS.min <= min(values) <= max(values) <= LABELS.max:
        values = {}
    declared = listing.spec.labels
    alone = len(declared.values) == 2 and len(declared.foreground) == 1
    certain = alone and "labels" in listing.known and FULL not in declared.values
    if certain and values.keys() == {0, FULL}:
        foreground = declared.values[1]
        (name,) = declared.foreground
        text = f"{FULL} became {foreground} ({name}) in {values[FULL]} voxels"
        steps.append(("label_undeclared", text))
    if label.is_float and values:
        steps.append(("label_float", "its integers are stored as integers"))
    if facts.grid is not None and grid_fault(facts.grid, geometry):
        off = drift(facts.grid, geometry)
        if off <= DRIFT:
            geometry = facts.grid
            steps.append(("label_grid", f"moved by {off:.2g} voxels onto the grid of its image"))
    return steps, NewLabel(geometry=geometry, foreground=foreground, values=values)


def drift(first: Geometry, second: Geometry) -> float:
    """Give how far two grids lie apart where they do most, in smallest voxels of the first.

    The corners are compared, and so is what each axis's spacing says of its far end, because files
    may state a spacing beside their matrix. Grids of different shapes are infinitely apart.
    """
    if first.shape != second.shape:
        return float("inf")
    apart = float(np.linalg.norm(first.corners() - second.corners(), axis=1).max())
    rows = zip(first.shape, first.spacing, second.spacing, strict=True)
    stretched = max((n - 1) * abs(a - b) for n, a, b in rows)
    return max(apart, stretched) / min(first.spacing)


def _correct_count(listing: Listing, count: int) -> tuple[str, str, str] | None:
    """Give the rule, what is done, and dataset.json with the right numTraining."""
    path = listing.folder / "dataset.json"
    try:
        data = record.read_json(path)
    except (MissingError, DataError):
        return None
    if not isinstance(data, dict) or not count:
        return None
    declared = data.get("numTraining")
    if type(declared) is int and declared == count:
        return None
    was = "missing" if declared is None else json.dumps(declared)
    data["numTraining"] = count
    return "case_count", f"numTraining was {was} and is {count}", record.json_text(data)


def _correct_folds(listing: Listing, gone: set[str]) -> tuple[str, str, str] | None:
    """Give the rule, what is done, and the dataset's own folds without the cases that are gone."""
    path = listing.folder / "splits_final.json"
    try:
        folds = read_folds(path)
    except (MissingError, DataError):
        return None
    named = {case_id for fold in folds for case_id in (*fold.train, *fold.val)} & gone
    if not named:
        return None
    rest = [
        Fold(
            train=tuple(case_id for case_id in fold.train if case_id not in named),
            val=tuple(case_id for case_id in fold.val if case_id not in named),
        )
        for fold in folds
    ]
    text = record.json_text([record.to_json(fold) for fold in rest])
    return "folds", f"lost {', '.join(sorted(named))}, which is left out", text
