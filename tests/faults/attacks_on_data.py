"""Attacks in data and results: images, probabilities, records beside them, and names."""

import gzip
import json
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from attacks import Arguments, Attack, Place, change_json, copy_root
from attacks_on_models import JSON_BOMBS, call, pickled

DATASET = "Dataset001_Flat"
MODEL = Path("results") / DATASET / "nnseg" / "2d"
FOLD = MODEL / "fold_0"
SCRIPT = "<img src=x onerror=alert(1)></script><script>alert(1)</script>"
NAMES = {
    "a page's script": SCRIPT,
    "a page's attribute": "\" onload='alert(1)' x=\"",
    "a shell's command": "$(touch pwned); `touch pwned` | touch pwned",
    "a format": "%s%n%x {0.__class__} {x!r} ${HOME}",
    "an expression": "{{7*7}} #{7*7} __import__('this')",
}


def attacks_on_data() -> tuple[Attack, ...]:
    """List them all."""
    return tuple(
        attack for kind in (images, probabilities, results, labels, paths) for attack in kind()
    )


# ---------------------------------------------------------------- images


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


def image(data: Callable[[], bytes], name: str = "x_0000.nii.gz") -> Callable[[Place], Arguments]:
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
        name="an image of 2^30 bytes in 1 MB",
        make=image(lambda: bomb(nifti(shape=(16384, 16384, 2))[:352], 2**30)),
        codes=(0, 3, 4, 6),
        cause="memory|announces|header",
        names="x_0000.nii.gz",
        rule="S08",
        slow=True,
    )
    picture = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1,
                                                                8, 2, 0, 0, 0))  # fmt: skip
    yield Attack(
        name="a picture of 2^62 pixels",
        make=_doctor_with("x.png", picture + _chunk(b"IDAT", zlib.compress(bytes(9)))),
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


def _doctor_with(name: str, data: bytes) -> Callable[[Place], Arguments]:
    """A dataset of one case, which the doctor is to look at."""

    def make(place: Place) -> Arguments:
        raw = place.folder / "raw" / "Dataset009_Evil"
        ending = Path(name).suffix
        for folder, file in (("imagesTr", f"x_0000{ending}"), ("labelsTr", f"x{ending}")):
            (raw / folder).mkdir(parents=True)
            (raw / folder / file).write_bytes(data)
        spec = {
            "channel_names": {"0": "R"},
            "labels": {"background": 0, "a": 1},
            "numTraining": 1,
            "file_ending": ending,
        }
        (raw / "dataset.json").write_text(json.dumps(spec))
        return ("doctor", "9", "--root", place.folder)

    return make


# ---------------------------------------------------------------- probabilities


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


def proof_of(predicted: Path) -> Path:
    """Give the first proof among predictions."""
    return min(predicted.glob("*.proof.json"))


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


# ---------------------------------------------------------------- records beside results


def results() -> Iterator[Attack]:
    """Records beside results that are bombs, or name other files."""
    for name, text in JSON_BOMBS.items():
        slow = name.startswith("100 MB") or "lists" in name
        for verb, file, arguments in (
            ("verify", "predicted/*.proof.json", ("predicted",)),
            ("report", f"{FOLD}/validation/summary.json", (str(FOLD),)),
            ("fsck", f"preprocessed/{DATASET}/fingerprint.json", ("1",)),
            ("info", f"raw/{DATASET}/dataset.json", ()),
            ("plan", f"raw/{DATASET}/dataset.json", ("1", "--dry-run")),
        ):
            yield Attack(
                name=f"{verb}: {Path(file).name.removeprefix('*.')} that is {name}",
                make=_record(verb, file, text, arguments),
                codes=(0, 1, 3, 5, 6),
                check=_named(Path(file).name.removeprefix("*"), verb),
                rule="S05",
                slow=slow or name not in ("10^5 levels deep", "half of a character"),
            )
    for name, change in {
        "outputs of another folder": lambda c: c["outputs"].update({"../../canary": "0" * 64}),
        "an absolute output": lambda c: c["outputs"].update({"/etc/passwd": "0" * 64}),
        "a label map elsewhere": lambda c: c.update(label_map="../../canary"),
    }.items():
        yield Attack(
            name=f"verify: a proof of {name}",
            make=_proof(change),
            codes=(1, 3, 5, 6),
            cause="proof|outputs|names",
            rule="S06",
            check=_no_word_of("root:"),
        )
    yield Attack(
        name="predict --overwrite: a proof that names a file above",
        make=_overwrite,
        codes=(0, 3, 6),
        check=lambda place, ended: "" if (place.folder / "canary").is_file() else "canary is gone",
        rule="S06",
    )
    for what, folder in (("above", "../../evil"), ("elsewhere", "/etc"), ("in a home", "~/x")):
        yield Attack(
            name=f"a choice whose member lies {what}",
            make=_choice(folder),
            cause="lies outside the folder",
            names="choice.json",
            rule="S06",
        )


def _record(
    verb: str, file: str, text: Callable[[], str], arguments: tuple[str, ...]
) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        where = copy_root(place)
        path = min(where.glob(file))
        path.write_text(text())
        named = [where / word if (where / word).exists() else word for word in arguments]
        out = ["-o", place.out] if verb == "report" else []
        return (verb, *named, *out, *(() if verb == "verify" else ("--root", where)))

    return make


def _named(name: str, verb: str) -> Callable[[Place, Any], str]:
    """Look for what tells that a file was left out: its name, or what a report says of it."""

    def check(place: Place, ended: Any) -> str:
        if verb == "report":
            page = (place.out / "index.html").read_text("utf-8")
            return "" if "What this report leaves out" in page else "nothing is left out"
        return "" if name in ended.said or verb == "info" else f"{name} is not named"

    return check


def _no_word_of(text: str) -> Callable[[Place, Any], str]:
    return lambda place, ended: f"tells {text}" if text in ended.said else ""


def _proof(change: Callable[[Any], Any]) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        where = copy_root(place)
        proof = proof_of(where / "predicted")
        change_json(proof, change)
        return ("verify", proof.with_name(proof.name.removesuffix(".proof.json")))

    return make


def _overwrite(place: Place) -> Arguments:
    where = copy_root(place)
    (place.folder / "canary").write_text("keep me")
    change_json(
        proof_of(where / "predicted"),
        lambda content: content["outputs"].update({"../../canary": "0" * 64}),
    )
    images = where / "raw" / DATASET / "imagesTs"
    return ("predict", "-i", images, "-o", where / "predicted", "-m", where / MODEL, "-f", "0",
            "-device", "cpu", "--overwrite")  # fmt: skip


def _choice(folder: str) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        where = copy_root(place)
        path = where / "results" / DATASET / "choice.json"
        path.write_text(json.dumps({"members": [{"folder": folder}]}))
        images = where / "raw" / DATASET / "imagesTs"
        return ("predict", "-i", images, "-o", place.out, "-m", path.parent, "-device", "cpu")

    return make


# ---------------------------------------------------------------- names of labels, cases, folders


def labels() -> Iterator[Attack]:
    """Names of labels that a page, a shell, a format or a terminal would obey."""
    for what, text in NAMES.items():
        yield Attack(
            name=f"report: a label called {what}",
            make=_label(text, "report"),
            codes=(0,),
            check=_page(text),
            rule="S10",
        )
        yield Attack(
            name=f"doctor: a label called {what}",
            make=_label(text, "doctor"),
            codes=(0, 3),
            rule="S10",
        )
    for what, text in {
        "a terminal's command": "\x1b]0;evil\x07\x1b[2J",
        "a line": "a\nnnseg: all is well",
        "text from right to left": "a\u202eb",
    }.items():
        yield Attack(
            name=f"doctor: a label called {what}",
            make=_label(text, "doctor"),
            cause="labels",
            codes=(3,),
            rule="S10",
        )


def _label(text: str, verb: str) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        where = copy_root(place)

        def rename(content: Any) -> None:
            found = content["labels"]
            first = next(name for name in found if name != "background")
            content["labels"] = {text if k == first else k: v for k, v in found.items()}

        change_json(where / "raw" / DATASET / "dataset.json", rename)
        out = ["-o", place.out] if verb == "report" else []
        return (verb, "1", *out, "--root", where)

    return make


def _page(text: str) -> Callable[[Place, Any], str]:
    """Say what of a report's page would be obeyed."""

    def check(place: Place, ended: Any) -> str:
        from html.parser import HTMLParser

        found: list[str] = []

        class Reader(HTMLParser):
            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                found.extend(f"{tag} {name}" for name, _ in attrs if name.startswith("on"))
                found.extend(
                    f"{tag} {value}"
                    for name, value in attrs
                    if name in ("src", "href") and value and "//" in value
                )

        pages = list(place.out.rglob("*.html"))
        for page in pages:
            content = page.read_text("utf-8")
            if text in content and "<" in text:
                found.append("the text as it is")
            if "Content-Security-Policy" not in content:
                found.append("no policy")
            Reader().feed(content)
        return "" if pages and not found else f"pages {len(pages)}, {found[:5]}"

    return check


def paths() -> Iterator[Attack]:
    """Names of files and folders."""
    for what, text in NAMES.items():
        text = text.replace("/", "_")
        yield Attack(
            name=f"predict: a case called {what}",
            make=_case(text),
            codes=(0, 2, 3, 6),
            rule="S10",
            slow=what != "a shell's command",
        )
        yield Attack(
            name=f"verify: a folder called {what}",
            make=_folder(text),
            codes=(0, 1, 3, 5),
            rule="S10",
            slow=what != "a shell's command",
        )
    for what, text in {
        "a terminal's command": "a\x1b[2J\x1b]0;evil\x07",
        "two lines": "a\nnnseg: all is well",
        "bytes that are no text": "a\udcff\udcfe",
        "an option": "--overwrite",
    }.items():
        yield Attack(
            name=f"predict: a case called {what}",
            make=_case(text),
            codes=(0, 2, 3, 6),
            rule="S10",
        )
        yield Attack(
            name=f"doctor: a case called {what}",
            make=_raw_case(text),
            codes=(0, 3),
            rule="S10",
        )


def _case(text: str) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        (place.folder / "in").mkdir()
        found = next((place.sound.root / "raw" / DATASET / "imagesTs").iterdir())
        ending = found.name[found.name.index("_0000.") :]
        shutil.copy(found, place.folder / "in" / f"{text}{ending}")
        return predict_images(place)

    return make


def _raw_case(text: str) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        where = copy_root(place)
        raw = where / "raw" / DATASET
        for folder in ("imagesTr", "labelsTr"):
            found = min((raw / folder).iterdir())
            case = min((raw / "labelsTr").iterdir()).name.split(".")[0]
            if case in found.name:
                found.rename(found.with_name(found.name.replace(case, text)))
        return ("doctor", "1", "--root", where)

    return make


def _folder(text: str) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        shutil.copytree(place.sound.root / "predicted", place.folder / text)
        return ("verify", place.folder / text)

    return make
