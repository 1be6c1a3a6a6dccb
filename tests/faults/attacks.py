"""Files that somebody made to do harm, each with the command that a user would give it to.

An attack is refused in one message that names the file, or does nothing; where it is stated to be
harmless, the command may as well do its work. Either way its canaries are as they were: whatever a
payload would make, change or print is not there.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bad_inputs_oracle import Ended

SECONDS = 20.0  # that a command may take
MEMORY = 400.0  # MiB beyond what the same command takes for sound files
ZEN = "Beautiful is better than ugly"  # what Python's module `this` prints when it is imported
BUG = re.compile(r"Traceback|a bug of ours")
DATASET = "Dataset001_Flat"  # of the sound root
MODEL = Path("results") / DATASET / "nnseg" / "2d"
OUT = "out"  # where a command is to write, in an attack's folder


@dataclass(frozen=True, kw_only=True)
class Sound:
    """Files with nothing wrong; attacks change copies of them."""

    ours: Path  # a folder of models as `nnseg train` leaves it, two configurations
    ours_zip: Path
    theirs: Path  # the folder of one trained model of nnU-Net's
    root: Path  # data and a trained fold, with scored predictions


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an attack is made: a folder of its own."""

    folder: Path
    sound: Sound

    @property
    def target(self) -> Path:
        """What no payload may bring about."""
        return self.folder / "pwned"

    @property
    def out(self) -> Path:
        return self.folder / OUT


Arguments = Sequence[str | Path]
Make = Callable[[Place], Arguments]
Change = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One of them."""

    name: str
    make: Make  # writes the files; gives the command
    cause: str = ""  # what the message says, a pattern
    names: str = ""  # the file or member that it names
    codes: tuple[int, ...] = (3,)
    rule: str = "S01"  # of the checklist
    check: Callable[[Place, Ended], str] = field(default=lambda place, ended: "")
    slow: bool = False

    @property
    def is_harmless(self) -> bool:
        """Whether the command may do its work."""
        return 0 in self.codes

    def __str__(self) -> str:
        return self.name


def faults(attack: Attack, place: Place, ended: Ended, usual: float, before: Any) -> list[str]:
    """Say what is wrong with how a command took an attack."""
    said, found = ended.said, []
    if ended.seconds > SECONDS:
        found.append(f"took {ended.seconds:.0f} s")
    if ended.memory > usual + MEMORY:
        found.append(f"took {ended.memory:.0f} MiB, {usual:.0f} MiB are usual")
    if ended.code not in attack.codes:
        found.append(f"ended with {ended.code}, not one of {attack.codes}")
    if BUG.search(said) or ended.code < 0:
        found.append("is a bug")
    if ZEN in said or place.target.exists():
        found.append("ran")
    if not all(line.isprintable() for line in said.splitlines()) or "\x1b" in said:
        found.append("reaches the terminal")
    if ended.code != 0:
        if not re.search(attack.cause, said) or attack.names not in said:
            found.append(f"says neither {attack.cause!r} nor {attack.names!r}")
        if said.count("nnseg: ") > 3 or len(said) > 4000:
            found.append("says too much")
        if not attack.is_harmless and (left := left_of(place, before)):
            found.append(f"left {left}")
    if text := attack.check(place, ended):
        found.append(text)
    return [*found, f"{ended.code}, {ended.seconds:.1f} s: {said[-1500:]}"] if found else []


def left_of(place: Place, before: dict[str, str]) -> list[str]:
    """Name what is new, changed or gone; of a folder of results, what would pass for results."""
    now = contents(place.folder)
    changed = [name for name in {*now, *before} if now.get(name) != before.get(name)]
    results = (".gz", ".nii", ".png", ".b2nd", ".npz", ".safetensors")
    return [n for n in changed if n.partition("/")[0] != OUT or n.endswith(results)]


def contents(folder: Path) -> dict[str, str]:
    """Give the name of everything below a folder, and the hash of what is in it."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = ""
    return found


def copy_root(place: Place) -> Path:
    """Copy data and results, to be changed."""
    folder = place.folder / "root"
    shutil.copytree(place.sound.root, folder)
    return folder


def proof_of(predicted: Path) -> Path:
    """Give the first proof among predictions."""
    return min(predicted.glob("*.proof.json"))


def theirs(place: Place) -> Path:
    """Copy a sound model of nnU-Net's; give its folder."""
    folder = place.folder / "theirs"
    shutil.copytree(place.sound.theirs, folder)
    return folder


def import_theirs(place: Place) -> Arguments:
    return ("import", place.folder / "theirs", "-o", place.out)


def spoil_theirs(
    file: str, change: Callable[[Place, Path], Any], then: Make = import_theirs
) -> Make:
    """Change a file of a sound model of nnU-Net's, then give the model to a command."""

    def make(place: Place) -> Arguments:
        change(place, theirs(place) / file)
        return then(place)

    return make


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Give a record with the right hash of itself, which anybody can compute."""
    rest = {key: value for key, value in content.items() if key != "record_sha256"}
    digest = hashlib.sha256(json.dumps(rest).encode()).hexdigest()
    return rest | {"record_sha256": digest}


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Write a record as it must lie on the disk."""
    from nnseg.record import json_text

    path.write_text(json_text(sealed(content)))


def change_json(path: Path, change: Change) -> None:
    """Change a JSON file; one that is sealed is sealed again."""
    content = json.loads(path.read_text())
    content = change(content) or content
    if "record_sha256" in content:
        write_sealed(path, content)
    else:
        path.write_text(json.dumps(content))


def put(value: Any, *keys: str | int) -> Change:
    """Give what puts a value into nested JSON."""

    def change(content: Any) -> None:
        inside = content
        for key in keys[:-1]:
            inside = inside[key]
        inside[keys[-1]] = value

    return change


def plant_link(path: Path, target: Path) -> None:
    """Put a link in the place of a file."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)
