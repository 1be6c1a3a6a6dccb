"""Probabilities on disk: as nnU-Net's .npz, as NIfTI for other programs, or in chunks for ours.

`writing` takes them as a prediction gives them, some planes at a time, plan order, and never has
them all. Chunks are written as they come; what wants one head after the other goes through an
uncompressed temporary file. `read_planes` gives back what chunks hold.
"""

from nnseg.probabilities.chunks import open_probabilities, read_planes
from nnseg.probabilities.kinds import KINDS
from nnseg.probabilities.writer import writing

__all__ = ["KINDS", "open_probabilities", "read_planes", "writing"]
