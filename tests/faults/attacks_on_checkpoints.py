"""Attacks in nnU-Net's checkpoints, whose format can hold any code."""

import struct
from collections.abc import Callable, Iterator
from functools import partial

from attacks import Arguments, Attack, Change, Make, Place, copy_root, import_theirs, spoil_theirs
from payloads import PAYLOADS, call, pickled, repickled, touch, with_entry

CHECKPOINT = "fold_0/checkpoint_final.pth"
BARE: dict[str, Callable[[Place], bytes]] = {
    "a bare pickle": lambda place: pickled(call("os", "mkdir", str(place.target))),
    "a bare pickle of protocol 0": lambda place: f"cos\nsystem\n(V{touch(place)}\ntR.".encode(),
    "a pickle of the class of an instance": lambda place: (
        f"(V{touch(place)}\nios\nsystem\n.".encode()
    ),
    "a pickle of an extension": lambda _: b"\x80\x02\x82\x01.",
    "a pickle that builds": lambda _: b"\x80\x02cos\nenviron\n}(U\x01aU\x01bub.",
    "a pickle of a persistent id": lambda _: b"\x80\x02(U\x07storagecos\nsystem\ntQ.",
    "a pickle that is deep": lambda _: b"\x80\x02" + b"]" * 10**5 + b"a" * 10**5 + b".",
    "a pickle of 2^40 bytes": lambda _: b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b".",
    "a frame of 2^62 bytes": lambda _: b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"N.",
    "a memo of 2^31 places": lambda _: b"\x80\x02Nr\xff\xff\xff\x7f.",
}


def attacks_on_checkpoints() -> Iterator[Attack]:
    """Checkpoints of nnU-Net's that would run something."""
    attack = partial(Attack, cause="cannot be read as a checkpoint", rule="S03")
    for name, payload in PAYLOADS.items():
        yield attack(
            name=f"checkpoint with {name}",
            make=spoil_checkpoint(lambda place, made=payload: with_entry(made(place))),
            names="checkpoint_final.pth",
            slow=name.startswith(("torch", "cProfile", "timeit", "webbrowser", "operator")),
        )
    for name, encoded in (
        ("", ("a", "latin1")),
        (" that takes 10 MB", ("a" * 10**7, "utf-16")),
    ):
        yield attack(
            name=f"checkpoint with _codecs.encode{name}",
            make=spoil_checkpoint(lambda _, e=encoded: with_entry(call("_codecs", "encode", *e))),
            codes=(0, 3),
            slow=bool(name),
        )
    for name, data in BARE.items():
        for verb, then in (("import", import_theirs), ("train", train_from)):
            yield attack(
                name=f"{verb}: {name}",
                make=replace_checkpoint(data, then),
                names="checkpoint_final.pth",
                slow=verb == "train" and name != "a bare pickle",
            )


def spoil_checkpoint(change: Callable[[Place], Change]) -> Make:
    return spoil_theirs(CHECKPOINT, lambda place, path: repickled(path, change(place)))


def replace_checkpoint(data: Callable[[Place], bytes], then: Make) -> Make:
    return spoil_theirs(CHECKPOINT, lambda place, path: path.write_bytes(data(place)), then)


def train_from(place: Place) -> Arguments:
    file = place.folder / "theirs" / CHECKPOINT
    root = copy_root(place)
    return ("train", "1", "2d", "1", "--pretrained", file, "-device", "cpu", "--root", root)
