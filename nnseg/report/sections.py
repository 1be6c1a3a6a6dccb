"""The sections of the page, in their order; one that has nothing to say is left out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from nnseg.labels import Labels
from nnseg.report import background
from nnseg.report.charts import Box, Interval, box_plot, intervals
from nnseg.report.facts import CaseRow, ChoosingFacts, ComparisonFacts, Facts, LabelRow
from nnseg.report.markup import Markup, join, tag
from nnseg.report.viewer import viewer
from nnseg.report.wording import between, number, several

MANY_ROWS = 14  # of a table; more scroll in a box of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part of the page: its anchor, its title in the navigation, its HTML."""

    name: str
    title: str
    content: Markup


def sections(facts: Facts, labels: Labels, folder: str) -> tuple[Section, ...]:
    """Give the sections that there is something to say in."""
    made: list[tuple[str, str, Markup | None]] = [
        ("summary", "Summary", _summary(facts)),
        ("difference", "Difference", _comparison(facts.comparison) if facts.comparison else None),
        ("labels", "Labels", _labels(facts) if facts.labels else _volumes(facts)),
        ("cases", "Cases", _cases(facts, labels, folder) if facts.cases else None),
        ("choice", "Choice", _choosing(facts.choosing) if facts.choosing else None),
        ("suspects", "Suspected labels", background.suspects(facts)),
        ("training", "Training", background.curves(facts.curves)),
        ("confidence", "Confidence", background.trust(facts.trust)),
        ("findings", "Raw data", background.findings(facts)),
        ("plan", "Plan", background.plan(facts.plan) if facts.plan else None),
        ("runs", "Provenance", background.runs(facts)),
    ]
    return tuple(
        Section(
            name=name,
            title=title,
            content=tag("section", tag("h2", title), content, id=name),
        )
        for name, title, content in made
        if content
    )


def positions(labels: Labels) -> dict[int, str]:
    """Name the positions of foreground labels in the cases' files, as `preview` counts them."""
    names: dict[int, list[str]] = {}
    for name, values in labels.foreground.items():
        for value in values:
            names.setdefault(labels.values.index(value), []).append(name)
    named = {place: " + ".join(found) for place, found in sorted(names.items())}
    if labels.ignore is not None:
        named[labels.values.index(labels.ignore)] = "ignore"
    return named


def _summary(facts: Facts) -> Markup:
    said = [tag("li", line.text, class_=line.tone) for line in facts.verdict]
    tiles = []
    if facts.foreground is not None:
        mean = facts.foreground
        dice = mean.dice
        interval = f"95 % interval {between(dice)}" if between(dice) else ""
        two = facts.comparison
        name = "Dice, foreground mean" if two is None else f"Dice of {two.first}"
        tiles.append(_tile(name, number(dice.mean), interval, first=True))
        if two is not None and two.second_dice is not None:
            both = "over the cases of both"
            tiles.append(_tile(f"Dice of {two.second}", number(two.second_dice), both, first=True))
        if mean.nsd is not None:
            within = f"within {facts.tolerance_mm:g} mm" if facts.tolerance_mm is not None else ""
            tiles.append(_tile("Surface Dice", number(mean.nsd), within))
        if mean.hd95_mm is not None:
            tiles.append(_tile("HD95", f"{mean.hd95_mm:.2f} mm", "95 % of the surface is nearer"))
    elif facts.data is not None:
        tiles.append(_tile("Cases", str(facts.data.cases), "with labels", first=True))
        tiles.append(
            _tile("Channels", str(len(facts.data.channels)), ", ".join(facts.data.channels))
        )
        tiles.append(_tile("Labels", str(len(facts.data.labels)), ""))
    scored = sum(case.dice is not None for case in facts.cases)
    if scored:
        tiles.append(_tile("Cases", str(scored), "with a score"))
        tiles.append(_tile("Labels", str(len(facts.labels)), "and their mean"))
    return tag(
        "div",
        tag("div", tag("ul", *said), class_="card"),
        tag("dl", *tiles, class_="tiles"),
        class_="verdict",
    )


def _tile(name: str, value: str, note: str, *, first: bool = False) -> Markup:
    shown = tag("dd", value, tag("small", note) if note else None)
    return tag("div", tag("dt", name), shown, class_="tile first" if first else "tile")


