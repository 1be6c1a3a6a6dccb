"""Pickles that call what nobody should call when they are read, and checkpoints with them."""

import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from attacks import Change, Place

Reduced = tuple[Any, ...]


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
