"""The sections about what lies behind the scores: training, plan, raw data, provenance."""

from collections.abc import Sequence

from nnseg.report.charts import Line
from nnseg.report.charts import curves as draw_curves
from nnseg.report.facts import Curve, Facts, PlanFacts, RunFacts, Trust
from nnseg.report.markup import Markup, join, tag
from nnseg.report.tables import duration
from nnseg.report.wording import number

MOST_LABELS = 7  # lines of labels in a plot
MOST_SHOWN = 200  # rows of findings
SHORT_HASH = 16


def curves(found: Sequence[Curve]) -> Markup | None:
    """Show loss and pseudo Dice over the epochs of each training."""
    parts = []
    for curve in found:
        if not curve.epochs:
            continue
        loss = [
            Line(name="training", points=tuple((e.epoch, e.loss) for e in curve.epochs)),
            Line(
                name="validation", points=tuple((e.epoch, e.validation_loss) for e in curve.epochs)
            ),
        ]
        dice = [
            Line(
                name="mean, moving average",
                points=tuple((e.epoch, e.dice_average) for e in curve.epochs),
            )
        ]
        for name in list(curve.epochs[0].label_dice)[:MOST_LABELS]:
            points = tuple((e.epoch, e.label_dice.get(name)) for e in curve.epochs)
            dice.append(Line(name=name, points=points))
        last = curve.epochs[-1]
        seconds = sum(epoch.seconds for epoch in curve.epochs)
        heading = f"{curve.name}: {last.epoch} epochs, {duration(seconds)}"
        parts += [
            tag("p", tag("strong", heading)),
            tag(
                "div",
                draw_curves(loss, "Loss"),
                draw_curves(dice, "Pseudo Dice", span=(0.0, 1.0)),
                class_="pair",
            ),
        ]
    if not parts:
        return None
    note = (
        "Pseudo Dice is that of patches of the validation cases, all together; the scores above "
        "are of whole cases."
    )
    return join(tag("p", note, class_="note"), *parts)


def trust(rows: Sequence[Trust]) -> Markup | None:
    """Show whether probabilities are true, and whether the model knows where it fails."""
    if not rows:
        return None
    heads = (
        "Temperature",
        "Calibration error",
        "after scaling",
        "Correlation of expected and true Dice",
        "Cases",
    )
    head = [tag("th", "Model", scope="col")]
    head += [tag("th", name, scope="col", class_="number") for name in heads]
    lines = []
    for row in rows:
        figures = (
            number(row.temperature, 2),
            _percent(row.ece_before),
            _percent(row.ece_after),
            number(row.spearman if row.spearman is not None else row.pearson, 2),
            str(row.cases),
        )
        cells = (tag("td", figure, class_="number") for figure in figures)
        lines.append(tag("tr", tag("th", row.name, scope="row"), *cells))
    table = tag("table", tag("thead", tag("tr", *head)), tag("tbody", *lines))
    text = (
        "A calibration error of 2 % means that voxels called with 90 % probability are right in 88 "
        "to 92 % of the cases, or thereabouts. A temperature above 1 says that the model is surer "
        "than it should be; predicting with --calibrated applies it. Where the correlation is near "
        "1, the model's own guess of its Dice ranks new cases rightly; near 0 it says nothing."
    )
    return join(tag("p", text), tag("div", table, class_="scroll"))


def suspects(facts: Facts) -> Markup | None:
    """Rank the reference label maps that may be wrong, with the reason."""
    if facts.suspects is None:
        return None
    if not facts.suspects:
        return tag("p", "No reference label map looks wrong beside what the models found.")
    numbers = {case.case_id: i for i, case in enumerate(facts.cases) if case.file}
    rows = []
    for rank, row in enumerate(facts.suspects, 1):
        show = None
        if row.case_id in numbers:
            show = tag(
                "button",
                "view",
                type="button",
                class_="control small screen",
                data_show=str(numbers[row.case_id]),
                aria_label=f"view {row.case_id}",
            )
        rows.append(
            tag(
                "tr",
                tag("td", str(rank), class_="number"),
                tag("th", show, " ", tag("span", row.case_id, class_="name"), scope="row"),
                tag("td", number(row.score), class_="number"),
                tag("td", row.label or "–"),
                tag("td", row.reason),
            )
        )
    head = tag(
        "tr",
        tag("th", "Rank", scope="col", class_="number"),
        tag("th", "Case", scope="col"),
        tag("th", "Score", scope="col", class_="number"),
        tag("th", "Label", scope="col"),
        tag("th", "Why", scope="col"),
    )
    text = (
        "Models that had not seen these cases disagree with their reference in a way that an error "
        "of the reference would explain. Have a person look before anything is changed."
    )
    tall = "scroll tall" if len(rows) > 14 else "scroll"
    table = tag("table", tag("thead", head), tag("tbody", *rows))
    return join(tag("p", text), tag("div", table, class_=tall))


