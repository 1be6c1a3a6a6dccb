"""Attacks in images and in probabilities: promises that no machine can hold, objects and code."""

import gzip
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from attacks import MODEL, Arguments, Attack, Make, Place, proof_of
from payloads import call, pickled


def attacks_on_images() -> Iterator[Attack]:
    """Images that a user predicts or has looked at, and probabilities that he averages."""
    yield from images()
    yield from probabilities()


def nifti(
    *, shape: tuple[int, ...] = (24, 32, 1), offset: float = 352, extra: bytes = b"", **fields: Any
) -> bytes:
    """Give the bytes of a NIfTI-1 file that says whatever is wanted."""
    head = bytearray(348)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, len(shape), *shape, *[1] * (7 - len(shape)))
    struct.pack_into("<hh", head, 70, fields.get("kind", 4), fields.get("bits", 16))
    struct.pack_into("<8f", head, 76, *fields.get("pixdim", (1, 1, 1, 1, 1, 1, 1, 1)))
    struct.pack_into("<f", head, 108, offset)
    struct.pack_into("<hh", head, 252, 0, 1)
    struct.pack_into("<12f", head, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    head[344:348] = b"n+1\0"
    voxels = np.arange(24 * 32, dtype="<i2").tobytes()
    return bytes(head) + fields.get("extensions", bytes(4)) + voxels + extra


def predict_images(place: Place) -> Arguments:
    model = place.sound.root / MODEL
    return ("predict", "-i", place.folder / "in", "-o", place.out, "-m", model, "-f", "0",
            "-device", "cpu")  # fmt: skip


def image(data: Callable[[], bytes], name: str = "x_0000.nii.gz") -> Make:
    def make(place: Place) -> Arguments:
        (place.folder / "in").mkdir()
        (place.folder / "in" / name).write_bytes(data())
        return predict_images(place)

    return make


def bomb(head: bytes, count: int) -> bytes:
    """Give a gzip file of a head and so many zeros."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(head)]
    block = bytes(2**20)
    parts += [packer.compress(block) for _ in range(count // 2**20)]
    return b"".join(parts) + packer.flush()


def images() -> Iterator[Attack]:
    """Images whose headers promise what no machine can hold, or that never end."""
    for name, data in {
        "10^13 voxels": lambda: gzip.compress(nifti(shape=(30000, 30000, 12000))),
        "10^13 voxels, not packed": lambda: nifti(shape=(30000, 30000, 12000)),
        "10^6 voxels of 2^15 bits": lambda: gzip.compress(nifti(bits=32767)),
        "less than no voxel": lambda: gzip.compress(nifti(shape=(-24, -32, 1))),
        "voxels that begin at 2^40": lambda: gzip.compress(nifti(offset=2.0**40)),
        "voxels that begin before the file": lambda: gzip.compress(nifti(offset=-400)),
        "voxels that begin nowhere": lambda: gzip.compress(nifti(offset=float("nan"))),
        "a spacing of NaN": lambda: gzip.compress(nifti(pixdim=(1, float("nan"), *[1] * 6))),
        "2^15 axes": lambda: gzip.compress(nifti()[:40] + struct.pack("<h", 32767) + nifti()[42:]),
    }.items():
        yield Attack(
            name=f"an image of {name}",
            make=image(data, "x_0000.nii" if "not packed" in name else "x_0000.nii.gz"),
            codes=(3, 6),
            cause="header|NIfTI|pixdim",
            names="x_0000.nii",
            rule="S08" if "NaN" not in name else "S09",
        )
    for name, size in (("2^31 - 1", 2**31 - 1), ("minus one", -1), ("nothing", 0)):
        extensions = b"\1\0\0\0" + struct.pack("<ii", size, 6)
        yield Attack(
            name=f"an image with an extension of {name} bytes",
            make=image(lambda e=extensions: gzip.compress(nifti(extensions=e, offset=360))),
            codes=(0, 3, 6),
            cause="x_0000",
            rule="S08",
        )
    yield Attack(
        name="an image that goes on after its voxels",
        make=image(lambda: bomb(nifti(), 2**30)),
        codes=(3, 6),
        cause="goes on|more than",
        names="x_0000.nii.gz",
        rule="S08",
        slow=True,
    )
    yield Attack(
        name="an image that promises 2^34 bytes in 16 MB",  # more than the command may have
        make=image(
            lambda: gzip.compress(nifti(shape=(32767, 32767, 8), extra=bytes(2**24)), 0, mtime=0)
        ),
        codes=(3, 4, 6),
        cause="not enough memory for this image, .*free some|this machine has",
        names="x_0000.nii.gz",
        rule="S08",
    )
    yield Attack(
        name="images of 2^26 bytes in 64 KB",  # which are there: they may take what they hold
        make=_doctor_with("x.nii.gz", lambda: bomb(nifti(shape=(8192, 4096, 1))[:352], 2**26)),
        codes=(0, 3),
        cause="every voxel is 0",
        names="x_0000.nii.gz",
        rule="S08",
        slow=True,
    )
    picture = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1,
                                                                8, 2, 0, 0, 0))  # fmt: skip
    yield Attack(
        name="a picture of 2^62 pixels",
        make=_doctor_with("x.png", lambda: picture + _chunk(b"IDAT", zlib.compress(bytes(9)))),
        cause="x_0000",
        rule="S08",
    )
    yield Attack(
        name="an image that is a device",
        make=_device,
        codes=(2, 3, 5, 6),
        cause="x_0000|no image",
        rule="S08",
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def _device(place: Place) -> Arguments:
    (place.folder / "in").mkdir()
    (place.folder / "in" / "x_0000.nii.gz").symlink_to("/dev/zero")
    return predict_images(place)


def _doctor_with(name: str, data: Callable[[], bytes]) -> Make:
    """A dataset of one case, which the doctor is to look at."""

    def make(place: Place) -> Arguments:
        raw = place.folder / "raw" / "Dataset009_Evil"
        ending = name.removeprefix("x")
        for folder, file in (("imagesTr", f"x_0000{ending}"), ("labelsTr", f"x{ending}")):
            (raw / folder).mkdir(parents=True)
            (raw / folder / file).write_bytes(data())
        spec = {
            "channel_names": {"0": "R"},
            "labels": {"background": 0, "a": 1},
            "numTraining": 1,
            "file_ending": ending,
        }
        (raw / "dataset.json").write_text(json.dumps(spec))
        return ("doctor", "9", "--root", place.folder)

    return make


def npz(place: Place, data: bytes) -> Arguments:
    """Two folders of probabilities of nnU-Net's, to be averaged."""
    found = place.sound.root / "predicted"
    case = proof_of(found).name.partition(".")[0]
    for folder in ("a", "b"):
        inside = place.folder / folder
        inside.mkdir()
        shutil.copy(found / f"{case}.nii.gz", inside)
        shutil.copy(found / "dataset.json", inside)
        with zipfile.ZipFile(inside / f"{case}.npz", "w") as archive:
            archive.writestr("probabilities.npy", data)
    return ("ensemble", "-i", place.folder / "a", place.folder / "b", "-o", place.out)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def probabilities() -> Iterator[Attack]:
    """Files of probabilities with objects, code or promises in them."""

    def payload(place: Place) -> bytes:
        return pickled(call("os", "mkdir", str(place.target)))

    kinds: dict[str, Callable[[Place], bytes]] = {
        "of objects": lambda place: npy(
            "{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", payload(place)
        ),
        "of fields with objects": lambda place: npy(
            "{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,)}", payload(place)
        ),
        "that is a pickle": payload,
        "with an expression": lambda place: npy("__import__('this')"),
        "with a call in its shape": lambda place: npy(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('this'),)}"
        ),
        "of 2^60 values": lambda place: npy(
            f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**60},)}}"
        ),
        "with deep brackets": lambda place: npy("(" * 60000),
        "with an open bracket": lambda place: npy("{'descr': (\n"),
        "with keys of two kinds": lambda place: npy("{1: 2, 'a': 3}"),
    }
    for name, data in kinds.items():
        yield Attack(
            name=f"an npz {name}",
            make=lambda place, data=data: npz(place, data(place)),
            codes=(3, 6),
            cause="damaged|holds|no numbers|NumPy|npz",
            names=".npz",
        )
