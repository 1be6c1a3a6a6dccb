"""Attacks in our models: records sealed again after a change, and weights that they prove."""

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attacks import DATASET, Arguments, Attack, Change, Make, Place, change_json, plant_link, put
from harmful_texts import CLASS, JSON_BOMBS, PATHS, QUICK
from payloads import call, pickled

from nnseg.record import json_text

RECORD = "checkpoint_final.json"
PLAN = ("plan", "configurations", "3d_lowres")


def attacks_on_models() -> Iterator[Attack]:
    """Folds of ours with other records or weights than training wrote."""
    yield from records()
    yield from weights()


def spoil_fold(change: Callable[[Path], Any]) -> Make:
    """Change a sound fold of ours, then predict with it."""

    def make(place: Place) -> Arguments:
        folder = place.folder / "ours" / "3d_lowres"
        shutil.copytree(place.sound.ours / "3d_lowres", folder)
        change(folder / "fold_0")
        images = place.sound.root / "raw" / DATASET / "imagesTs"
        return ("predict", "-i", images, "-o", place.out, "-m", folder, "-f", "0",
                "-device", "cpu")  # fmt: skip

    return make


def spoil_record(change: Change) -> Make:
    """Change a record, whose hash of itself is made right again."""
    return spoil_fold(lambda fold: change_json(fold / RECORD, change))


def replace_record(text: Callable[[], str]) -> Make:
    return spoil_fold(lambda fold: (fold / RECORD).write_text(text()))


def spoil_weights(data: Callable[[bytes], bytes]) -> Make:
    """Change weights, of which the record then tells the right hash."""

    def change(fold: Path) -> None:
        path = weights_of(fold)
        path.write_bytes(data(path.read_bytes()))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        change_json(fold / RECORD, put(digest, "weights_sha256"))

    return spoil_fold(change)


def weights_of(fold: Path) -> Path:
    name: str = json.loads((fold / RECORD).read_text())["weights_file"]
    return fold / name


def records() -> Iterator[Attack]:
    yield Attack(
        name="our record with a class for a network",
        make=spoil_record(put(CLASS, *PLAN, "architecture", "network")),
        cause="no network is named 'this.s'",
        names="fold_0",
        rule="S04",
    )
    yield Attack(
        name="our record with a class for a normalizer",
        make=spoil_record(put(CLASS, *PLAN, "normalization", 0)),
        cause="no normalizer is named 'this.s'",
        names="fold_0",
        rule="S04",
    )
    for what, text in PATHS.items():
        if what != "a device":  # it may be a name of ours where it is none of the system's
            yield Attack(
                name=f"our record with {what} for a plan",
                make=spoil_record(put(text, "plan", "name")),
                cause="name",
                rule="S06",
                slow=what not in QUICK,
            )
    yield Attack(
        name="our record with more keys",
        make=spoil_record(put("this", "loader")),
        cause="loader",
        names="checkpoint_final.json",
        rule="S05",
    )
    yield Attack(
        name="our record of the largest network",
        make=spoil_record(put([4096] * 2, *PLAN, "architecture", "features")),
        cause="weights|shape|memory",
        rule="S08",
    )
    yield Attack(
        name="our record of a patch of 10^12 voxels",
        make=spoil_record(put([10**4] * 3, *PLAN, "patch_size")),
        codes=(3, 4, 6),
        cause="patch|memory|does not",
        rule="S08",
    )
    yield Attack(
        name="our record of a spacing of 1e-9 mm",
        make=spoil_record(put([1e-9] * 3, *PLAN, "spacing")),
        codes=(3, 4, 6),
        cause="spacing|memory|voxels|bytes",
        rule="S08",
    )
    yield Attack(
        name="our record changed but not sealed",
        make=spoil_fold(leave_unsealed),
        cause="SHA-256 changed",
        names="checkpoint_final.json",
        rule="S05",
    )
    for name, text in JSON_BOMBS.items():
        yield Attack(
            name=f"our record that is {name}",
            make=replace_record(text),
            cause="JSON|nested|more than|SHA-256|has no|record",
            names="checkpoint_final.json",
            rule="S05",
            slow=name not in ("10^5 levels deep", "NaN"),
        )


def leave_unsealed(fold: Path) -> None:
    content = json.loads((fold / RECORD).read_text()) | {"epoch": 4}
    (fold / RECORD).write_text(json_text(content))


def weights() -> Iterator[Attack]:
    """Weights that are none."""
    eight = tensor(2, span=(0, 8))
    for name, data in {
        "overlap": safetensors({"a": eight, "b": tensor(2, span=(4, 12))}, bytes(12)),
        "have gaps": safetensors({"a": eight, "b": tensor(2, span=(16, 24))}, bytes(24)),
        "have a shape beyond all numbers": safetensors(
            {"a": tensor(2**40, 2**40, 2**40, span=(0, 8))}, bytes(8)
        ),
        "have a shape of 2^62": safetensors({"a": tensor(2**62, span=(0, 8))}, bytes(8)),
        "end after the file": safetensors({"a": tensor(2**20, span=(0, 2**22))}, bytes(8)),
        "end before they begin": safetensors({"a": tensor(2, span=(8, 0))}, bytes(8)),
        "are of a kind of nobody's": safetensors({"a": tensor(1, span=(0, 8), kind="O")}, bytes(8)),
        "have no header": b"\x08\0\0\0\0\0\0\0",
        "have a header of 2^63 bytes": struct.pack("<Q", 2**63) + b"{}",
        "are deep": safetensors(b'{"a":' * 10**5),
        "have a name twice": safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', bytes(8)
        ),
        "are a pickle": pickled(call("os", "system", "true")),
        "are a zip": b"PK\x05\x06" + bytes(18),
        "are empty": b"",
    }.items():  # fmt: skip
        yield Attack(
            name=f"weights that {name}",
            make=spoil_weights(lambda _, data=data: data),
            cause="safetensors|weights",
        )
    yield Attack(
        name="weights of 10^5 tensors",
        make=spoil_weights(
            lambda _: safetensors(
                {str(n): tensor(1, span=(4 * n, 4 * n + 4)) for n in range(10**5)}, bytes(4 * 10**5)
            )
        ),
        cause="weights|safetensors",
        slow=True,
    )
    yield Attack(
        name="weights with a header of 100 MB",
        make=spoil_weights(lambda _: safetensors(b"{" + b" " * (10**8 - 2) + b"}")),
        cause="weights|safetensors",
        slow=True,
    )
    yield Attack(
        name="weights of NaN",
        make=spoil_weights(all_nan),
        cause="NaN|finite",
        codes=(3, 6),
        rule="S09",
        slow=True,
    )
    yield Attack(
        name="weights that are a link to another file",
        make=spoil_fold(link_weights),
        cause="SHA-256|cannot be read|is damaged",
        rule="S06",
    )


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"") -> bytes:
    """Give a file of that format with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(*shape: int, span: tuple[int, int], kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(span)}


def all_nan(data: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", data)
    return data[: 8 + length] + b"\xff\xff\xff\x7f" * ((len(data) - 8 - length) // 4)


def link_weights(fold: Path) -> None:
    plant_link(weights_of(fold), Path("/etc/hostname"))