def _labels(facts: Facts) -> Markup:
    boxes = [
        Box(
            name=row.name,
            values=tuple(
                (case.case_id, value)
                for case in facts.cases
                if (value := case.label_dice.get(row.name)) is not None
            ),
            low=row.dice.low,
            high=row.dice.high,
        )
        for row in facts.labels
    ]
    rows = [*facts.labels, *((facts.foreground,) if facts.foreground else ())]
    columns: list[tuple[str, list[str]]] = [
        ("Dice", [number(row.dice.mean) for row in rows]),
        ("95 % interval", [between(row.dice) or "–" for row in rows]),
        ("Median", [number(row.median) for row in rows]),
        ("IoU", [number(row.iou) for row in rows]),
        ("HD95 mm", [number(row.hd95_mm, 2) for row in rows]),
        ("ASSD mm", [number(row.assd_mm, 2) for row in rows]),
        ("Surface Dice", [number(row.nsd) for row in rows]),
        ("Volume error", [_percent(row.volume_error) for row in rows]),
        ("Cases", [str(row.dice.count) for row in rows]),
    ]
    columns = [(name, cells) for name, cells in columns if set(cells) - {"–"}]
    whose = facts.comparison and f"These are the scores of {facts.comparison.first}."
    return join(
        tag("p", whose) if whose else None,
        tag(
            "p",
            "A dot is a case. The box holds the middle half of the cases, its bar is the median; "
            "the orange dot is the mean, with its 95 % bootstrap interval.",
            class_="note",
        ),
        box_plot(boxes, "Dice of each case, by label", span=(_floor(facts), 1.0)),
        _score_table(rows, columns),
        tag(
            "p",
            "A label that is in neither the reference nor the prediction of a case has no Dice "
            "there and is left out of the means; one that is in only one of them counts as 0.",
            class_="note",
        ),
    )


def _floor(facts: Facts) -> float:
    """Give where the axis of Dice begins: a tenth below the worst case."""
    found = [v for case in facts.cases for v in case.label_dice.values() if v is not None]
    return max(0.0, math.floor(min(found, default=0.0) * 10 - 0.5) / 10)


def _score_table(rows: Sequence[LabelRow], columns: Sequence[tuple[str, list[str]]]) -> Markup:
    head = tag(
        "tr",
        tag("th", "Label", scope="col"),
        *(tag("th", name, class_="number", scope="col") for name, _ in columns),
    )
    lines = [
        tag(
            "tr",
            tag("th", row.name, scope="row", class_="name"),
            *(tag("td", cells[i], class_="number") for _, cells in columns),
        )
        for i, row in enumerate(rows)
    ]
    table = tag("table", tag("thead", head), tag("tbody", *lines[:-1]), tag("tfoot", lines[-1]))
    return tag("div", table, class_="scroll")


def _volumes(facts: Facts) -> Markup | None:
    """Show how large each label is in the cases of a dataset."""
    names = facts.data.labels if facts.data else ()
    boxes = [
        Box(
            name=name,
            values=tuple(
                (case.case_id, case.label_size[name])
                for case in facts.cases
                if name in case.label_size
            ),
        )
        for name in names
    ]
    if not any(box.values for box in boxes):
        return None
    unit = facts.data.size_unit if facts.data else ""
    note = f"Size of each label in {unit}, a dot a case that has it; the figure is the mean."
    plots = [box_plot([box], f"Size of {box.name}") for box in boxes if box.values]
    return join(tag("p", note, class_="note"), *plots)


def _cases(facts: Facts, labels: Labels, folder: str) -> Markup:
    shown = any(case.file for case in facts.cases)
    where = " Open one in the viewer by its button." if shown else ""
    return join(
        tag(
            "p",
            f"{several(len(facts.cases), 'case')}; a click on a heading sorts.{where}",
            class_="note screen",
        ),
        viewer(facts, positions(labels)) if shown else None,
        _case_table(facts),
        _sheets(facts, folder) if facts.sheets else None,
    )


def _sheets(facts: Facts, folder: str) -> Markup:
    images = [
        tag(
            "img",
            src=f"{folder}/{sheet}",
            alt=f"contact sheet: {sheet.partition('.')[0]} cases",
            class_="sheet",
            loading="lazy",
        )
        for sheet in facts.sheets
    ]
    summary = "Contact sheets: the worst, median and best cases as pictures"
    return tag("details", tag("summary", summary), *images, id="sheets")