def findings(facts: Facts) -> Markup | None:
    """Show what the dataset holds, and what the doctor found in it."""
    parts: list[Markup] = []
    if facts.data is not None:
        rows = [
            ("Cases with labels", str(facts.data.cases)),
            ("Channels", ", ".join(facts.data.channels)),
            ("Labels", ", ".join(facts.data.labels)),
        ]
        ends = ("smallest", "median", "largest")
        for name, values in (
            ("Spacing, mm (z × y × x)", facts.data.spacing_mm),
            ("Shape, voxels (z × y × x)", facts.data.shape),
        ):
            if values:
                said = "; ".join(f"{end} {v}" for end, v in zip(ends, values, strict=True))
                rows.append((name, said))
        parts.append(_pairs(rows))
    if facts.findings is not None:
        parts.append(tag("h3", "What the doctor found"))
        parts.append(_finding_table(facts) if facts.findings else tag("p", "Nothing wrong."))
    return join(*parts) if parts else None


def plan(found: PlanFacts) -> Markup:
    """Explain the plan: what each network sees, and the rules that led there."""
    target = f"planner {found.planner}, for {found.memory_gb:g} GB of memory"
    rows = [
        tag(
            "tr",
            tag("th", reason.rule, scope="row"),
            tag("td", reason.given),
            tag("td", tag("strong", reason.result)),
        )
        for reason in found.reasons
    ]
    heads = [tag("th", name, scope="col") for name in ("Rule", "Given", "So")]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows))
    return join(
        tag("p", f"Plan {found.name}: {target}."),
        _pairs(found.configurations),
        tag("h3", "Why: a line a rule") if rows else None,
        tag("div", table, class_="scroll") if rows else None,
    )


def runs(facts: Facts) -> Markup | None:
    """Say what made all this: commands, versions, hashes, time; and what the report lacks."""
    parts = [_run(run) for run in facts.runs]
    if facts.missing:
        parts.append(tag("h3", "What this report leaves out"))
        items = (tag("li", f"{row.section}: {row.reason}") for row in facts.missing)
        parts.append(tag("ul", *items))
    return join(*parts) if parts else None


def _run(run: RunFacts) -> Markup:
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    rows = [
        ("Started", run.started),
        ("Took", duration(run.seconds)),
        ("Machine", run.machine),
        ("Versions", versions),
    ]
    rows += [(name, str(value)) for name, value in run.facts.items()]
    if run.exit_code:
        rows.append(("Ended", f"with exit code {run.exit_code}"))
    rows += [("Warning", text) for text in run.warnings]
    hashes = [
        tag("li", tag("span", file), " ", tag("span", f"sha256 {digest}", class_="hash"))
        for file, digest in run.outputs.items()
    ]
    more = (
        tag("details", tag("summary", "Files and hashes"), tag("ul", *hashes)) if hashes else None
    )
    return join(tag("h3", f"nnseg {run.command}"), _pairs(rows), more)


def _pairs(rows: Sequence[tuple[str, str]]) -> Markup:
    lines = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in rows]
    return tag("div", tag("table", tag("tbody", *lines)), class_="scroll")


def _finding_table(facts: Facts) -> Markup:
    found = facts.findings or ()
    rows = [
        tag(
            "tr",
            tag("td", tag("span", row.severity, class_=f"tag {row.severity}")),
            tag("td", row.file, class_="name"),
            tag("td", row.found),
            tag("td", row.remedy),
        )
        for row in found[:MOST_SHOWN]
    ]
    heads = [tag("th", name, scope="col") for name in ("", "File", "Found", "Remedy")]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows))
    rest = len(found) - MOST_SHOWN
    more = tag("p", f"and {rest} more; report.json has all", class_="note") if rest > 0 else None
    return join(tag("div", table, class_="scroll tall"), more)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
