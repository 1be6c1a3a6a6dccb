"""Attacks in names of labels, cases, files and folders."""

import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

from attacks import DATASET, Arguments, Attack, Make, Place, change_json, copy_root
from attacks_on_images import predict_images

SCRIPT = "<img src=x onerror=alert(1)></script><script>alert(1)</script>"
NAMES = {
    "a page's script": SCRIPT,
    "a page's attribute": "\" onload='alert(1)' x=\"",
    "a shell's command": "$(touch pwned); `touch pwned` | touch pwned",
    "a format": "%s%n%x {0.__class__} {x!r} ${HOME}",
    "an expression": "{{7*7}} #{7*7} __import__('this')",
}


def attacks_on_names() -> Iterator[Attack]:
    """Names that a page, a shell, a format or a terminal would obey."""
    yield from labels()
    yield from paths()


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


def _label(text: str, verb: str) -> Make:
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


def _case(text: str) -> Make:
    def make(place: Place) -> Arguments:
        (place.folder / "in").mkdir()
        found = next((place.sound.root / "raw" / DATASET / "imagesTs").iterdir())
        ending = found.name[found.name.index("_0000.") :]
        shutil.copy(found, place.folder / "in" / f"{text}{ending}")
        return predict_images(place)

    return make


def _raw_case(text: str) -> Make:
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


def _folder(text: str) -> Make:
    def make(place: Place) -> Arguments:
        shutil.copytree(place.sound.root / "predicted", place.folder / text)
        return ("verify", place.folder / text)

    return make
