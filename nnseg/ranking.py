"""Which candidate does best, with which rules, and what to expect of it in new cases.

Read `choose` first. What candidates found in cases that they were not trained on comes as tables of
counts, so that nothing here reads a file or an image.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nnseg.axes import Spacing
from nnseg.choose import Candidate, CandidateScore, Choosing, Gain
from nnseg.errors import StoppedError
from nnseg.evaluate import score_table
from nnseg.labels import Labels
from nnseg.parallel import OnProgress
from nnseg.postprocess.cohort import make_cohort
from nnseg.postprocess.decide import decide_as_nnunet, decide_each
from nnseg.postprocess.rules import Postprocessing, Unit
from nnseg.postprocess.table import ComponentTable, score_after
from nnseg.scores.intervals import difference_interval, table_interval

MEMBERS_OF_NNUNET = 2  # that it averages at most


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """What candidates found in cases that they were not trained on."""

    labels: Labels
    folds: Mapping[str, str]  # by case: the fold that held it out
    spacings: Mapping[str, Spacing]  # by case: mm, (z, y, x)
    tables: Mapping[str, Mapping[str, ComponentTable]]  # by candidate's name, then by case
    unit: Unit = "ml"  # of smallest sizes; voxels where the spacings mean nothing


def choose(
    dataset: str,
    candidates: Sequence[Candidate],
    evidence: Evidence,
    *,
    on_progress: OnProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Choosing:
    """Choose the candidate with the highest Dice after the rules that suit it best.

    Of equals the one with fewer members is chosen, then the first. The rules are those that
    `decide` finds with the folds known, so that a smallest size must win out of fold. What nnU-Net
    would choose is reported beside it: the best model or pair by the Dice before any rule, then
    its own rules.

    Args:
        dataset: Its folder's name.
        candidates: At least one; what `combine` gave.
        evidence: Has a table of every candidate and case.
        on_progress: Called after each candidate.
        stop: Asked before each of them.

    Raises:
        StoppedError: `stop` said True.
    """
    folds = tuple(dict.fromkeys(sorted(evidence.folds.values(), key=_by_number)))
    cases = sorted(evidence.folds)
    decided = []
    for number, candidate in enumerate(candidates, 1):
        if stop():
            raise StoppedError("stopped while choosing; the same command does it anew")
        decided.append(_decide(candidate, evidence, cases, folds))
        if on_progress:
            on_progress("choosing", number, len(candidates))
    ranked = _rank([of_all for of_all, _ in decided])
    best = ranked[0]
    expected = None
    if len(folds) > 1:
        rounds = zip(*(without for _, without in decided), strict=True)
        expected = _number(foreground(np.concatenate([_rank(tried)[0].after for tried in rounds])))
    after = _number(foreground(best.after))
    scores = tuple(_score(each, evidence.labels) for each in ranked)
    return Choosing(
        dataset=dataset,
        folds=folds,
        cases=len(cases),
        candidates=scores,
        chosen=best.candidate.name,
        expected_dice=expected,
        optimism=None if expected is None or after is None else after - expected,
        nnunet=_as_nnunet(candidates, ranked, evidence, cases),
        gain=_gain(ranked),
    )


def foreground(dice: NDArray[np.float64]) -> float:
    """Give the mean over labels of the mean over cases, as `summarize` does; nan if there is none.

    Args:
        dice: (case, label); nan where neither prediction nor reference has the label.
    """
    means = _label_means(dice)
    found = means[np.isfinite(means)]
    return float(np.mean(found)) if len(found) else math.nan


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ranked:
    """A candidate, the rules that suit it, and its Dice (case, label) before and after them."""

    candidate: Candidate
    rules: Postprocessing
    chosen_by: float | None  # the Dice after the rules of the cases that they were chosen by
    before: NDArray[np.float64]
    after: NDArray[np.float64]


def _decide(
    candidate: Candidate, evidence: Evidence, cases: Sequence[str], folds: Sequence[str]
) -> tuple[_Ranked, list[_Ranked]]:
    """Decide on a candidate's rules by all cases, and without those of each fold, which they score.

    Args:
        candidate: Of the evidence.
        evidence: What was found.
        cases: All, sorted.
        folds: All.

    Returns:
        The Dice of all cases; and, for each of two folds or more, of the cases of that fold.
    """
    cohort = make_cohort(evidence.tables[candidate.name], evidence.labels, evidence.spacings)
    everyone = np.ones(len(cases), np.bool_)
    held_out = [np.array([evidence.folds[case] == fold for case in cases]) for fold in folds]
    scored = [everyone, *held_out] if len(folds) > 1 else [everyone]
    parts = [everyone, *(~inside for inside in scored[1:])]
    of_all, *without = (
        _Ranked(
            candidate=candidate,
            rules=found.decided.postprocessing,
            chosen_by=found.decided.dice_after.foreground,
            before=found.dice_before[inside],
            after=found.dice_after[inside],
        )
        for found, inside in zip(
            decide_each(cohort, parts, evidence.folds, unit=evidence.unit), scored, strict=True
        )
    )
    return of_all, without


def _rank(tried: Sequence[_Ranked]) -> list[_Ranked]:
    """Order candidates, best first."""

    def place(each: _Ranked) -> tuple[float, int]:
        dice = each.chosen_by
        return (math.inf if dice is None else -dice), len(each.candidate.members)

    return sorted(tried, key=place)  # it keeps the order of equals


def _as_nnunet(
    candidates: Sequence[Candidate],
    ranked: Sequence[_Ranked],
    evidence: Evidence,
    cases: Sequence[str],
) -> CandidateScore:
    """Score what nnU-Net would choose: the first of the best before any rule, with its rules."""
    known = {each.candidate.name: each for each in ranked}
    eligible = [
        known[candidate.name]
        for candidate in candidates
        if len(candidate.members) <= MEMBERS_OF_NNUNET and candidate.is_equally_weighted
    ]
    best = max(eligible, key=lambda each: np.nan_to_num(foreground(each.before), nan=-1.0))
    tables = {case: evidence.tables[best.candidate.name][case] for case in cases}
    rules = decide_as_nnunet(tables, evidence.labels).postprocessing
    after = _dice(best.candidate, evidence, cases, rules)
    return _score(replace(best, rules=rules, after=after), evidence.labels)


def _dice(
    candidate: Candidate, evidence: Evidence, cases: Sequence[str], rules: Postprocessing
) -> NDArray[np.float64]:
    """Give a candidate's Dice (case, label) in some cases after some rules."""
    labels, rows = evidence.labels, []
    for case in cases:
        table = evidence.tables[candidate.name][case]
        scores = score_table(score_after(table, rules, labels, evidence.spacings[case]), labels)
        dice = [scores[name].dice for name in labels.foreground]
        rows.append([math.nan if value is None else value for value in dice])
    return np.array(rows, dtype=np.float64)


