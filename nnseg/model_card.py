"""A card that goes with a model: what it is, of what data, how good, and what it is not for.

Everything in it is taken from records; what none of them says is said to be unknown.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nnseg.axes import by
from nnseg.choose import Choice, Choosing
from nnseg.evaluate import Summary
from nnseg.plan import Plan
from nnseg.runlog import RunReport

NO_DEVICE = (
    "**This is no medical device.** The model was neither reviewed nor certified for clinical use; "
    "do not diagnose or treat on the strength of its output."
)
_LONGEST = 2000  # characters of a text that somebody wrote
_ACTIVE = re.compile(r"([\\`*_\[\]<>|#!~])")  # signs that Markdown would act on
_SETTINGS = (
    "optimizer",
    "lr",
    "schedule",
    "loss",
    "augmentation",
    "elastic",
    "mixup",
    "accumulate",
    "seed",
    "budget_seconds",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFold:
    """A trained fold as its card knows it."""

    configuration: str
    fold: str  # as it is called: "0", "all", "0_seed1"
    epochs: int
    batch_size: int | None  # patches of a batch; None is not known
    seconds: float | None  # of its training, all sessions together; None is not known
    weights_file: str  # its name in what is handed on
    weights_sha256: str
    run: RunReport | None  # of the last session of its training
    summary: Summary | None  # of its validation cases
    plan: Plan | None = None  # where folds are of several; None is that of the card

    @property
    def model(self) -> str:
        """What its configuration is called beside the others, whose seeds are models, too."""
        before = "" if self.plan is None else f"{self.plan.name}/"
        _, seed, number = self.fold.partition("_seed")
        return f"{before}{self.configuration}{' seed ' if seed else ''}{number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CardChoice:
    """Models that predict together, as their card knows them."""

    choice: Choice
    folds: dict[str, tuple[str, ...]]  # by folder of each member, as they are called
    choosing: Choosing | None  # how good they are together; None is not known of these weights


@dataclass(frozen=True, slots=True, kw_only=True)
class DataNotes:
    """What the dataset's own dataset.json says of it besides its labels."""

    cases: int
    texts: Mapping[str, str]  # name, description, reference, licence, ... as somebody wrote them


