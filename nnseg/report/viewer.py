"""The frame of the page's viewer: its controls, which viewer.js brings to life."""

from collections.abc import Mapping

from nnseg.report.facts import Facts
from nnseg.report.markup import Markup, join, tag

COLOURS = 12  # of labels; more labels share them
MODES = (
    ("reference", "Reference"),
    ("prediction", "Prediction"),
    ("both", "Both"),
    ("disagreement", "Disagreement"),
)
MISTAKES = (("missed", "missed"), ("spurious", "too much"), ("confused", "another label"))


def viewer(facts: Facts, positions: Mapping[int, str]) -> Markup:
    """Give the viewer, empty: the first case is loaded when it comes into sight.

    Args:
        facts: Of the cases, those with a file can be chosen.
        positions: Names of the labels by their position in the cases' files.
    """
    shown = [(i, case) for i, case in enumerate(facts.cases) if case.file]
    first = next((i for i, case in shown if case.pick == "worst"), shown[0][0])
    options = [
        tag("option", case.case_id + (f" ({case.pick})" if case.pick else ""), value=str(i))
        for i, case in shown
    ]
    return tag(
        "div",
        tag(
            "noscript",
            tag("p", "The viewer needs JavaScript; the contact sheets below do not.", class_="bar"),
        ),
        tag(
            "div",
            _button("‹", id="previous", title="the case before (p)"),
            tag("select", *options, id="case", aria_label="Case"),
            _button("›", id="next", title="the next case (n)"),
            tag("strong", "", id="casename", class_="name"),
            tag("span", "", id="casescore", class_="note"),
            *_shortcuts(facts),
            tag("span", *_backends(), class_="group push"),
            class_="bar",
        ),
        tag("div", "", id="stage", tabindex="0", aria_label="Slices", role="application"),
        tag(
            "div",
            tag("span", *_modes(), class_="group", role="group", aria_label="Overlay"),
            _button("Overlay", id="overlay", aria_pressed="true", title="show or hide it (o)"),
            tag("label", "Map ", tag("select", id="map"), id="mapbox", hidden=True),
            tag("label", "Channel ", tag("select", id="channel"), id="channelbox", hidden=True),
            _slider("Opacity", "opacity", "0", "1", "0.05", "0.5"),
            _slider("Level", "level", "0", "255", "1", "127.5"),
            _slider("Window", "window", "2", "510", "1", "255"),
            tag("span", "", id="windowtext", class_="note"),
            class_="bar",
        ),
        tag("div", *_labels(positions), *_keys(), class_="bar"),
        tag(
            "div",
            tag("span", "", id="position", aria_live="off"),
            tag("span", "", id="note", role="status"),
            class_="bar",
        ),
        tag(
            "details",
            tag("summary", "Mouse and keys"),
            tag(
                "p",
                "Scroll over a plane to go through its slices, drag to move the crosshair. With "
                "the viewer in focus: arrow keys and Page Up and Down move, 1 to 4 choose what is "
                "shown, o hides the overlay, n and p are the next case and the one before.",
            ),
            class_="bar",
        ),
        id="viewer",
        class_="viewer card screen",
        data_first=str(first),
    )


def _button(text: str, **attributes: str) -> Markup:
    return tag("button", text, type="button", class_="control", **attributes)


def _slider(text: str, name: str, low: str, high: str, step: str, value: str) -> Markup:
    slider = tag("input", type="range", id=name, min=low, max=high, step=step, value=value)
    return tag("label", text, " ", slider)


def _shortcuts(facts: Facts) -> list[Markup]:
    """Give a button for the first case of each pick."""
    found: dict[str, int] = {}
    for i, case in enumerate(facts.cases):
        if case.pick and case.file:
            found.setdefault(case.pick, i)
    order = [pick for pick in ("worst", "median", "best") if pick in found]
    return [_button(pick, data_show=str(found[pick])) for pick in order]


def _modes() -> list[Markup]:
    return [_button(text, data_mode=name, aria_pressed="false") for name, text in MODES]


def _backends() -> list[Markup]:
    return [
        _button("Slices", data_backend_choice="slices", aria_pressed="false"),
        _button("Slices and 3D", data_backend_choice="volume", aria_pressed="false"),
    ]


def _labels(positions: Mapping[int, str]) -> list[Markup]:
    boxes = [
        tag(
            "label",
            tag("input", type="checkbox", checked=True, data_label=str(place)),
            tag("i", "", class_=f"swatch colour{(place - 1) % COLOURS}"),
            tag("span", name, class_="name"),
        )
        for place, name in positions.items()
    ]
    if max(positions, default=0) <= COLOURS:
        return [tag("div", *boxes, class_="swatches")]
    text = f"{len(boxes)} labels share {COLOURS} colours: point at a voxel to read its label"
    return [tag("div", *boxes, class_="swatches"), tag("span", text, class_="note")]


def _keys() -> list[Markup]:
    """Explain the colours that are not those of labels."""
    key = [
        tag("span", tag("i", "", class_=f"swatch colour-{name}"), f" {text}", class_="legend")
        for name, text in MISTAKES
    ]
    both = "filled: prediction; outlined: reference"
    return [
        tag("span", join(*key), id="errorkey", hidden=True, class_="note push"),
        tag("span", both, id="bothkey", hidden=True, class_="note push"),
    ]
