"""The page of a report: index.html, which needs no server and no network."""

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from nnseg import __version__
from nnseg.labels import Labels
from nnseg.report import sections
from nnseg.report.facts import Facts
from nnseg.report.markup import Markup, script_json, tag
from nnseg.report.wording import number

NIIVUE = "niivue.umd.js"
KINDS = {
    "fold": "Training",
    "predictions": "Predictions",
    "comparison": "Comparison of two predictions",
    "choice": "Chosen model",
    "dataset": "Dataset",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Assets:
    """What the page is made with, as text."""

    style: str
    script: str


@cache
def assets() -> Assets:
    """Read the style sheet and the viewer that come with the package."""
    folder = resources.files("nnseg.report") / "assets"
    return Assets(
        style=(folder / "style.css").read_text("utf-8"),
        script=(folder / "viewer.js").read_text("utf-8"),
    )


def niivue() -> dict[str, bytes]:
    """Give the files of NiiVue that came with the package, by name; none where it came without."""
    folder = resources.files("nnseg.report") / "assets" / "niivue"
    if not (folder / NIIVUE).is_file():
        return {}
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def page(facts: Facts, labels: Labels, folder: str, *, has_niivue: bool = False) -> str:
    """Give index.html.

    The only scripts that run are those whose hash the policy names, and what these load: the
    cases' files, and NiiVue. Nothing else may be loaded from anywhere, nothing sent.

    Args:
        facts: All that it says.
        labels: What the positions in the cases' files mean.
        folder: Of the files beside it, relative to it.
        has_niivue: Whether NiiVue lies in that folder.
    """
    made = assets()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(made.script)}' 'strict-dynamic'",
            f"style-src '{_hash(made.style)}'",
            "img-src 'self' file: data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    parts = sections.sections(facts, labels, folder)
    links = [tag("li", tag("a", part.title, href=f"#{part.name}")) for part in parts]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name_="referrer", content="no-referrer"),
        tag("title", f"{facts.title} · nnseg report"),
        tag("style", Markup(made.style)),
    )
    body = tag(
        "body",
        tag(
            "header",
            tag("p", KINDS[facts.kind], class_="kind"),
            tag("h1", facts.title, class_="name"),
            tag("p", f"{facts.subject} · made {_time(facts.made)}", class_="subject"),
        ),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", *(part.content for part in parts)),
        tag(
            "footer",
            tag(
                "p",
                f"Made by nnseg {__version__}, a research tool and no medical device: do not "
                "diagnose or treat on the strength of this report. The same facts are in ",
                tag("a", "report.json", href="report.json"),
                ".",
            ),
        ),
        tag(
            "script",
            Markup(script_json(_for_viewer(facts, labels, folder, has_niivue))),
            id="facts",
            type="application/json",
        ),
        tag("script", Markup(made.script)),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _for_viewer(facts: Facts, labels: Labels, folder: str, has_niivue: bool) -> dict[str, Any]:
    return {
        "folder": folder,
        "niivue": NIIVUE if has_niivue else None,
        "labels": [
            {"position": position, "name": name}
            for position, name in sections.positions(labels).items()
        ],
        "cases": [
            {
                "id": case.case_id,
                "file": case.file,
                "score": "" if case.dice is None else f"Dice {number(case.dice)}",
            }
            for case in facts.cases
        ],
    }


def _time(made: str) -> str:
    """Give a time as people write it.

    >>> _time("2026-05-04T03:02:01+00:00")
    '2026-05-04 03:02 UTC'
    """
    return made[:16].replace("T", " ") + (" UTC" if made.endswith("+00:00") else "")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