def _case_table(facts: Facts) -> Markup:
    names = [row.name for row in facts.labels]
    volumes = facts.data.labels if facts.data and not names else ()
    heads = ["Case"]
    two = facts.comparison
    heads += [] if not names else ["Dice"] if two is None else [f"Dice of {two.first}"]
    heads += [] if two is None else [f"Dice of {two.second}"]
    heads += names
    heads += ["HD95 mm"] if _has_distances(facts) else []
    heads += [f"{name}, {facts.data.size_unit}" for name in volumes] if facts.data else []
    head = [tag("th", tag("button", heads[0], type="button"), scope="col")]
    head += [
        tag("th", tag("button", name, type="button"), scope="col", class_="number")
        for name in heads[1:]
    ]
    rows = []
    for i, case in enumerate(facts.cases):
        figures: list[float | None] = [case.dice] if names else []
        figures += [case.other_dice] if two is not None else []
        figures += [case.label_dice.get(name) for name in names]
        figures += [case.hd95_mm] if _has_distances(facts) else []
        figures += [case.label_size.get(name) for name in volumes]
        rows.append(_case_row(i, case, figures))
    table = tag(
        "table",
        tag("thead", tag("tr", *head)),
        tag("tbody", *rows),
        class_="sortable",
    )
    return tag("div", table, class_="scroll tall" if len(rows) > MANY_ROWS else "scroll")


def _case_row(i: int, case: CaseRow, figures: Sequence[float | None]) -> Markup:
    pick = tag("span", case.pick, class_=f"tag {case.pick}") if case.pick else None
    group = tag("small", f" {case.group}") if case.group else None
    label = case.case_id
    if case.file:
        label = tag(
            "button",
            "view",
            type="button",
            class_="control small screen",
            data_show=str(i),
            aria_label=f"view {case.case_id}",
        )
    name = tag("span", case.case_id, class_="name")
    return tag(
        "tr",
        tag(
            "th",
            *((label, " ") if case.file else ()),
            name,
            group,
            " ",
            pick,
            scope="row",
            data_value=case.case_id,
        ),
        *(
            tag("td", number(v), class_="number", data_value="" if v is None else f"{v:.6g}")
            for v in figures
        ),
        data_number=str(i),
    )


def _choosing(choosing: ChoosingFacts) -> Markup:
    rows = []
    for row in choosing.candidates:
        mark = tag("span", row.role, class_="tag") if row.role else None
        rows.append(
            tag(
                "tr",
                tag("th", row.name, " ", mark, scope="row"),
                tag("td", number(row.dice.mean, 4), class_="number"),
                tag("td", between(row.dice, 4) or "–", class_="number"),
                tag("td", number(row.dice_postprocessed, 4), class_="number"),
            )
        )
    heads = ("Dice", "95 % interval", "after postprocessing")
    head = [tag("th", "Candidate", scope="col")]
    head += [tag("th", name, scope="col", class_="number") for name in heads]
    notes = []
    if choosing.expected_dice is not None:
        text = (
            "The best of several always looks a little better than it is. Chosen anew without each "
            f"fold in turn and scored on that fold, the choice reaches {choosing.expected_dice:.4f}"
        )
        if choosing.optimism is not None:
            text += f", {choosing.optimism:.4f} less than its own score"
        notes.append(tag("p", text + "."))
    if choosing.nnunet:
        notes.append(tag("p", f"nnU-Net's own rule would choose {choosing.nnunet}."))
    if choosing.rules:
        rules = [tag("li", rule) for rule in choosing.rules]
        notes += [tag("p", "What is done with its label maps:"), tag("ul", *rules)]
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))
    return join(*notes, tag("div", table, class_="scroll"))


def _comparison(comparison: ComparisonFacts) -> Markup:
    plotted = [
        Interval(
            name=row.name,
            value=row.difference.mean,
            low=row.difference.low,
            high=row.difference.high,
        )
        for row in comparison.rows
        if row.difference.mean is not None
    ]
    heads = ("Difference", "95 % interval", "p", "Wins", "Ties", "Losses")
    head = [tag("th", "Label", scope="col")]
    head += [tag("th", name, scope="col", class_="number") for name in heads]
    rows = [
        tag(
            "tr",
            tag("th", row.name, scope="row"),
            tag("td", _signed(row.difference.mean), class_="number"),
            tag("td", between(row.difference, 4) or "–", class_="number"),
            tag("td", "–" if row.p_value is None else f"{row.p_value:.2g}", class_="number"),
            *(tag("td", str(n), class_="number") for n in (row.wins, row.ties, row.losses)),
        )
        for row in comparison.rows
    ]
    text = (
        f"Dice of {comparison.second} minus Dice of {comparison.first}, case by case; to the right "
        "of zero the second is better."
    )
    alone = [
        tag("p", f"Only in {name}: {', '.join(cases)}.", class_="note")
        for name, cases in (
            (comparison.first, comparison.only_first),
            (comparison.second, comparison.only_second),
        )
        if cases
    ]
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *rows))
    return join(
        tag("p", text, class_="note"),
        intervals(plotted, "Difference in Dice by label") if plotted else None,
        tag("div", table, class_="scroll"),
        *alone,
    )


def _has_distances(facts: Facts) -> bool:
    return any(case.hd95_mm is not None for case in facts.cases)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:+.1%}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"
