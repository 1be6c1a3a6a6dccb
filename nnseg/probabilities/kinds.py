"""The kinds of files that keep probabilities, by their names."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnseg.folders import COMPACT
from nnseg.probabilities.chunks import taking_chunks
from nnseg.probabilities.compact import taking_compact
from nnseg.probabilities.nifti import pack_nifti
from nnseg.probabilities.npz import pack_npz
from nnseg.probabilities.spool import spooled
from nnseg.probabilities.target import TakePlanes, Target
from nnseg.registry import Registry
from nnseg.volume import split_ending


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A way to keep probabilities.

    `taking` gives what takes the planes (z, y, x, head) of the body's box in order; when it is left
    without an error, the files are there, the one of the last ending last.
    """

    endings: tuple[str, ...]  # of its files, behind the name of the case
    taking: Callable[[Target], AbstractContextManager[TakePlanes]]


KINDS = Registry[Kind](
    "kind of probabilities",
    npz=Kind(
        endings=(".npz",),
        taking=functools.partial(spooled, kind=np.float32, pack=pack_npz),
    ),
    nifti=Kind(
        endings=("_probabilities.nii.gz",),
        taking=functools.partial(spooled, kind=np.uint16, pack=pack_nifti),
    ),
    chunks=Kind(
        endings=("_probabilities.b2nd", "_probabilities.json"),
        taking=taking_chunks,
    ),
    compact=Kind(endings=COMPACT, taking=taking_compact),
)


def probability_files(label_map: Path, kind: str) -> tuple[Path, ...]:
    """Name the files that `writing` writes; the last one makes them count.

    >>> [path.name for path in probability_files(Path("heart_01.nii.gz"), "chunks")]
    ['heart_01_probabilities.b2nd', 'heart_01_probabilities.json']
    """
    case_id, _ = split_ending(label_map.name)
    return tuple(label_map.with_name(f"{case_id}{ending}") for ending in KINDS[kind].endings)
