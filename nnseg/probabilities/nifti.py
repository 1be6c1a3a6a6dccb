"""Probabilities as other programs read them: one NIfTI file with the whole image."""

import json
from pathlib import Path

import numpy as np

from nnseg.probabilities.heads import STEPS
from nnseg.probabilities.spool import Spool, image_parts
from nnseg.probabilities.target import Target
from nnseg.volume.nifti import to_nibabel

COMMENT = 6  # NIfTI's code of an extension that is plain text


def pack_nifti(path: Path, target: Target, spool: Spool) -> None:
    """Write a compressed NIfTI file (x, y, z, head) on the image's grid; a comment names the heads.

    Its values are steps, uint16, and its slope 1/4096 is exact; so 0 and 1 are read as such.
    """
    from isal import igzip
    from nibabel.nifti1 import Nifti1Extension

    shape = (*reversed(target.placement.shape), target.labels.heads)
    longest = np.zeros((1, 1, max(shape)), dtype=spool.kind)  # decides between NIfTI-1 and NIfTI-2
    header = to_nibabel(longest, target.geometry).header
    header.set_data_shape(shape)
    header.set_data_dtype(spool.kind)
    header["scl_slope"], header["scl_inter"] = 1 / STEPS, 0
    header["cal_min"], header["cal_max"] = 0, 1  # what viewers show from black to white
    names = json.dumps({"heads": target.labels.head_names}, ensure_ascii=False)
    header.extensions.append(Nifti1Extension(COMMENT, names.encode()))
    with (
        open(path, "wb") as file,
        igzip.IGzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,
    ):
        header.write_to(packed)
        for part in image_parts(target, spool):
            packed.write(part.data.cast("B"))
