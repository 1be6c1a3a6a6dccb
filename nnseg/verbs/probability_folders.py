"""Folders of probabilities: what each of several models found in which cases."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nnseg import record
from nnseg.averaging import Opened
from nnseg.dataset import DatasetSpec, read_spec, visible_files
from nnseg.errors import DataError, MissingError, NnsegError
from nnseg.estimate import FLOAT_BYTES, MAP_BYTES
from nnseg.folders import (
    checkpoint_file,
    compact_files,
    predicted_spec_file,
    validated_file,
    validation_folder,
)
from nnseg.labels import Labels
from nnseg.parallel import some
from nnseg.probabilities import KINDS, open_compact, open_npz, open_probabilities
from nnseg.probabilities.chunks import StoredProbabilities
from nnseg.probabilities.compact import MADE_BY, StoredCompact
from nnseg.probabilities.npz import packed_bytes
from nnseg.validated import read_validated
from nnseg.volume import LABEL_ENDINGS, read_segmentation

KINDS_READ = ("npz", "chunks", "compact")  # of a case that is there as several, the last one counts
USUAL_ENDING = ".nii.gz"  # of label maps, where no folder tells another
AVERAGING_BYTES = 2**28  # that planes of the members take while they are averaged, at most
CHECKPOINTS = ("final", "best")  # of which a validation may be


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A folder of what one model found."""

    folder: Path
    kinds: dict[str, str]  # case id to kind of its probabilities
    spec: DatasetSpec | None  # of its dataset.json, if it has one

    def file(self, case_id: str) -> Path:
        """Give the file that holds the probabilities of a case.

        Raises:
            MissingError: There are none.
        """
        if case_id not in self.kinds:
            raise MissingError(
                f"{self.folder} has no probabilities of it; predict it there, too, or take it out "
                "of the other folders"
            )
        return self.folder / f"{case_id}{KINDS[self.kinds[case_id]].endings[0]}"

    def open(self, case_id: str) -> tuple[Opened, Path]:
        """Open the probabilities of a case, and name the file that holds them.

        Raises:
            MissingError: There are none.
            DataError: They are damaged, or nothing says what they mean.
        """
        path = self.file(case_id)
        kind = self.kinds[case_id]
        if kind == "compact":
            return open_compact(self.folder / f"{case_id}{USUAL_ENDING}"), path
        if kind == "chunks":
            return open_probabilities(path), path
        if self.spec is None:
            raise MissingError(
                f"{predicted_spec_file(self.folder)} does not exist; it says what the heads of "
                f"{path.name} mean: copy that of the dataset there"
            )
        beside = self.folder / f"{case_id}{self.spec.label_ending}"
        if not beside.is_file():
            raise MissingError(f"{beside} does not exist; {path.name} lies on its grid: restore it")
        return open_npz(path, self.spec.labels, read_segmentation(beside)[1]), path

    def stored(self, case_id: str) -> StoredCompact | StoredProbabilities | None:
        """Read what the record of a case's probabilities says; None of an npz, which has none.

        Raises:
            MissingError: There is no record.
            DataError: It is damaged.
        """
        kind = self.kinds[case_id]
        if kind == "compact":
            path = compact_files(self.folder / f"{case_id}{USUAL_ENDING}")[1]
            return record.load_sealed(StoredCompact, path)
        if kind == "chunks":
            path = self.folder / f"{case_id}{KINDS[kind].endings[1]}"
            return record.load_sealed(StoredProbabilities, path)
        return None

    def labels(self) -> Labels | None:
        """Give the labels of the model; None where no readable file says them."""
        for case_id in sorted(self.kinds):
            with suppress(NnsegError):  # its case will tell
                stored = self.stored(case_id)
                if stored is not None:
                    return stored.labels
        return None if self.spec is None else self.spec.labels