def model_card(
    plan: Plan,
    folds: Sequence[CardFold],
    data: DataNotes | None,
    version: str,
    choice: CardChoice | None = None,
) -> str:
    """Write the card of trained folds, as Markdown.

    Args:
        plan: That they were trained from; of several plans the first.
        folds: At least one.
        data: Of the dataset; None where its dataset.json is not there.
        version: Of the nnseg that writes it.
        choice: By which they predict together; None if they are simply models of one plan.
    """
    parts = [
        f"# {_plain(plan.dataset)}: segmentation by nnseg",
        NO_DEVICE,
        _use(plan, "choice.json" if choice else folds[0].configuration),
        _data(plan, data),
        "" if choice is None else _together(choice),
        _network(plan, folds),
        _training(folds),
        _scores(folds),
        _files(folds, version),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _use(plan: Plan, model: str) -> str:
    labels = ", ".join(f"{_plain(name)} ({value})" for name, value in _integers(plan))
    return (
        "## What it is for\n\n"
        f"Research. It finds {labels} in images like those that it was trained on: "
        f"{len(plan.channels)} channel(s), {', '.join(map(_plain, plan.channels))}, of about "
        f"{by(plan.median_shape)} voxels of {by(plan.median_spacing)} mm. Of other scanners, "
        "protocols, ages or diseases than those of its data nothing is known; look at its results "
        "before you use them.\n\n"
        "```bash\n"
        "nnseg import MODEL.zip -o model\n"
        f"nnseg predict -m model/{model} -i IN -o OUT\n"
        "```"
    )


def _data(plan: Plan, data: DataNotes | None) -> str:
    lines = ["## Data", ""]
    if data is None:
        lines.append(
            f"{_plain(plan.dataset)}. Its dataset.json was not there when this card was written: "
            "ask who hands the model on for its origin and **licence, which may bind what you do "
            "with the model**."
        )
        return "\n".join(lines)
    lines += [f"- dataset: {_plain(plan.dataset)}", f"- training cases: {data.cases}"]
    known = {key.casefold(): text for key, text in data.texts.items()}
    licence = known.pop("licence", None) or known.pop("license", None)
    known.pop("license", None)
    lines += [f"- {_plain(key)}: {_plain(text)}" for key, text in sorted(known.items())]
    if licence:
        lines.append(
            f"- licence of the data: {_plain(licence)}. It may bind what you do with the model."
        )
    else:
        lines.append(
            "- licence of the data: not stated in its dataset.json. Ask for it: it may bind what "
            "you do with the model."
        )
    return "\n".join(lines)


def _together(together: CardChoice) -> str:
    """Tell which models predict together, and what was found out about them as they do."""
    choice, found = together.choice, together.choosing
    rows = [
        "## What predicts together",
        "",
        "The mean of the probabilities of these models, each with its weight, is decided on.",
        "",
        "| model | folds | weight |",
        "| --- | --- | --- |",
    ]
    rows += [
        f"| {_plain(one.folder)} | {', '.join(together.folds[one.folder])} | {one.weight:g} |"
        for one in choice.members
    ]
    rules = [str(rule) for rule in choice.postprocessing.rules]
    rows += ["", "Rules for its label maps: " + (_plain("; then ".join(rules)) or "none") + "."]
    if found is None:
        return "\n".join([*rows, "", "How good they are together is not known of these weights."])
    best = found.best
    if found.expected_dice is None:
        rows += ["", "What to expect of new cases takes two folds to be estimated."]
    else:
        rows += [
            "",
            f"Expected of new cases like its own: Dice {found.expected_dice:.3f}, as chosen "
            "without the fold that is scored.",
        ]
    bounds = "" if best.low is None else f" (95 %: {best.low:.3f} to {best.high:.3f})"
    rows.append(
        f"In the {found.cases} cases by which they were chosen, each predicted without having "
        f"trained on it: {_dice(best.dice)}{bounds}, with the rules "
        f"{_dice(best.dice_postprocessed)}. That flatters: they are the best of "
        f"{len(found.candidates)} candidates."
    )
    return "\n".join(rows)


def _dice(value: float | None) -> str:
    return "no value" if value is None else f"Dice {value:.3f}"


def _network(plan: Plan, folds: Sequence[CardFold]) -> str:
    plans = {of.name: of for of in (fold.plan or plan for fold in folds)}
    rows = ["## Networks"]
    for name, of in plans.items():
        rows += ["", _networks_of(of, [one for one in folds if (one.plan or plan).name == name])]
    return "\n".join(rows)


def _networks_of(plan: Plan, folds: Sequence[CardFold]) -> str:
    rows = [
        f"Plan `{plan.name}` of the planner `{plan.planner}`, for {plan.memory_gb:g} GB.",
        "",
        "| configuration | spacing, mm | patch, voxels | batch | network | normalization |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(fold.configuration for fold in folds):
        one = plan.configuration(name)
        rows.append(
            f"| {name} | {by(one.spacing)} | {by(one.patch_size)} | {one.batch_size} | "
            f"{one.architecture.called}, {one.architecture.levels} levels, "
            f"{max(one.architecture.features)} features at most | {', '.join(one.normalization)} |"
        )
    return "\n".join(rows)


def _training(folds: Sequence[CardFold]) -> str:
    rows = ["## Training", "", "| fold | epochs | batch | hours | when | by | settings |"]
    rows.append("| --- | --- | --- | --- | --- | --- | --- |")
    for fold in folds:
        place = "" if fold.plan is None else f"{fold.plan.name}/"
        called = f"{place}{fold.configuration} {fold.fold}"
        hours = "not recorded" if fold.seconds is None else f"{fold.seconds / 3600:.2f}"
        batch = "not recorded" if fold.batch_size is None else fold.batch_size
        trained = f"| {called} | {fold.epochs} | {batch} | {hours} |"
        if fold.run is None:
            rows.append(f"{trained} | | |")
            continue
        arguments, versions = fold.run.arguments, fold.run.versions
        settings = ", ".join(
            f"{key} {_plain(str(arguments[key]))}"
            for key in _SETTINGS
            if arguments.get(key) is not None
        )
        if arguments.get("pretrained") is not None:  # where it lay is nobody's business
            settings += ", from pretrained weights"
        named = [name for name in ("nnseg", "torch", "python") if name in versions]
        made_by = ", ".join(f"{name} {versions[name]}" for name in named)
        rows.append(f"{trained} {fold.run.started[:10]} | {_plain(made_by)} | {settings} |")
    return "\n".join(rows)


def _scores(folds: Sequence[CardFold]) -> str:
    rows = ["## How good it is", ""]
    named = dict.fromkeys(fold.model for fold in folds)
    listed: list[str] = []
    for configuration in named:
        found = [f.summary for f in folds if f.model == configuration and f.summary]
        if not found:
            continue
        count = len({case.case_id for summary in found for case in summary.cases})
        for label in found[0].mean:
            values = [
                case.scores[label].dice
                for summary in found
                for case in summary.cases
                if label in case.scores
            ]
            listed.append(f"| {configuration} | {_plain(label)} | {_interval(values)} | {count} |")
    if not listed:
        return "\n".join([*rows, "Its validation cases were not scored, so that nothing is known."])
    return "\n".join(
        [
            *rows,
            "Dice of cases that the network which predicted them was not trained on, with the 95 % "
            "interval of the mean over cases. Postprocessing is not counted in.",
            "",
            "| configuration | label | Dice | cases |",
            "| --- | --- | --- | --- |",
            *listed,
        ]
    )


def _interval(values: Sequence[float | None]) -> str:
    from nnseg.scores.intervals import mean_interval

    found = mean_interval(values)
    if found.mean is None:
        return "no value"
    if found.low is None or found.high is None:
        return f"{found.mean:.3f}"
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})"


def _files(folds: Sequence[CardFold], version: str) -> str:
    rows = [
        "## Files",
        "",
        f"Packed by nnseg {version}. manifest.json holds the SHA-256 of every file, and `nnseg "
        "import` checks them all; loading a model runs no code.",
        "",
        "| weights | SHA-256 |",
        "| --- | --- |",
    ]
    rows += [f"| {fold.weights_file} | {fold.weights_sha256} |" for fold in folds]
    return "\n".join(rows)


def _integers(plan: Plan) -> list[tuple[str, str]]:
    return [
        (name, ", ".join(str(value) for value in values))
        for name, values in plan.labels.foreground.items()
    ]


def _plain(text: str) -> str:
    r"""Give somebody's text as one line that Markdown shows as it is.

    >>> print(_plain("a_b <img>"))
    a\_b \<img\>
    """
    line = " ".join(text.split())
    return _ACTIVE.sub(r"\\\1", line[:_LONGEST])
