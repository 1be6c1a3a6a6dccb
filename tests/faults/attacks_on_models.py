"""Attacks in what models come as: checkpoints and plans of nnU-Net's, our records and zips."""

import io
import json
import pickle
import pickletools
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from attacks import (
    OUT,
    Arguments,
    Attack,
    Place,
    add_member,
    change_json,
    copy_root,
    member,
    plant_link,
    safetensors,
)

Reduced = tuple[Any, ...]
Change = Callable[[Any], Any]


def attacks_on_models() -> tuple[Attack, ...]:
    """List them all."""
    return tuple(attack for kind in (pickles, plans, records, weights, zips) for attack in kind())


# ---------------------------------------------------------------- nnU-Net's checkpoints


class Payload:
    """What a pickle calls when it is read."""

    def __init__(self, *reduced: Any) -> None:
        self.reduced = reduced

    def __reduce__(self) -> Reduced:
        return self.reduced


class Named:
    """Pickled as any function of any module, which need not be there."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Pickler(pickle._Pickler):
    """Writes `Named` as what it names, even where there is none."""

    def save(self, obj: Any, save_persistent_id: bool = True) -> Any:
        if isinstance(obj, Named):
            return self.write(b"c" + f"{obj.module}\n{obj.name}\n".encode())
        if isinstance(obj, Payload) and isinstance(obj.reduced[0], Named):
            function, arguments = obj.reduced[:2]
            self.save(function)
            self.save(arguments)
            return self.write(pickle.REDUCE)
        return super().save(obj, save_persistent_id)  # type: ignore[misc]


def call(module: str, name: str, *arguments: Any) -> Payload:
    return Payload(Named(module, name), arguments)


def touch(place: Place) -> str:
    return f"touch {place.target}"


def open_for_writing(place: Place) -> str:
    return f"open({str(place.target)!r}, 'w')"


PAYLOADS: dict[str, Callable[[Place], Payload]] = {
    "os.system": lambda p: call("os", "system", touch(p)),
    "posix.system": lambda p: call("posix", "system", touch(p)),
    "os.mkdir": lambda p: call("os", "mkdir", str(p.target)),
    "builtins.eval": lambda p: call("builtins", "eval", open_for_writing(p)),
    "builtins.exec": lambda p: call("builtins", "exec", open_for_writing(p)),
    "builtins.getattr": lambda p: call("builtins", "getattr", Named("os", "path"), "join"),
    "builtins.open": lambda p: call("builtins", "open", str(p.target), "w"),
    "__import__": lambda p: call("builtins", "__import__", "this"),
    "subprocess.Popen": lambda p: call("subprocess", "Popen", ["touch", str(p.target)]),
    "importlib.import_module": lambda p: call("importlib", "import_module", "this"),
    "pydoc.locate": lambda p: call("pydoc", "locate", "this.s"),
    "runpy.run_module": lambda p: call("runpy", "run_module", "this"),
    "functools.partial": lambda p: call("functools", "partial", Named("os", "mkdir"), "pwned"),
    "operator.attrgetter": lambda p: call("operator", "attrgetter", "__class__"),
    "numpy.ndarray of objects": lambda p: call(
        "numpy.core.multiarray", "_reconstruct", Named("numpy", "ndarray"), (0,), b"b"
    ),
    "numpy.load": lambda p: call("numpy", "load", "/dev/zero"),
    "numpy.save": lambda p: call("numpy", "save", str(p.target), 1),
    "numpy's eval": lambda p: call("numpy.f2py.crackfortran", "myeval", open_for_writing(p)),
    "numpy's exec": lambda p: call("numpy.testing._private.utils", "runstring",
                                   open_for_writing(p), {}),
    "torch.load": lambda p: call("torch.serialization", "load", "/dev/zero"),
    "torch.save": lambda p: call("torch.serialization", "save", 1, str(p.target)),
    "torch's jit": lambda p: call("torch.jit.unsupported_tensor_ops", "execWrapper",
                                  open_for_writing(p), {}, {}),
    "torch.hub": lambda p: call("torch.hub", "load", str(p.folder), "evil", "local"),
    "timeit": lambda p: call("timeit", "timeit", open_for_writing(p)),
    "cProfile": lambda p: call("cProfile", "run", open_for_writing(p)),
    "webbrowser": lambda p: call("webbrowser", "open", f"file://{p.target}"),
    "a class of nobody's": lambda p: call("this", "s"),
    "nnseg itself": lambda p: call("nnseg.commit", "write_whole", Named("os", "sep"), b""),
}  # fmt: skip


def pickled(value: Any, protocol: int = 2) -> bytes:
    stream = io.BytesIO()
    Pickler(stream, protocol).dump(value)
    return stream.getvalue()


def repickled(path: Path, change: Change) -> None:
    """Put something into a checkpoint's pickle; its tensors stay as they are."""
    whole = path.read_bytes()
    target = path.with_suffix(".new")
    path.replace(target)
    with zipfile.ZipFile(target) as old, zipfile.ZipFile(path, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            new.writestr(info, change(data) if info.filename.endswith("data.pkl") else data)
    target.unlink()
    assert path.read_bytes() != whole


def with_entry(value: Any) -> Change:
    """Give what puts one more entry into the pickle of a dict."""

    def change(data: bytes) -> bytes:
        part = pickled({"logging": value})
        inner = list(pickletools.genops(part))
        start, stop = inner[1][2], inner[-1][2]  # without PROTO and STOP
        assert data[-1:] == pickle.STOP
        update = part[start:stop]
        # the outer dict stays on the stack; the payload's value is made above it, and dropped
        return data[:-1] + _unmemoized(update) + pickle.POP + pickle.STOP

    return change


def _unmemoized(part: bytes) -> bytes:
    """Leave out what would put values into the memo, where the outer pickle has its own."""
    found = b""
    ops = list(pickletools.genops(part + pickle.STOP))
    for (op, _, start), (_, _, stop) in pairwise(ops):
        if op.name not in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            found += part[start:stop]
    return found


def theirs(place: Place) -> Path:
    """Copy a sound model of nnU-Net's; give its folder."""
    folder = place.folder / "theirs"
    shutil.copytree(place.sound.theirs, folder)
    return folder


def import_theirs(place: Place) -> Arguments:
    return ("import", place.folder / "theirs", "-o", place.out)


def spoil_checkpoint(change: Callable[[Place], Change]) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        repickled(theirs(place) / "fold_0" / "checkpoint_final.pth", change(place))
        return import_theirs(place)

    return make


def pickles() -> Iterator[Attack]:
    """Checkpoints of nnU-Net's that would run something."""
    refused = "cannot be read as a checkpoint"
    for name, payload in PAYLOADS.items():
        yield Attack(
            name=f"checkpoint with {name}",
            make=spoil_checkpoint(lambda place, made=payload: with_entry(made(place))),
            cause=refused,
            names="checkpoint_final.pth",
            rule="S03",
            slow=name.startswith(("torch", "cProfile", "timeit", "webbrowser", "operator")),
        )
    yield Attack(
        name="checkpoint with _codecs.encode",
        make=spoil_checkpoint(lambda place: with_entry(call("_codecs", "encode", "a", "latin1"))),
        codes=(0, 3),
        cause=refused,
        rule="S03",
    )
    yield Attack(
        name="checkpoint with _codecs.encode that takes 10 MB",
        make=spoil_checkpoint(
            lambda place: with_entry(call("_codecs", "encode", "a" * 10**7, "utf-16"))
        ),
        codes=(0, 3),
        cause=refused,
        rule="S03",
        slow=True,
    )
    for name, data in (
        ("a bare pickle", lambda place: pickled(call("os", "mkdir", str(place.target)))),
        ("a bare pickle of protocol 0",
         lambda place: f"cos\nsystem\n(V{touch(place)}\ntR.".encode()),
        ("a pickle of the class of an instance",
         lambda place: f"(V{touch(place)}\nios\nsystem\n.".encode()),
        ("a pickle of an extension", lambda place: b"\x80\x02\x82\x01."),
        ("a pickle that builds", lambda place: b"\x80\x02cos\nenviron\n}(U\x01aU\x01bub."),
        ("a pickle of a persistent id", lambda place: b"\x80\x02(U\x07storagecos\nsystem\ntQ."),
        ("a pickle that is deep", lambda place: b"\x80\x02" + b"]" * 10**5 + b"a" * 10**5 + b"."),
        ("a pickle of 2^40 bytes", lambda place: b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"."),
        ("a frame of 2^62 bytes", lambda place: b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N."),
        ("a memo of 2^31 places", lambda place: b"\x80\x02Nr\xff\xff\xff\x7f."),
    ):  # fmt: skip
        for verb, make in (("import", import_theirs), ("train", train_from)):
            yield Attack(
                name=f"{verb}: {name}",
                make=_bare(data, make),
                cause=refused,
                names="checkpoint_final.pth",
                rule="S03",
                slow=verb == "train" and name != "a bare pickle",
            )


def _bare(
    data: Callable[[Place], bytes], then: Callable[[Place], Arguments]
) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        (theirs(place) / "fold_0" / "checkpoint_final.pth").write_bytes(data(place))
        return then(place)

    return make


def train_from(place: Place) -> Arguments:
    file = place.folder / "theirs" / "fold_0" / "checkpoint_final.pth"
    root = copy_root(place)
    return ("train", "1", "2d", "1", "--pretrained", file, "-device", "cpu", "--root", root)


# ---------------------------------------------------------------- nnU-Net's plans


def spoil_plans(change: Change, file: str = "plans.json") -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        change_json(theirs(place) / file, change)
        return import_theirs(place)

    return make


def put(value: Any, *keys: str | int) -> Change:
    """Give what puts a value into nested JSON."""

    def change(content: Any) -> None:
        inside = content
        for key in keys[:-1]:
            inside = inside[key]
        inside[keys[-1]] = value

    return change


CLASS = "this.s"  # importing it prints
FULL = ("configurations", "3d_lowres")
NETWORK = (*FULL, "architecture")
QUICK = ("a path upwards", "an absolute path", "a NUL", "a terminal's command")
PATHS = {
    "a path upwards": "../../evil",
    "an absolute path": "/tmp/evil",
    "a drive": "C:\\evil",
    "a share": "\\\\host\\evil",
    "a NUL": "evil\0.json",
    "a variable": "$HOME/evil",
    "a home": "~/evil",
    "a terminal's command": "evil\x1b[2J",
    "a line": "evil\nnnseg: all is well",
    "a command": "; touch /tmp/evil",
    "nothing": "",
    "a device": "CON",
}


def plans() -> Iterator[Attack]:
    """plans.json and dataset.json of nnU-Net's that name what is not theirs to name."""
    for key in (
        (*NETWORK, "network_class_name"),
        (*NETWORK, "arch_kwargs", "conv_op"),
        (*NETWORK, "arch_kwargs", "norm_op"),
        (*NETWORK, "arch_kwargs", "nonlin"),
        (*FULL, "normalization_schemes", 0),
        (*FULL, "resampling_fn_data"),
        (*FULL, "resampling_fn_seg"),
        (*FULL, "resampling_fn_probabilities"),
        ("image_reader_writer",),
    ):
        yield Attack(
            name=f"plans with a class as {key[-1]}",
            make=spoil_plans(put(CLASS, *key)),
            cause="this",
            names="plans.json",
            rule="S04",
        )
    for key in (("experiment_planner_used",), (*FULL, "preprocessor_name")):
        yield Attack(
            name=f"plans with a class as {key[-1]}",
            make=spoil_plans(put(CLASS, *key)),
            codes=(0, 3),
            rule="S04",
        )
    yield Attack(
        name="plans that have a name imported",
        make=spoil_plans(put(["dropout_op", "conv_op"], *NETWORK, "_kw_requires_import")),
        codes=(0, 3),
        rule="S04",
    )
    for what, text in PATHS.items():
        yield Attack(
            name=f"plans with {what} for a name",
            make=spoil_plans(put(text, "plans_name")),
            codes=(0, 3),  # a name that cannot be one of ours may be replaced by ours
            check=_stays,
            rule="S06",
        )
        yield Attack(
            name=f"plans with {what} for a dataset",
            make=spoil_plans(put(text, "dataset_name")),
            codes=(0, 3),
            check=_stays,
            rule="S06",
            slow=what not in QUICK,
        )
        yield Attack(
            name=f"plans with {what} for data",
            make=spoil_plans(put(text, *FULL, "data_identifier")),
            codes=(0, 3),
            check=_stays,
            rule="S06",
            slow=what not in QUICK,
        )
        yield Attack(
            name=f"dataset.json with {what} for an ending",
            make=spoil_plans(put(text, "file_ending"), "dataset.json"),
            cause="file_ending|ending",
            names="dataset.json",
            rule="S06",
            slow=what not in QUICK,
        )
    yield Attack(
        name="plans of a network of 10^9 features",
        make=spoil_plans(put([10**9] * 2, *NETWORK, "arch_kwargs", "features_per_stage")),
        cause="features",
        names="plans.json",
        rule="S08",
    )
    yield Attack(
        name="plans of the largest network",
        make=spoil_plans(put([4096] * 2, *NETWORK, "arch_kwargs", "features_per_stage")),
        cause="trained by other plans",
        names="theirs",
        rule="S08",
    )
    for name, text in JSON_BOMBS.items():
        yield Attack(
            name=f"plans that are {name}",
            make=_with_text("plans.json", text),
            cause="JSON|nested|are more than",
            names="plans.json",
            rule="S05",
            slow=name.startswith("100 MB"),
        )
    for name, script in (("a shell's", "$(touch {0})"), ("a format's", "%s%n{0.__class__}{1}")):
        yield Attack(
            name=f"a folder of {name} name",
            make=_in_folder(script),
            codes=(0,),
            rule="S10",
        )


def _stays(place: Place, ended: Any) -> str:
    """Say what lies outside of the folder that was to be written."""
    inside = {path.name for path in place.folder.iterdir()} - {"theirs", OUT}
    return f"{inside} lies outside" if inside or Path("/tmp/evil").exists() else ""


def _in_folder(name: str) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        shutil.copytree(place.sound.theirs, place.folder / name.replace("/", "_"))
        return ("import", place.folder / name.replace("/", "_"), "-o", place.out)

    return make


JSON_BOMBS: dict[str, Callable[[], str]] = {
    "10^5 levels deep": lambda: '{"a":' * 10**5 + "1" + "}" * 10**5,
    "10^5 lists deep": lambda: '{"a":' + "[" * 10**5 + "]" * 10**5 + "}",
    "65 levels deep": lambda: '{"a":' * 65 + "1" + "}" * 65,
    "of one key twice": lambda: '{"plans_name": "a", "plans_name": "b"}',
    "of 10^5 keys, one of them twice": lambda: (
        "{" + ",".join(f'"{i}": 0' for i in range(10**5)) + ', "5": 1}'
    ),
    "NaN": lambda: '{"a": NaN}',
    "infinite": lambda: '{"a": [-Infinity]}',
    "beyond all floats": lambda: '{"a": 1e999}',
    "a number of 5000 digits": lambda: '{"a": ' + "9" * 5000 + "}",
    "half of a character": lambda: '{"a": "\\ud800"}',
    "100 MB of blanks": lambda: '{"a": 1' + " " * 10**8,
    "100 MB of lists": lambda: '{"a": [' + "[]," * (10**8 // 3) + "[]]",
}


def _with_text(file: str, text: Callable[[], str]) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        (theirs(place) / file).write_text(text())
        return import_theirs(place)

    return make


# ---------------------------------------------------------------- our records and weights


def ours(place: Place) -> Path:
    """Copy a sound configuration of ours; give the folder of its fold."""
    folder = place.folder / "ours" / "3d_lowres"
    shutil.copytree(place.sound.ours / "3d_lowres", folder)
    return folder / "fold_0"


def predict(place: Place) -> Arguments:
    images = place.sound.root / "raw" / "Dataset001_Flat" / "imagesTs"
    return ("predict", "-i", images, "-o", place.out, "-m", place.folder / "ours" / "3d_lowres",
            "-f", "0", "-device", "cpu")  # fmt: skip


def spoil_record(change: Change) -> Callable[[Place], Arguments]:
    """Change a checkpoint.json, whose hash of itself is made right again."""

    def make(place: Place) -> Arguments:
        change_json(ours(place) / "checkpoint_final.json", change)
        return predict(place)

    return make


PLAN = ("plan", "configurations", "3d_lowres")


def records() -> Iterator[Attack]:
    """checkpoint.json of ours, sealed again after a change."""
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
        make=_unsealed,
        cause="SHA-256 changed",
        names="checkpoint_final.json",
        rule="S05",
    )
    for name, text in JSON_BOMBS.items():
        yield Attack(
            name=f"our record that is {name}",
            make=_record_text(text),
            cause="JSON|nested|are more than|SHA-256|has no|record",
            names="checkpoint_final.json",
            rule="S05",
            slow=name not in ("10^5 levels deep", "NaN"),
        )


def _unsealed(place: Place) -> Arguments:
    path = ours(place) / "checkpoint_final.json"
    content = json.loads(path.read_text()) | {"epoch": 4}
    from nnseg.record import json_text

    path.write_text(json_text(content))
    return predict(place)


def _record_text(text: Callable[[], str]) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        (ours(place) / "checkpoint_final.json").write_text(text())
        return predict(place)

    return make


def spoil_weights(data: Callable[[bytes], bytes]) -> Callable[[Place], Arguments]:
    """Change weights, of which the record then tells the right hash."""

    def make(place: Place) -> Arguments:
        import hashlib

        fold = ours(place)
        path = fold / json.loads((fold / "checkpoint_final.json").read_text())["weights_file"]
        path.write_bytes(data(path.read_bytes()))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        change_json(fold / "checkpoint_final.json", put(digest, "weights_sha256"))
        return predict(place)

    return make


def tensor(*shape: int, span: tuple[int, int], kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": list(shape), "data_offsets": list(span)}


def weights() -> Iterator[Attack]:
    """Weights of ours that their record proves and that are no weights."""
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
        make=spoil_weights(_nan),
        cause="NaN|finite",
        codes=(3, 6),
        rule="S09",
        slow=True,
    )
    yield Attack(
        name="weights that are a link to another file",
        make=_linked_weights,
        cause="SHA-256|cannot be read|is damaged",
        rule="S06",
    )


def _nan(data: bytes) -> bytes:
    (length,) = struct.unpack_from("<Q", data)
    return data[: 8 + length] + b"\xff\xff\xff\x7f" * ((len(data) - 8 - length) // 4)


def _linked_weights(place: Place) -> Arguments:
    fold = ours(place)
    name = json.loads((fold / "checkpoint_final.json").read_text())["weights_file"]
    plant_link(fold / name, Path("/etc/hostname"))
    return predict(place)


# ---------------------------------------------------------------- zips


def import_zip(place: Place) -> Arguments:
    return ("import", place.folder / "evil.zip", "-o", place.out)


def with_member(info: zipfile.ZipInfo, data: bytes = b"x") -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        add_member(place.sound.ours_zip, place.folder / "evil.zip", info, data)
        return import_zip(place)

    return make


NAMES = {
    "upwards": "../pwned",
    "upwards from inside": "3d_lowres/../../pwned",
    "upwards at the end": "3d_lowres/..",
    "upwards by a backslash": "..\\pwned",
    "absolute": "/tmp/evil",
    "of a drive": "C:/evil",
    "of a share": "//host/evil",
    "with a NUL": "a\0b",
    "of a terminal's command": "a\x1b[2J",
    "of nothing": "",
    "with a backslash": "a\\b",
    "of a page": "<script>alert(1)</script>",
    "of a temporary file": ".part-00000000-1-00000000-x",
}


def zips() -> Iterator[Attack]:
    """Zips of models of ours that hold something else, too; their manifests name it."""
    for what, name in NAMES.items():
        harmless = what in ("of a page", "of a temporary file", "of a terminal's command")
        yield Attack(
            name=f"a zip with a member {what}",
            make=with_member(member(name)),
            codes=(0, 3) if harmless else (3,),
            cause="not opened|folder|backslash|damaged|manifest|add|does not exist",
            names="evil.zip",
            check=_only_models,
            rule="S07",
        )
    for what, mode in (
        ("a link", stat.S_IFLNK),
        ("a device", stat.S_IFCHR),
        ("a disk", stat.S_IFBLK),
        ("a pipe", stat.S_IFIFO),
        ("a socket", stat.S_IFSOCK),
    ):
        yield Attack(
            name=f"a zip with {what}",
            make=with_member(member("3d_lowres/x", mode=mode | 0o777), b"/etc/passwd"),
            cause="is a link or device",
            names="evil.zip",
            rule="S07",
        )
    yield Attack(
        name="a zip whose weights are a link",
        make=_zip_with_linked_weights,
        cause="is a link or device|twice",
        names="evil.zip",
        rule="S07",
    )
    twice = member("README.md")
    yield Attack(
        name="a zip with a member twice",
        make=with_member(twice),
        cause="twice",
        names="evil.zip",
        rule="S07",
    )
    yield Attack(
        name="a zip with names that differ in capitals",
        make=with_member(member("Readme.MD")),
        codes=(0, 3),
        cause="README|twice|manifest|does not exist",
        check=_only_models,
        rule="S07",
    )
    big = member("3d_lowres/postprocessing.json")
    big.compress_type = zipfile.ZIP_DEFLATED
    yield Attack(
        name="a zip with a bomb",
        make=with_member(big, b" " * 2 * 10**8),
        cause="more than a model's file",
        names="evil.zip",
        rule="S07",
        slow=True,
    )
    yield Attack(
        name="a zip of many small bombs",
        make=_many_bombs,
        cause="more than|unpack|not opened|manifest|add",
        names="evil.zip",
        rule="S07",
        slow=True,
    )
    for what, change in {
        "another hash": lambda m: m["files"].update(dict.fromkeys(list(m["files"])[-1:], "0" * 64)),
        "a file that is not there": lambda m: m["files"].update({"3d_lowres/x.json": "0" * 64}),
        "a file above": lambda m: m["files"].update({"../../../etc/passwd": "0" * 64}),
        "an absolute file": lambda m: m["files"].update({"/etc/passwd": "0" * 64}),
        "fewer files": lambda m: m["files"].popitem(),
        "a later format": lambda m: m.update(format=99),
    }.items():
        yield Attack(
            name=f"a zip whose manifest has {what}",
            make=_other_manifest(change),
            cause="damaged|does not exist|not in manifest|format",
            names="evil.zip",
            rule="S07",
        )
    yield Attack(
        name="a zip that is a zip of nnU-Net's with a payload",
        make=_their_zip,
        cause="cannot be read as a checkpoint",
        names="checkpoint_final.pth",
        rule="S07",
    )
    yield Attack(
        name="a zip behind another file",
        make=_polyglot,
        cause="ends in another zip|no zip",
        names="evil.zip",
        rule="S07",
    )


def _only_models(place: Place, ended: Any) -> str:
    """Say what was unpacked beside models, records and cards."""
    known = {".json", ".safetensors", ".md"}
    strange = [
        p for p in place.out.rglob("*") if p.is_symlink() or (p.is_file() and p.suffix not in known)
    ]
    outside = {path.name for path in place.folder.iterdir()} - {"evil.zip", OUT}
    return f"{strange} and {outside} are there" if strange or outside else ""


def _zip_with_linked_weights(place: Place) -> Arguments:
    with (
        zipfile.ZipFile(place.sound.ours_zip) as old,
        zipfile.ZipFile(place.folder / "evil.zip", "w") as new,
    ):
        for one in old.infolist():
            if one.filename.endswith(".safetensors"):
                new.writestr(member(one.filename, mode=stat.S_IFLNK | 0o777), b"/etc/passwd")
            else:
                new.writestr(zipfile.ZipInfo(one.filename), old.read(one))
    return import_zip(place)


def _many_bombs(place: Place) -> Arguments:
    """Each may be a file of a model; all together no disk would hold."""
    data = bytes(2**20)
    with zipfile.ZipFile(place.folder / "evil.zip", "w", zipfile.ZIP_DEFLATED) as new:
        for number in range(2000):
            new.writestr(f"c{number}/fold_0/checkpoint_final.json", data)
    return import_zip(place)


def _other_manifest(change: Change) -> Callable[[Place], Arguments]:
    def make(place: Place) -> Arguments:
        from attacks import sealed

        from nnseg.record import json_text

        with (
            zipfile.ZipFile(place.sound.ours_zip) as old,
            zipfile.ZipFile(place.folder / "evil.zip", "w") as new,
        ):
            for one in old.infolist():
                data = old.read(one)
                if one.filename == "manifest.json":
                    content = json.loads(data)
                    change(content)
                    data = json_text(sealed(content)).encode()
                new.writestr(zipfile.ZipInfo(one.filename), data)
        return import_zip(place)

    return make


def _their_zip(place: Place) -> Arguments:
    folder = theirs(place)
    payload = PAYLOADS["os.mkdir"](place)
    repickled(folder / "fold_0" / "checkpoint_final.pth", with_entry(payload))
    shutil.make_archive(str(place.folder / "evil"), "zip", folder)
    shutil.rmtree(folder)
    return import_zip(place)


def _polyglot(place: Place) -> Arguments:
    data = b"\x89PNG\r\n\x1a\n" * 20 + place.sound.ours_zip.read_bytes()
    (place.folder / "evil.zip").write_bytes(data)
    return import_zip(place)
