"""Which models predict a dataset, and what is done with what they find: choice.json.

The records of candidates, of what was found out about them and of the one that was chosen;
`nnseg.ranking` chooses.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from nnseg.dataset import stays_inside
from nnseg.errors import DataError
from nnseg.postprocess.rules import Postprocessing
from nnseg.scores.intervals import Interval
from nnseg.scores.tables import aligned

WEIGHTS = (1, 2)  # of each member, where weights are tried
LABELS_SHOWN = 6  # in a table for the terminal; the record has all


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenModel:
    """One of the models that predict together."""

    folder: str  # of its configuration, relative to the file that says so
    folds: tuple[str, ...] = ()  # as they are called; none are all that are trained
    weight: float = 1.0  # beside those of the others

    def __post_init__(self) -> None:
        if not stays_inside(self.folder):
            raise DataError(
                f"the model {self.folder!r} lies outside the folder of its choice; move it there"
            )
        if not 0 < self.weight < float("inf"):
            raise DataError(f"the weight of {self.folder} is {self.weight:g}; it must be over 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The content of choice.json: everything that `nnseg predict -m` needs to know."""

    members: tuple[ChosenModel, ...]
    postprocessing: Postprocessing = field(default_factory=Postprocessing)

    def __post_init__(self) -> None:
        if not self.members:
            raise DataError("a choice needs at least one model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model, or several whose probabilities are averaged, that may be chosen."""

    name: str
    members: tuple[ChosenModel, ...]

    @property
    def is_equally_weighted(self) -> bool:
        """Whether all members count alike."""
        return len({member.weight for member in self.members}) == 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateScore:
    """How a candidate did in cases that it was not trained on.

    A Dice is the mean over labels of the mean over cases, each of those that have a value; None
    where none has. `low` and `high` bound 95 % of what `dice` is when cases are drawn anew.
    """

    name: str
    members: tuple[ChosenModel, ...]
    dice: float | None
    low: float | None
    high: float | None
    label_dice: dict[str, float | None]  # by label or region
    postprocessing: Postprocessing  # the rules that would be stored with it
    dice_postprocessed: float | None
    label_dice_postprocessed: dict[str, float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """By how much the chosen one did better than another candidate, over the same cases."""

    over: str  # the other's name
    difference: Interval  # of the Dice, both with their rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Choosing:
    """The content of choosing.json: what was compared, what was chosen, and what to expect of it.

    `expected_dice` is what the same way of choosing gives in cases that had no say in it: with the
    cases of one fold after the other left out, members and rules are chosen by the rest and score
    the fold. `optimism` is by how much the Dice of the chosen one in the cases that it was chosen
    by exceeds that. Both are None where there is one fold.
    """

    dataset: str
    folds: tuple[str, ...]  # whose cases were scored
    cases: int
    candidates: tuple[CandidateScore, ...]  # best first
    chosen: str  # the name of one of them
    expected_dice: float | None
    optimism: float | None
    nnunet: CandidateScore  # what nnU-Net's rule would choose
    gain: Gain | None  # over the best single model, where several were chosen
    notes: tuple[str, ...] = ()  # what was left out, and why
    weights_sha256: dict[str, str] = field(default_factory=dict)  # by folder of each fold scored

    def __post_init__(self) -> None:
        if self.chosen not in {score.name for score in self.candidates}:
            raise DataError(f"{self.chosen} was chosen, but is none of the candidates")

    @property
    def best(self) -> CandidateScore:
        """The candidate that was chosen."""
        return next(score for score in self.candidates if score.name == self.chosen)

    @property
    def choice(self) -> Choice:
        """What `nnseg predict` needs to know of it."""
        return Choice(members=self.best.members, postprocessing=self.best.postprocessing)


def combine(
    models: Sequence[Candidate],
    *,
    most_members: int = 2,
    weights: bool = False,
    may_join: Callable[[Candidate, Candidate], bool] = lambda one, other: True,
) -> tuple[Candidate, ...]:
    """Give the candidates that models make up: each alone, then pairs, and so on.

    Args:
        models: Of one member each, in the order that decides between equals.
        most_members: How many may predict together.
        weights: Whether members may also count twice beside the others, which has a case averaged
            3 times for each pair, 7 times for three models, instead of once.
        may_join: Whether two models can predict together.
    """
    found = list(models)
    for size in range(2, min(most_members, len(models)) + 1):
        for group in itertools.combinations(models, size):
            if not all(may_join(*pair) for pair in itertools.combinations(group, 2)):
                continue
            found += [_together(group, shares) for shares in _shares(size, weights)]
    return tuple(found)


def describe_choosing(choosing: Choosing) -> str:
    """Give what was compared as a table for the terminal, and below it what was chosen and why.

    The columns of labels are with the rules, like the one before them.
    """
    names = list(choosing.best.label_dice)[:LABELS_SHOWN]
    rows: list[Sequence[str]] = [("candidate", "Dice", "95 % interval", "with rules", *names)]
    for score in choosing.candidates:
        labels = (_told(score.label_dice_postprocessed[name]) for name in names)
        bounds = "-" if score.low is None else f"{_told(score.low)} to {_told(score.high)}"
        rows.append(
            (score.name, _told(score.dice), bounds, _told(score.dice_postprocessed), *labels)
        )
    folds = f"fold{'' if len(choosing.folds) == 1 else 's'} {', '.join(choosing.folds)}"
    return "\n".join(
        [
            f"{choosing.dataset}: {choosing.cases} cases, each predicted without having trained on "
            f"it, of {folds}",
            aligned(rows),
            "",
            *_reasons(choosing),
            *(f"note: {note}" for note in choosing.notes),
        ]
    )


def _reasons(choosing: Choosing) -> Iterator[str]:
    """Say what was chosen and why, what to expect of it, and what nnU-Net would choose."""
    best, theirs = choosing.best, choosing.nnunet
    yield f"chosen: {best.name}, Dice {_told(best.dice_postprocessed)}"
    yield from (f"  then {rule}" for rule in best.postprocessing.rules)
    if choosing.gain is not None:
        gain = choosing.gain.difference
        bounds = "" if gain.low is None else f" (95 %: {gain.low:+.4f} to {gain.high:+.4f})"
        yield f"  {_told(gain.mean, '+.4f')}{bounds} over {choosing.gain.over}, the best by itself"
    if choosing.expected_dice is None:
        yield "  what to expect of new cases takes two folds to be estimated"
    else:
        yield (
            f"expected of new cases like these: {_told(choosing.expected_dice)}, as chosen without "
            f"the fold that is scored ({_told(choosing.optimism, '+.4f')} is the luck of choosing)"
        )
    same = (theirs.name, theirs.postprocessing) == (best.name, best.postprocessing)
    yield (
        "nnU-Net's rule would choose the same"
        if same
        else f"nnU-Net's rule would choose: {theirs.name}, Dice {_told(theirs.dice_postprocessed)}"
    )
    if not same:
        yield from (f"  then {rule}" for rule in theirs.postprocessing.rules)


def _told(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


def _shares(size: int, weights: bool) -> Iterator[tuple[int, ...]]:
    """Give the weights to try for some members; those that mean the same come once."""
    yield (1,) * size
    if weights:
        for shares in itertools.product(WEIGHTS, repeat=size):
            if len(set(shares)) > 1:
                yield shares


def _together(models: Sequence[Candidate], shares: Sequence[int]) -> Candidate:
    names = [
        model.name if share == 1 else f"{share} x {model.name}"
        for model, share in zip(models, shares, strict=True)
    ]
    members = [
        ChosenModel(folder=member.folder, folds=member.folds, weight=float(share))
        for model, share in zip(models, shares, strict=True)
        for member in model.members
    ]
    return Candidate(name=" + ".join(names), members=tuple(members))
