"""What is read of files that others give: a sound file of each kind, and the call that reads it.

What can only be reached behind a hash or a compression is changed behind it: `open` gives what is
changed, `close` puts it back, so that the reader gets to see it.
"""

import gzip
import hashlib
import io
import json
import re
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from boxed import GEOMETRY, LABELS, placed, save
from PIL import Image
from plain_voxels import Array, Plain, plain_meta, plain_nifti, plain_nrrd
from test_porting import SPEC, tiny_plan, write_folds

from nnseg import record, volume
from nnseg.checkpoint import Checkpoint, load_weights
from nnseg.commit import sha256
from nnseg.dataset import read_spec, spec_to_json
from nnseg.exchange.model_zip import find_packed, unpack_models
from nnseg.exchange.nnunet_folder import find_models, import_models
from nnseg.exchange.nnunet_model import read_checkpoint
from nnseg.exchange.nnunet_names import NAME
from nnseg.exchange.nnunet_reading import read_plans
from nnseg.exchange.nnunet_writing import plans_to_json
from nnseg.folders import compact_files
from nnseg.networks.timm_weights import read_encoder_weights
from nnseg.plan import Plan
from nnseg.postprocess import KeepLargest, Postprocessing
from nnseg.probabilities import open_compact, open_npz, open_probabilities, writing_compact
from nnseg.verbs import porting

Bytes = Callable[[bytes], bytes]