def _score(ranked: _Ranked, labels: Labels) -> CandidateScore:
    bounds = table_interval(_rows(ranked.before))
    return CandidateScore(
        name=ranked.candidate.name,
        members=ranked.candidate.members,
        dice=_number(foreground(ranked.before)),
        low=bounds.low,
        high=bounds.high,
        label_dice=_by_label(ranked.before, labels),
        postprocessing=ranked.rules,
        dice_postprocessed=_number(foreground(ranked.after)),
        label_dice_postprocessed=_by_label(ranked.after, labels),
    )


def _gain(ranked: Sequence[_Ranked]) -> Gain | None:
    """Say by how much the first, if it has several members, beats the first that has one."""
    first = ranked[0]
    single = next(each for each in ranked if len(each.candidate.members) == 1)
    if single is first:
        return None
    difference = difference_interval(_rows(first.after), _rows(single.after))
    return Gain(over=single.candidate.name, difference=difference)


def _rows(dice: NDArray[np.float64]) -> list[list[float | None]]:
    """Give Dice (case, label) as rows in which what has no value is None."""
    return [[_number(value) for value in row] for row in dice.tolist()]


def _label_means(dice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the mean over the cases that have a value, label by label; nan where none has."""
    columns = [column[np.isfinite(column)] for column in dice.T]
    return np.array([np.mean(column) if len(column) else math.nan for column in columns])


def _by_label(dice: NDArray[np.float64], labels: Labels) -> dict[str, float | None]:
    return {
        name: _number(float(mean))
        for name, mean in zip(labels.foreground, _label_means(dice), strict=True)
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _by_number(fold: str) -> tuple[int, str]:
    return (int(fold), "") if fold.isdecimal() else (-1, fold)
