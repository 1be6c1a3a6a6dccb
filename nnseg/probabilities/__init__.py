"""Probabilities on disk: as nnU-Net's .npz, as NIfTI for other programs, or for ours.

`writing` takes them as a prediction gives them, some planes at a time, plan order, and never has
them all. What is for us is written as it comes; what wants one head after the other goes through an
uncompressed temporary file. `read_planes` gives back what chunks hold. `writing_compact` keeps what
a network found on its own grid, `open_compact` and `open_npz` read again.
"""

from nnseg.probabilities.chunks import OpenProbabilities, open_probabilities, read_planes
from nnseg.probabilities.compact import OpenCompact, open_compact, writing_compact
from nnseg.probabilities.kinds import KINDS
from nnseg.probabilities.npz import OpenNpz, open_npz
from nnseg.probabilities.writer import writing

__all__ = [
    "KINDS",
    "OpenCompact",
    "OpenNpz",
    "OpenProbabilities",
    "open_compact",
    "open_npz",
    "open_probabilities",
    "read_planes",
    "writing",
    "writing_compact",
]