def same(data: bytes) -> bytes:
    return data


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A kind of file."""

    file: str  # the one that is changed, in a folder of its own
    make: Callable[[Path], object]  # writes the sound files into that folder
    read: Callable[[Path], object]  # of the file's path
    open: Bytes = same
    close: Bytes = same
    settle: Callable[[Path], None] = lambda path: None  # makes other files agree with the changed
    plain: Plain | None = None  # gives the voxels that `read` must give, one array after the other


def draw(kind: str, *, packed: bool = False) -> Callable[[Path], None]:
    """Write a small image by SimpleITK; its sides differ."""

    def make(folder: Path) -> None:
        values = np.random.default_rng(1).integers(0, 200, (5, 6, 7)).astype(np.int16)
        image = SimpleITK.GetImageFromArray(values)
        image.SetSpacing((0.7, 0.8, 2.5))
        SimpleITK.WriteImage(image, str(folder / f"case{kind}"), packed)

    return make


def draw_picture(kind: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        values = np.random.default_rng(1).integers(0, 200, (6, 7, 3)).astype(np.uint8)
        Image.fromarray(values).save(folder / f"case{kind}")

    return make


def read_both(path: Path) -> Iterator[Array]:
    """Read a file as an image, and as a label map where that can be."""
    yield volume.read_image([path]).image[0]
    yield volume.read_segmentation(path)[0]


def packed_after(marker: bytes, wbits: int, size: bytes = b"(?!)") -> tuple[Bytes, Bytes]:
    """Give what opens and closes voxels that are packed behind a header.

    The header stays, but for the number after `size`, a pattern: that of the packed bytes.
    """

    def opened(data: bytes) -> bytes:
        head, mark, rest = data.partition(marker)
        return head + mark + zlib.decompress(rest, zlib.MAX_WBITS | 32)

    def closed(data: bytes) -> bytes:
        head, mark, rest = data.partition(marker)
        packer = zlib.compressobj(1, wbits=wbits)
        packed = packer.compress(rest) + packer.flush()
        head = re.sub(rb"(%s)\d+" % size, rb"\g<1>%d" % len(packed), head)
        return head + mark + packed

    return opened, closed


NRRD = packed_after(b"\n\n", zlib.MAX_WBITS | 16)
META = packed_after(b"LOCAL\n", zlib.MAX_WBITS, rb"CompressedDataSize = ")


def first_member(data: bytes) -> tuple[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as parts:
        name = min(parts.namelist(), key=lambda one: (not one.endswith((".pkl", ".npy")), one))
        return name, parts.read(name)


def repacked(sound: bytes) -> tuple[Bytes, Bytes]:
    """Give what opens and closes the first member of a zip, a pickle or an array, like `sound`."""
    name, _ = first_member(sound)

    def closed(data: bytes) -> bytes:
        target = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(sound)) as old, zipfile.ZipFile(target, "w") as new:
            for info in old.infolist():
                content = data if info.filename == name else old.read(info)
                new.writestr(zipfile.ZipInfo(info.filename), content)
        return target.getvalue()

    return lambda data: first_member(data)[1], closed


def resealed(data: bytes) -> bytes:
    """Give the bytes of a sealed record with the hash that belongs to them, if it is JSON."""
    try:
        content = json.loads(data)
        content["record_sha256"] = record._seal(content)
        return record.json_text(content).encode()
    except (ValueError, TypeError, RecursionError):
        return data


def reheaded(data: bytes) -> bytes:
    """Give a safetensors file whose first bytes say where its header ends."""
    end = data.find(b"}}") + 2
    return struct.pack("<Q", end if end > 1 else len(data)) + data


def make_tensors(folder: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, "f2")}
    save_file(arrays, str(folder / "weights.safetensors"), metadata={"architecture": "resnet18"})


def make_models(folder: Path) -> Path:
    write_folds(folder / "models")
    return folder / "models"


def make_ours(folder: Path) -> None:
    models = make_models(folder)
    fold = models / "3d_lowres" / "fold_0"
    shutil.copy(fold / "checkpoint_final.json", folder / "checkpoint.json")
    shutil.rmtree(models)


def make_theirs(folder: Path) -> None:
    models = make_models(folder)
    porting.export_model(models / "3d_lowres" / "fold_0", folder / "theirs")
    shutil.copy(folder / "theirs" / "fold_0" / "checkpoint_final.pth", folder / "model.pth")
    shutil.rmtree(models)
    shutil.rmtree(folder / "theirs")


def make_zip(folder: Path) -> None:
    models = make_models(folder)
    porting.export_model(models / "3d_lowres" / "fold_0", folder / "model.zip", to="zip")
    shutil.rmtree(models)


def make_their_zip(folder: Path) -> None:
    models = make_models(folder)
    porting.export_model(models / "3d_lowres" / "fold_0", folder / "theirs")
    shutil.make_archive(str(folder / "model"), "zip", folder / "theirs")
    shutil.rmtree(models)
    shutil.rmtree(folder / "theirs")


def read_zip(path: Path) -> None:
    packed = find_packed(path)
    if packed is None:
        import_models(find_models(path), None)
    else:
        unpack_models(packed, None)


def make_compact(folder: Path) -> None:
    placement = placed()
    logits = np.random.default_rng(1).normal(size=(5, 5, 5, LABELS.heads)).astype(np.float32)
    with writing_compact(folder / "case.nii.gz", LABELS, GEOMETRY, placement) as take:
        take(logits)


def prove(path: Path) -> None:
    """Have the record beside an array prove its bytes."""
    beside = path.with_suffix(".json")
    content = json.loads(beside.read_text())
    content["array_sha256"] = sha256(path)
    content["record_sha256"] = record._seal(content)
    beside.write_text(record.json_text(content))


def read_chunks(path: Path) -> None:
    for _ in open_probabilities(path).runs():
        pass


def read_compact(path: Path) -> None:
    opened = open_compact(path.with_name("case.nii.gz"))
    for _ in opened.runs():
        pass


def save_json(name: str, data: Any) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(json.dumps(data)) and None


def save_record(name: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: record.save(value, folder / name)


def read_theirs(path: Path) -> None:
    read_plans(record.read_json(path), SPEC, name=NAME, where=str(path))


def read_weights(path: Path) -> None:
    load_weights(path.parent, path.name, hashlib.sha256(path.read_bytes()).hexdigest())


RULES = Postprocessing(rules=(KeepLargest(labels=("left", "right")),))
READERS = {
    "nii": Reader(file="case.nii", make=draw(".nii"), read=read_both, plain=plain_nifti),
    "nii.gz": Reader(
        file="case.nii.gz",
        make=draw(".nii.gz"),
        read=read_both,
        open=gzip.decompress,
        close=lambda data: gzip.compress(data, 1, mtime=0),
        plain=plain_nifti,
    ),
    "hdr": Reader(file="case.hdr", make=draw(".hdr"), read=read_both, plain=plain_nifti),
    "nrrd": Reader(file="case.nrrd", make=draw(".nrrd"), read=read_both, plain=plain_nrrd),
    "nrrd-packed": Reader(
        file="case.nrrd",
        make=draw(".nrrd", packed=True),
        read=read_both,
        open=NRRD[0],
        close=NRRD[1],
        plain=plain_nrrd,
    ),
    "mha": Reader(file="case.mha", make=draw(".mha"), read=read_both, plain=plain_meta),
    "mha-packed": Reader(
        file="case.mha",
        make=draw(".mha", packed=True),
        read=read_both,
        open=META[0],
        close=META[1],
        plain=plain_meta,
    ),
    "tif": Reader(
        file="case.tif", make=draw_picture(".tif"), read=lambda path: volume.read_channels(path)
    ),
    "png": Reader(
        file="case.png", make=draw_picture(".png"), read=lambda path: volume.read_channels(path)
    ),
    "plan": Reader(
        file="plan.json",
        make=save_record("plan.json", tiny_plan()),
        read=lambda path: record.load(Plan, path),
    ),
    "dataset": Reader(
        file="dataset.json", make=save_json("dataset.json", spec_to_json(SPEC)), read=read_spec
    ),
    "rules": Reader(
        file="postprocessing.json",
        make=save_record("postprocessing.json", RULES),
        read=lambda path: record.load(Postprocessing, path),
    ),
    "checkpoint": Reader(
        file="checkpoint.json",
        make=make_ours,
        read=lambda path: record.load_sealed(Checkpoint, path),
        close=resealed,
    ),
    "nnunet-plans": Reader(
        file="plans.json",
        make=save_json("plans.json", plans_to_json(tiny_plan())),
        read=read_theirs,
    ),
    "nnunet-checkpoint": Reader(file="model.pth", make=make_theirs, read=read_checkpoint),
    "safetensors": Reader(
        file="weights.safetensors",
        make=make_tensors,
        read=read_weights,
        open=lambda data: data[8:],
        close=reheaded,
    ),
    "encoder": Reader(file="weights.safetensors", make=make_tensors, read=read_encoder_weights),
    "chunks": Reader(
        file="case_probabilities.b2nd",
        make=lambda folder: save(folder, "chunks", placed()),
        read=read_chunks,
        settle=prove,
    ),
    "compact": Reader(
        file=compact_files(Path("case.nii.gz"))[0].name,
        make=make_compact,
        read=read_compact,
        settle=prove,
    ),
    "npz": Reader(
        file="case.npz",
        make=lambda folder: save(folder, "npz", placed()),
        read=lambda path: [*open_npz(path, LABELS, GEOMETRY).runs()],
    ),
    "zip": Reader(file="model.zip", make=make_zip, read=read_zip),
    "nnunet-zip": Reader(file="model.zip", make=make_their_zip, read=read_zip),
}


def make_sound(folder: Path, name: str) -> Reader:
    """Write the sound files of a kind; give how it is changed and read."""
    reader = READERS[name]
    reader.make(folder)
    if name in ("nnunet-checkpoint", "npz"):
        opened, closed = repacked((folder / reader.file).read_bytes())
        return Reader(
            file=reader.file, make=reader.make, read=reader.read, open=opened, close=closed
        )
    return reader
