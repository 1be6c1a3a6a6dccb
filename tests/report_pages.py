"""What tests of the report share: drawn scores, and a reader of pages."""

from html.parser import HTMLParser

import numpy as np

from nnseg.evaluate import CaseScores, Summary, score_case, summarize
from nnseg.labels import Labels

EVIL = "<img src=x onerror=alert(1)>"
LABELS = Labels(labels={"background": 0, "liver": 1, EVIL: 2})


def summary(count: int, shift: int = 1) -> Summary:
    """Scores of drawn cases: the more of a case is missed, the higher its number is."""
    truth = np.zeros((4, 30, 12), np.uint8)
    truth[1:3, 2:28, 2:10] = 1
    truth[1, 3:9, 3:6] = 2
    cases = []
    for number in range(count):
        found = truth.copy()
        found[:, : 2 + shift * number] = 0
        name = EVIL if number == 1 else f"case_{number}"
        scores = score_case(found, truth, LABELS, (1.0, 1.0, 1.0), surface=number % 2 == 0)
        cases.append(
            CaseScores(
                case_id=name,
                reference_file=f"labelsTr/{name}.nii.gz",
                prediction_file=f"predicted/{name}.nii.gz",
                scores=scores,
            )
        )
    return summarize(cases, LABELS)


class Page(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.text = ""
        self._inside: tuple[str, dict[str, str | None]] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = (tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.text += data
        elif self._inside[0] == "script":
            self.scripts.append((self._inside[1], data))
        else:
            self.styles.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        """The attributes of all elements of a kind."""
        return [attributes for name, attributes in self.elements if name == tag]