def look_into(folder: Path) -> Source:
    """List the cases of a folder whose probabilities are there.

    Raises:
        MissingError: There is no such folder, or none in it.
        DataError: Its dataset.json cannot be used.
    """
    kinds: dict[str, str] = {}
    wanted = [ending for kind in KINDS_READ for ending in KINDS[kind].endings]
    names = [path.name for path in visible_files(folder, wanted)]
    for kind in KINDS_READ:
        ending = KINDS[kind].endings[-1]
        kinds |= {name.removesuffix(ending): kind for name in names if name.endswith(ending)}
    if not kinds:
        raise MissingError(
            f"{folder} holds no probabilities; `nnseg predict --save_probabilities chunks` writes "
            "them, and the validation of a fold: `nnseg train DATASET CONFIGURATION FOLD --val`"
        )
    path = predicted_spec_file(folder)
    return Source(folder=folder, kinds=kinds, spec=read_spec(path) if path.is_file() else None)


def check_labels(members: Sequence[Source]) -> None:
    """Make sure, without unpacking anything, that all models are of the same labels.

    Raises:
        DataError: They are not.
    """
    first: tuple[Path, Labels] | None = None
    for member in members:
        labels = member.labels()
        if labels is None:
            continue
        if first is None:
            first = member.folder, labels
        elif labels != first[1]:
            raise DataError(
                f"{member.folder} is of a model of the labels {labels.as_text}, and {first[0]} of "
                f"{first[1].as_text}; average models of the same labels"
            )


def check_weights(member: Source) -> None:
    """Make sure that what a fold's validation left is of the weights that the fold has now.

    Compact probabilities say whose they are; of older ones their folder does, which is less: it may
    be of another validation than they. Of other folders nothing is known, and nothing is asked.

    Raises:
        DataError: The fold was trained further, or anew, and not validated since then.
    """
    fold = member.folder.absolute().parent
    if member.folder.absolute() != validation_folder(fold) or not validated_file(fold).is_file():
        return
    now = {weights for kind in CHECKPOINTS if (weights := _weights_of(fold, kind))}
    if not now:
        return
    proof = read_validated(fold)
    otherwise = proof.weights_sha256 or None if proof is not None else None
    stale = []
    for case_id, kind in member.kinds.items():
        if kind == "compact":
            with suppress(NnsegError):  # its case will tell
                stored = member.stored(case_id)
                assert isinstance(stored, StoredCompact), "it was asked for"
                if (stored.weights_sha256 or otherwise or "") not in now | {""}:
                    stale.append(case_id)
    if stale:
        raise DataError(
            f"{member.folder}: {some(stale)} of {len(member.kinds)} are of weights that the fold "
            f"has no more; `{MADE_BY}` predicts them again"
        )


def label_ending(members: Sequence[Source]) -> str:
    """Give how the label maps end: as the models' own do."""
    for member in members:
        if member.spec is not None:
            return member.spec.label_ending
    for member in members:
        for ending in LABEL_ENDINGS:
            if (member.folder / f"{min(member.kinds)}{ending}").is_file():
                return ending
    return USUAL_ENDING


def bytes_to_average(members: Sequence[Source], case_id: str) -> int:
    """Foretell the most bytes that averaging a case takes, by what its files say of themselves.

    An npz is in memory as a whole, of others some planes are; where members lie in other boxes of
    the file, so does the mean. What cannot be read counts as nothing: its case will tell.
    """
    kept, largest, voxels = 0, 0, 0
    frames = set()
    for member in members:
        if case_id not in member.kinds:
            continue
        try:
            stored = member.stored(case_id)
        except NnsegError:
            continue
        if stored is None:
            size = packed_bytes(member.file(case_id))
            kept += size
            frames.add("whole")
            heads = 2 if member.spec is None else member.spec.labels.heads
            voxels = max(voxels, size // (FLOAT_BYTES * heads))
        else:
            of_file = math.prod(stored.placement.shape)
            size = FLOAT_BYTES * stored.labels.heads * of_file
            frames.add(str((stored.placement.order, stored.placement.box)))
            voxels = max(voxels, of_file)
        largest = max(largest, size)
    planes = min(AVERAGING_BYTES, 2 * len(members) * largest)
    at_once = 2 * largest if len(frames) > 1 else 0
    return kept + planes + at_once + MAP_BYTES * voxels


def _weights_of(fold: Path, kind: str) -> str | None:
    try:
        found = record.read_json(checkpoint_file(fold, kind))
    except NnsegError:
        return None
    return str(found.get("weights_sha256")) if isinstance(found, dict) else None
