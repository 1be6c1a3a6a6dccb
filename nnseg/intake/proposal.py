"""What raw dataset files could be as they lie: cases, channels, labels, patients.

It is only looked at here; `nnseg.intake.layout` makes it.
"""

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnseg.dataset import Case, DatasetSpec, spec_to_json
from nnseg.dataset.groups import probable_rule
from nnseg.errors import DataError, UsageError
from nnseg.folders import (
    DATASET_NAME,
    FOLDER_NAME_RULE,
    Folders,
    is_folder_name,
    known_datasets,
)
from nnseg.image.normalize import normalizer_for_channel
from nnseg.intake.patterns import find_files
from nnseg.labels import BACKGROUND, Labels
from nnseg.parallel import OnProgress, for_each
from nnseg.volume import (
    channel_counts,
    read_channels,
    read_segmentation,
    split_ending,
)

LISTED = 5  # files or cases that one message names; more are counted
LOOKED_AT = 5  # cases whose images are read, to tell CT
COLOURS = ("R", "G", "B", "A")
AIR = (-1100, -900)  # HU
LOWEST = (-3100, -500)  # HU; scanners fill what they do not see with as little as -3024
AIR_SHARE = 0.01  # of the voxels


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A raw dataset that could be made; `cases` have their files where they lie now."""

    dataset: str
    spec: DatasetSpec
    cases: tuple[Case, ...]
    cases_with: dict[int, int]  # label to number of cases that have it
    unlabelled: tuple[Path, ...]  # images without a label map, left out
    imageless: tuple[Path, ...]  # label maps without an image, left out
    strange: tuple[Path, ...]  # files of no format that we read
    notes: tuple[str, ...]  # what was decided, and by which rule
    group_regex: str | None  # that finds a patient in each case id, if the ids look so


def propose(
    folders: Folders,
    name: str,
    images: Sequence[str],
    labels: str,
    *,
    number: int | None = None,
    channels: Sequence[str] = (),
    label_names: Mapping[str, int] | None = None,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Proposal:
    """Look at files and propose the raw dataset that they could be.

    Every label map is read. A channel that nobody names is CT if its images look like Hounsfield
    units, else image; a label that nobody names is label_N.

    Args:
        folders: The data roots; what is there decides the number.
        name: Of the dataset, without its number.
        images: A pattern for each channel, such as `scans/*_t1.nii.gz`; see `find_files`.
        labels: The pattern of the label maps.
        number: Of the dataset; None is the next after the highest that is there.
        channels: Their names.
        label_names: Integers by name; the name `ignore` is for what nobody annotated.
        workers: Files read at once; None is one a core.
        on_progress: Called after each label map.

    Raises:
        UsageError: A name or number cannot be used, or a pattern cannot be meant.
        DataError: Files cannot be read, or a labelled case lacks a channel.
        MissingError: A pattern matches nothing.
    """
    dataset = _new_name(folders, name, number)
    found = find_files([*images, labels])
    *by_channel, maps = found.files
    cases = _pair(images, by_channel, maps)
    known = {case.case_id for case in cases}
    notes: list[str] = []
    counted = _count_labels(cases, workers, on_progress)
    endings = Counter(split_ending(path.name)[1] for case in cases for path in case.images)
    spec = DatasetSpec(
        channels=_channels(cases, channels, workers, notes),
        labels=_labels(counted, label_names or {}, notes),
        num_training=len(cases),
        file_ending=endings.most_common(1)[0][0],
    )
    rule = probable_rule([case.case_id for case in cases])
    return Proposal(
        dataset=dataset,
        spec=spec,
        cases=cases,
        cases_with=counted,
        unlabelled=_others(by_channel, known),
        imageless=_others([maps], known),
        strange=found.strange,
        notes=tuple(notes),
        group_regex=None if rule is None else rule.regex,
    )


def describe(proposal: Proposal) -> str:
    """Give a proposal as lines for people."""
    first, counts = proposal.cases[0], proposal.cases_with
    labels = ", ".join(
        f"{value} {name} ({counts.get(value, 0)})"
        for name, value in proposal.spec.labels.labels.items()
        if isinstance(value, int) and value > 0  # which no list of a region is
    )
    lines = [f"{proposal.dataset}: {len(proposal.cases)} cases; case {first.case_id}, for one, is"]
    if len(first.images) == len(proposal.spec.channels):
        channels = zip(proposal.spec.channels, first.images, strict=True)
        lines += [f"  channel {i}, {name}: {path}" for i, (name, path) in enumerate(channels)]
    else:
        lines.append(f"  channels {', '.join(proposal.spec.channels)}: {first.images[0]}")
    lines.append(f"  label map: {first.label}")
    lines += _wrapped(f"labels, and how many cases have each: {labels}")
    for note in proposal.notes:
        lines += _wrapped(note)
    for paths, what in (
        (proposal.unlabelled, "images without a label map"),
        (proposal.imageless, "label maps without an image"),
        (proposal.strange, "files of no format that nnseg reads"),
    ):
        if paths:
            lines.append(f"left out: {len(paths)} {what}")
            lines += [f"  {path}" for path in paths]
    if proposal.group_regex:
        lines.append(
            "ids seem to name patients with several cases; to keep each on one side of folds:"
        )
        lines.append(f"  nnseg plan {proposal.dataset} --group-regex '{proposal.group_regex}'")
    return "\n".join(lines)


def to_json(proposal: Proposal) -> dict[str, Any]:
    """Give a proposal as plain JSON values, files as they lie now."""
    return {
        "dataset": proposal.dataset,
        "dataset_json": spec_to_json(proposal.spec),
        "cases": {
            case.case_id: {"images": [str(path) for path in case.images], "label": str(case.label)}
            for case in proposal.cases
        },
        "cases_with_label": {str(value): n for value, n in proposal.cases_with.items()},
        "left_out": {
            "unlabelled": [str(path) for path in proposal.unlabelled],
            "imageless": [str(path) for path in proposal.imageless],
            "strange": [str(path) for path in proposal.strange],
        },
        "notes": list(proposal.notes),
        "group_regex": proposal.group_regex,
    }


def looks_like_ct(channel: NDArray[Any]) -> bool:
    """Whether the values of an image can be Hounsfield units.

    Its smallest value is -3100 to -500, and at least 1 % of its voxels are air, -1100 to -900. So
    CT that was cut to the body or to a window is not told; nor is any MR taken for it that has no
    air, such as phases from -4096 on.
    """
    if not LOWEST[0] <= channel.min() <= LOWEST[1]:
        return False
    air = np.count_nonzero((channel >= AIR[0]) & (channel <= AIR[1]))
    return bool(air >= AIR_SHARE * channel.size)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 100, subsequent_indent="  ", break_long_words=False)


def _new_name(folders: Folders, name: str, number: int | None) -> str:
    """Give the name of the folder; UsageError if it cannot be one or the number is taken."""
    matches = (DATASET_NAME.fullmatch(known) for known in known_datasets(folders))
    taken = {int(match["number"]): match[0] for match in matches if match}
    if DATASET_NAME.fullmatch(name):
        raise UsageError(f"{name!r} has a number; give the name alone, and the number by --id")
    number = max(taken, default=0) + 1 if number is None else number
    if number in taken:
        raise UsageError(f"{taken[number]} has the number {number}; give another --id, or none")
    dataset = f"Dataset{number:03d}_{name}"
    if not name or not is_folder_name(dataset):
        raise UsageError(f"{name!r} cannot be the name of a dataset; {FOLDER_NAME_RULE}")
    return dataset


def _pair(
    patterns: Sequence[str], by_channel: Sequence[Mapping[str, Path]], maps: Mapping[str, Path]
) -> tuple[Case, ...]:
    """Give the cases with a label map and images; each must have every channel."""
    seen = set[str]().union(*by_channel)
    case_ids = sorted(seen & maps.keys())
    if not case_ids:
        raise DataError(
            f"no label map is of the case of an image: the images are of {_some(seen)}, the label "
            f"maps of {_some(maps)}; write in the patterns what their names do not share, such as "
            "*_img.nii.gz and *_mask.nii.gz"
        )
    lacking = [
        f"{case_id} has none of {pattern!r}"
        for case_id in case_ids
        for pattern, files in zip(patterns, by_channel, strict=True)
        if case_id not in files
    ]
    if lacking:
        more = f" and {len(lacking) - LISTED} more" if len(lacking) > LISTED else ""
        raise DataError(
            f"labelled cases lack channels: {', '.join(lacking[:LISTED])}{more}; add the files, "
            "correct the patterns, or move these label maps elsewhere"
        )
    return tuple(
        Case(
            case_id=case_id,
            images=tuple(files[case_id] for files in by_channel),
            label=maps[case_id],
        )
        for case_id in case_ids
    )


def _some(case_ids: Iterable[str]) -> str:
    names = sorted(case_ids)
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")


def _others(files: Sequence[Mapping[str, Path]], known: set[str]) -> tuple[Path, ...]:
    """List the files of other cases than the known ones."""
    return tuple(
        sorted(p for by_id in files for case_id, p in by_id.items() if case_id not in known)
    )


def _count_labels(
    cases: Sequence[Case], workers: int | None, on_progress: OnProgress | None
) -> dict[int, int]:
    """Read every label map; give, for each value above 0, the number of cases that have it."""

    def values(case: Case) -> set[int]:
        assert case.label is not None, "it was paired"
        array, _ = read_segmentation(case.label)
        if array.dtype in (np.uint8, np.uint16):  # counting is much faster than sorting
            return set(np.flatnonzero(np.bincount(array.ravel())).tolist())
        return set(np.unique(array).tolist())

    found = for_each(values, cases, _case_id, workers, "reading label maps", on_progress)
    counts = Counter(value for case in found.values() for value in case if value != 0)
    return dict(sorted(counts.items()))


def _labels(found: Mapping[int, int], names: Mapping[str, int], notes: list[str]) -> Labels:
    """Declare every integer that occurs or is named."""
    if not found:
        raise DataError(
            "no label map has a voxel over 0; give label maps in which something is drawn"
        )
    by_value = {value: name for name, value in names.items() if name != BACKGROUND}
    background = names.get(BACKGROUND, 0)
    if background != 0 or 0 in by_value or len(by_value) + (BACKGROUND in names) < len(names):
        raise UsageError("--label must give each integer one name, and 0 is the background")
    if absent := [f"{name}={value}" for value, name in by_value.items() if value not in found]:
        notes.append(f"named, but in no label map: {', '.join(absent)}")
    if nameless := [value for value in found if value not in by_value]:
        more = " ..." if len(nameless) > LISTED else ""
        shown = " ".join(f"NAME={value}" for value in nameless[:LISTED])
        notes.append(f"to name the labels that are called by their number: --label {shown}{more}")
    values = sorted({*by_value, *found})
    return Labels(
        labels={BACKGROUND: 0, **{by_value.get(value, f"label_{value}"): value for value in values}}
    )


def _channels(
    cases: Sequence[Case], names: Sequence[str], workers: int | None, notes: list[str]
) -> tuple[str, ...]:
    """Name the channels, and tell CT by the images of a few cases spread over all."""
    count = _count_channels(cases, workers)
    if names and len(names) != count:
        raise UsageError(
            f"--channels names {len(names)} channels, but the images have {count}; name each"
        )
    several = len(cases[0].images) > 1
    places = np.linspace(0, len(cases) - 1, min(LOOKED_AT, len(cases)), dtype=int)

    def look(case: Case) -> list[bool]:
        share = 1 if several else count
        channels = (read_channels(path, share)[0] for path in case.images)
        return [looks_like_ct(channel) for file in channels for channel in file]

    chosen = [cases[place] for place in places]
    looks = for_each(look, chosen, _case_id, workers, "looking at images", None).values()
    ct = [all(look[channel] for look in looks) for channel in range(count)]
    seen = f"in each of {len(chosen)} images that were looked at"
    if names:
        for number, name in enumerate(names):
            if ct[number] and normalizer_for_channel(name) != "ct":
                text = f"channel {number}, {name}, has the values of CT {seen}"
                notes.append(
                    f"{text}, and will not be normalized as CT: only the name CT means that"
                )
            if not ct[number] and normalizer_for_channel(name) == "ct":
                notes.append(f"channel {number} is called CT and has not the values of CT {seen}")
        return tuple(names)
    if any(ct):
        notes.append(f"called CT, and so normalized as CT: what has values of CT {seen}")
    if not several and 3 <= count <= len(COLOURS):
        return COLOURS[:count]
    others = [f"image_{number}" for number in range(count)] if count > 1 else ["image"]
    return tuple("CT" if is_ct else name for is_ct, name in zip(ct, others, strict=True))


def _count_channels(cases: Sequence[Case], workers: int | None) -> int:
    """Give the number of channels: of patterns, or of what every file can give if there is one."""
    if len(cases[0].images) > 1:
        return len(cases[0].images)

    def counts_of(case: Case) -> tuple[int, ...]:
        return channel_counts(case.images[0])

    counts = for_each(counts_of, cases, _case_id, workers, "counting channels", None)
    common = set[int].intersection(*(set(found) for found in counts.values()))
    if not common:
        one = {max(counts[case.case_id]): case.images[0] for case in cases}
        found = ", ".join(f"{path} has {count}" for count, path in sorted(one.items()))
        raise DataError(f"the images differ in their number of channels: {found}; convert them")
    return min(common)


def _case_id(case: Case) -> str:
    return case.case_id
