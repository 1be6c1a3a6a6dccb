"""Attacks in zips of models of ours: other members, other manifests, other kinds of file."""

import hashlib
import json
import shutil
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from attacks import OUT, Arguments, Attack, Change, Make, Place, put, sealed, theirs
from payloads import PAYLOADS, repickled, with_entry

from nnseg.record import json_text

Member = tuple[zipfile.ZipInfo, bytes]

ZIP = "evil.zip"
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


def attacks_on_zips() -> Iterator[Attack]:
    """Zips of models of ours that hold something else, too; their manifests name it."""
    attack = partial(Attack, names=ZIP, rule="S07")
    for what, name in NAMES.items():
        harmless = what in ("of a page", "of a temporary file", "of a terminal's command")
        yield attack(
            name=f"a zip with a member {what}",
            make=with_member(member(name)),
            codes=(0, 3) if harmless else (3,),
            cause="not opened|folder|backslash|damaged|manifest|add|does not exist",
            check=only_models,
        )
    for what, mode in (
        ("a link", stat.S_IFLNK),
        ("a device", stat.S_IFCHR),
        ("a disk", stat.S_IFBLK),
        ("a pipe", stat.S_IFIFO),
        ("a socket", stat.S_IFSOCK),
    ):
        yield attack(
            name=f"a zip with {what}",
            make=with_member(member("3d_lowres/x", mode=mode | 0o777), b"/etc/passwd"),
            cause="is a link or device",
        )
    yield attack(
        name="a zip whose weights are a link",
        make=link_weights,
        cause="is a link or device|twice",
    )
    twice = member("README.md")
    yield attack(
        name="a zip with a member twice",
        make=with_member(twice),
        cause="twice",
    )
    yield attack(
        name="a zip with names that differ in capitals",
        make=with_member(member("Readme.MD")),
        codes=(0, 3),
        cause="README|twice|manifest|does not exist",
        check=only_models,
    )
    big = member("3d_lowres/postprocessing.json")
    big.compress_type = zipfile.ZIP_DEFLATED
    yield attack(
        name="a zip with a bomb",
        make=with_member(big, b" " * 2 * 10**8),
        cause="more than a model's file",
        slow=True,
    )
    yield attack(
        name="a zip of many small bombs",
        make=many_bombs,
        cause="more than|unpack|not opened|manifest|add",
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
        yield attack(
            name=f"a zip whose manifest has {what}",
            make=change_manifest(change),
            cause="damaged|does not exist|not in manifest|format",
        )
    yield attack(
        name="a zip that is a zip of nnU-Net's with a payload",
        make=zip_theirs,
        cause="cannot be read as a checkpoint",
        names="checkpoint_final.pth",
    )
    yield attack(
        name="a zip behind another file",
        make=hide_behind_picture,
        cause="ends in another zip|no zip",
    )


def only_models(place: Place, ended: Any) -> str:
    """Say what was unpacked beside models, records and cards."""
    known = {".json", ".safetensors", ".md"}
    strange = [
        p for p in place.out.rglob("*") if p.is_symlink() or (p.is_file() and p.suffix not in known)
    ]
    outside = {path.name for path in place.folder.iterdir()} - {ZIP, OUT}
    return f"{strange} and {outside} are there" if strange or outside else ""


def import_zip(place: Place) -> Arguments:
    return ("import", place.folder / ZIP, "-o", place.out)


def member(name: str, *, mode: int = 0o100644) -> zipfile.ZipInfo:
    """Give an entry of a zip, of any name and kind of file."""
    info = zipfile.ZipInfo("x")
    info.filename = name
    info.orig_filename = name
    info.create_system = 3
    info.external_attr = mode << 16
    return info


def members(place: Place) -> Iterator[Member]:
    """Give all of a sound zip of ours."""
    with zipfile.ZipFile(place.sound.ours_zip) as sound:
        for name in sound.namelist():
            yield zipfile.ZipInfo(name), sound.read(name)


def write_zip(place: Place, members: Iterable[Member]) -> Arguments:
    with zipfile.ZipFile(place.folder / ZIP, "w") as new, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name may be there twice
        for info, data in members:
            new.writestr(info, data)
    return import_zip(place)


def with_manifest(place: Place, change: Change) -> Iterator[Member]:
    """Change the manifest of a sound zip, and seal it again."""
    for info, data in members(place):
        if info.filename == "manifest.json":
            content = json.loads(data)
            change(content)
            data = json_text(sealed(content)).encode()
        yield info, data


def change_manifest(change: Change) -> Make:
    return lambda place: write_zip(place, with_manifest(place, change))


def with_member(info: zipfile.ZipInfo, data: bytes = b"x") -> Make:
    """Add a member, which the manifest names, too."""
    known = put(hashlib.sha256(data).hexdigest(), "files", info.filename)
    return lambda place: write_zip(place, (*with_manifest(place, known), (info, data)))


def link_weights(place: Place) -> Arguments:
    def linked(info: zipfile.ZipInfo, data: bytes) -> Member:
        if not info.filename.endswith(".safetensors"):
            return info, data
        return member(info.filename, mode=stat.S_IFLNK | 0o777), b"/etc/passwd"

    return write_zip(place, (linked(*one) for one in members(place)))


def many_bombs(place: Place) -> Arguments:
    """Each may be a file of a model; all together no disk would hold."""
    data = bytes(2**20)
    with zipfile.ZipFile(place.folder / ZIP, "w", zipfile.ZIP_DEFLATED) as new:
        for number in range(2000):
            new.writestr(f"c{number}/fold_0/checkpoint_final.json", data)
    return import_zip(place)


def zip_theirs(place: Place) -> Arguments:
    folder = theirs(place)
    payload = PAYLOADS["os.mkdir"](place)
    repickled(folder / "fold_0" / "checkpoint_final.pth", with_entry(payload))
    shutil.make_archive(str(place.folder / "evil"), "zip", folder)
    shutil.rmtree(folder)
    return import_zip(place)


def hide_behind_picture(place: Place) -> Arguments:
    data = b"\x89PNG\r\n\x1a\n" * 20 + place.sound.ours_zip.read_bytes()
    (place.folder / ZIP).write_bytes(data)
    return import_zip(place)
