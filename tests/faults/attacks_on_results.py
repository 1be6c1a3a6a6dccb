"""Attacks in the records that lie beside data and results."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from attacks import (
    DATASET,
    MODEL,
    Arguments,
    Attack,
    Make,
    Place,
    change_json,
    copy_root,
    plant_link,
    proof_of,
)
from harmful_texts import JSON_BOMBS

FOLD = MODEL / "fold_0"


def attacks_on_results() -> Iterator[Attack]:
    """Records beside results that are bombs, or name other files."""
    for name, text in JSON_BOMBS.items():
        slow = "MB" in name or "lists" in name
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
        "an input elsewhere": lambda c: c["inputs"].update({"/dev/zero": "0" * 64}),
    }.items():
        yield Attack(
            name=f"verify: a proof of {name}",
            make=_proof(change),
            codes=(1, 3, 5, 6),
            cause="proof|outputs|names",
            rule="S06",
            check=_no_word_of("root:"),
        )
    steer = "\x1b]0;pwned\x07\x9b2J"
    for field, change in {
        "version": lambda c: c["making"].update(version=steer),
        "dataset": lambda c: c["making"]["models"][0].update(dataset=steer),
        "device": lambda c: c["making"]["models"][0]["execution"].update(device=steer),
        "inputs": lambda c: c["inputs"].update({steer: "0" * 64}),
        "outputs": lambda c: c["outputs"].update({steer: "0" * 64}),
        "label map": lambda c: c.update(label_map=steer),
    }.items():
        yield Attack(
            name=f"verify: a proof whose {field} steers a terminal",
            make=_proof(change),
            codes=(0, 3),
            rule="S07",
            check=_told_as_text,
        )
    plants: dict[str, Callable[[Path], None]] = {
        "a pipe": os.mkfifo,
        "a folder": os.mkdir,
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    }
    for what, plant in plants.items():
        yield Attack(
            name=f"verify: {what} in place of a label map",
            make=_planted(plant),
            cause="1 of 1 results are not what was written",
            rule="S05",
        )
    yield Attack(
        name="plan: a dataset.json that is a link to a device",
        make=_endless_spec,
        cause="it is no file",
        names="dataset.json",
        rule="S05",
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


def _record(verb: str, file: str, text: Callable[[], str], arguments: tuple[str, ...]) -> Make:
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


def _proof(change: Callable[[Any], Any]) -> Make:
    def make(place: Place) -> Arguments:
        where = copy_root(place)
        proof = proof_of(where / "predicted")
        change_json(proof, change)
        return ("verify", proof.with_name(proof.name.removesuffix(".proof.json")))

    return make


def _told_as_text(place: Place, ended: Any) -> str:
    return "" if "pwned" in ended.said else "does not tell the field"


def _planted(plant: Callable[[Path], None]) -> Make:
    def make(place: Place) -> Arguments:
        proof = proof_of(copy_root(place) / "predicted")
        path = proof.with_name(proof.name.removesuffix(".proof.json"))
        path.unlink()
        plant(path)
        return ("verify", path)

    return make


def _endless_spec(place: Place) -> Arguments:
    where = copy_root(place)
    plant_link(where / "raw" / DATASET / "dataset.json", Path("/dev/zero"))
    return ("plan", "1", "--dry-run", "--root", where)


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


def _choice(folder: str) -> Make:
    def make(place: Place) -> Arguments:
        where = copy_root(place)
        path = where / "results" / DATASET / "choice.json"
        path.write_text(json.dumps({"members": [{"folder": folder}]}))
        images = where / "raw" / DATASET / "imagesTs"
        return ("predict", "-i", images, "-o", place.out, "-m", path.parent, "-device", "cpu")

    return make
