"""Which label maps are probably wrong: the gains of `corrections`, held against the other cases.

A case that is merely hard agrees with its prediction less than others do, too. What tells an error
is that a simple correction of the label map would bring the agreement back, or that the model was
sure. docs/doctor.md counts what is found and the false alarms.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nnseg.suspects.corrections import Correction, Evidence, Place

FEWEST = 3  # cases; of two nobody can tell which one is odd
ENOUGH = 8  # cases of which a spread is taken as it is
MAD = 1.4826  # standard deviation of a normal distribution in median absolute deviations
FLOOR, FLOOR_OF_FEW = 0.02, 0.05  # of the spread of Dice
VOLUME_FLOOR = 0.2  # of the spread of the logarithm of a volume
POSITION_FLOOR = 2.0  # of the spread of a position, mm
SUSPICIOUS = 3.0  # the score from which a case is listed

# How much a gain says of an error. Hard cases have thick pieces that differ, so these say less than
# what no hard case explains; that a case agrees badly says least.
WEIGHTS = {"swap": 1.0, "mirror": 1.0, "shift": 1.0, "slices": 0.8, "missing": 0.6, "added": 0.6}
PARTS = {"slices", "missing", "added"}  # of a label; a model that is unsure may miss them itself
UNSURE = 0.4  # of bad agreement
SURE = 0.8  # of bad agreement and of parts, where the model promised a good one
ODD = 0.45  # of an odd volume or position, which tells more than that it agrees badly

_HEADS = {
    "swap": "agrees with the prediction far better",
    "mirror": "agrees with the prediction far better",
    "shift": "agrees with the prediction far better",
    "slices": "would agree with the prediction as other cases do",
    "missing": "would agree with the prediction better",
    "added": "would agree with the prediction better",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A case whose label map is probably wrong.

    `score` is how many robust standard deviations more the correction that `reason` names gains in
    Dice than in other cases, and less where a hard case could look alike.
    """

    case_id: str
    score: float
    label: str | None  # None: several, or all
    reason: str
    where: Place | None  # a voxel to look at, (z, y, x), image order
    also: tuple[str, ...] = ()  # further reasons, the weightiest first


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspects:
    """suspects.json: the cases whose label maps should be looked at, worst first."""

    suspects: tuple[Suspect, ...]
    cases: int  # that were looked at
    model: str = ""  # whose predictions they were compared with: PLAN/CONFIGURATION

    @property
    def is_judged(self) -> bool:
        """Whether there were cases enough to tell what is usual."""
        return self.cases >= FEWEST

    def of_case(self, case_id: str) -> Suspect | None:
        """Give the suspicion of a case, None where there is none."""
        return next((one for one in self.suspects if one.case_id == case_id), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Usual:
    """The middle and the spread of a figure over the cases."""

    middle: float
    spread: float


def rank(cases: Sequence[Evidence], *, least: float = SUSPICIOUS, model: str = "") -> Suspects:
    """List the cases whose label maps are probably wrong, worst first.

    Each figure is held against its median over the cases, in robust standard deviations (1.4826
    times the median absolute deviation, but at least a floor, a higher one below 8 cases). Medians
    bear errors in fewer than half of the cases. Of fewer than 3 cases none can be listed.

    Args:
        cases: What `corrections.gather` gave, of predictions that never saw the label maps.
        least: The score from which a case is listed.
        model: What predicted, for the record.
    """
    usual = _usual_dice(cases)
    gains = _usual_gains(cases)
    gaps = _usual_gaps(cases)
    volumes, positions = _usual_volumes(cases), _usual_positions(cases)
    listed = []
    for case in cases:
        found = [
            *_by_corrections(case, usual, gains, gaps, volumes),
            *_by_agreement(case, usual, gaps),
            *_by_volume(case, usual, volumes),
            *_by_position(case, usual, positions),
        ]
        found = sorted((s for s in found if s.score >= least), key=lambda s: -s.score)
        if found:
            first, *rest = found
            listed.append(_with_reasons(first, [one.reason for one in rest]))
    listed.sort(key=lambda one: (-one.score, one.case_id))
    return Suspects(suspects=tuple(listed), cases=len(cases), model=model)


def describe(found: Suspects) -> str:
    """Give the suspects as lines for people."""
    if not found.is_judged:
        maps = f"{found.cases} label map{'' if found.cases == 1 else 's'}"
        return (
            f"{maps} beside predictions: too few to judge, as nobody can tell what is usual; have "
            f"at least {FEWEST} cases predicted out of fold"
        )
    if not found.suspects:
        return f"none of {found.cases} label maps looks wrong beside its prediction"
    lines = [f"{len(found.suspects)} of {found.cases} label maps look wrong, worst first:"]
    for one in found.suspects:
        place = "" if one.where is None else f"; look at voxel {one.where} (z, y, x)"
        lines.append(f"{one.score:6.1f}  {one.case_id}: {one.reason}{place}")
    return "\n".join(lines)


def _with_reasons(suspect: Suspect, reasons: Sequence[str]) -> Suspect:
    return Suspect(
        case_id=suspect.case_id,
        score=round(suspect.score, 2),
        label=suspect.label,
        reason=suspect.reason,
        where=suspect.where,
        also=tuple(reasons),
    )


def _by_corrections(
    case: Evidence,
    usual: Mapping[str, _Usual],
    gains: Mapping[tuple[str, ...], _Usual],
    gaps: Mapping[str, _Usual],
    volumes: Mapping[str, _Usual],
) -> Iterator[Suspect]:
    """Suspect what a correction wins back: more than elsewhere, and up to what is usual."""
    for change in case.corrections:
        names = [name for name in change.labels or tuple(case.dice) if name in usual]
        if not names:
            continue
        middle = float(np.mean([usual[name].middle for name in names]))
        spread = float(np.mean([usual[name].spread for name in names]))
        gain = gains[_key(change)]
        excess = change.after - change.before - gain.middle
        reached = min(1.0, change.after / middle) if middle > 0 else 0.0
        weight = WEIGHTS[change.kind]
        if change.kind in PARTS:
            sure = _sureness(case, gaps, names[0])
            weight = weight if sure is None else SURE * min(1.0, max(0.0, sure / SUSPICIOUS))
            if change.before == 0 and names[0] in volumes:  # Dice is 0 however small it is
                weight *= min(1.0, change.volume_mm3 / float(np.exp(volumes[names[0]].middle)))
        else:
            spread = gain.spread  # of right label maps these gain nothing, however hard they are
        score = weight * excess / spread * reached
        yield Suspect(
            case_id=case.case_id,
            score=score,
            label=change.labels[0] if len(change.labels) == 1 else None,
            reason=(
                f"{_HEADS[change.kind]} {change.what}: Dice {change.after:.2f} instead of "
                f"{change.before:.2f}"
            ),
            where=change.where,
        )


def _by_agreement(
    case: Evidence, usual: Mapping[str, _Usual], gaps: Mapping[str, _Usual]
) -> Iterator[Suspect]:
    """Suspect what agrees worse than in other cases, more so where the model was sure."""
    for name, dice in case.dice.items():
        far = _distance(case, usual, name)
        score, told = UNSURE * far, ""
        if (sure := _sureness(case, gaps, name)) is not None:
            score = SURE * min(far, sure)
            told = f", and {case.expected_dice[name]:.2f} is what the model was sure of"
        yield Suspect(
            case_id=case.case_id,
            score=score,
            label=name,
            reason=(
                f"agrees with the prediction far less than other cases do: Dice {dice:.2f} of "
                f"{name}, where {usual[name].middle:.2f} is usual{told}"
            ),
            where=_place(case, name),
        )


def _by_volume(
    case: Evidence, usual: Mapping[str, _Usual], volumes: Mapping[str, _Usual]
) -> Iterator[Suspect]:
    """Suspect a size that no other case has, where the prediction does not agree."""
    for name, volume in case.volume_mm3.items():
        apart = float(np.log(volume)) - volumes[name].middle
        score = ODD * min(abs(apart) / volumes[name].spread, _distance(case, usual, name))
        yield Suspect(
            case_id=case.case_id,
            score=score,
            label=name,
            reason=(
                f"has {float(np.exp(apart)):.2g} times the usual volume of {name}, and the "
                "prediction does not agree"
            ),
            where=_place(case, name),
        )


def _by_position(
    case: Evidence, usual: Mapping[str, _Usual], positions: Mapping[str, tuple[_Usual, ...]]
) -> Iterator[Suspect]:
    """Suspect a place that no other case has, where the prediction does not agree."""
    for name, position in case.position_mm.items():
        pairs = zip(position, positions[name], strict=True)
        apart = [(at - one.middle) / one.spread for at, one in pairs]
        axis = int(np.abs(apart).argmax())
        far = position[axis] - positions[name][axis].middle
        score = ODD * min(abs(apart[axis]), _distance(case, usual, name))
        yield Suspect(
            case_id=case.case_id,
            score=score,
            label=name,
            reason=(
                f"has {name} {far:+.0f} mm along {'zyx'[axis]} from where it usually lies, and "
                "the prediction does not agree"
            ),
            where=_place(case, name),
        )


def _sureness(case: Evidence, gaps: Mapping[str, _Usual], name: str) -> float | None:
    """Say how far a label falls short of what the model promised, beyond what is usual.

    None where its probabilities are not kept.
    """
    if name not in gaps or name not in case.expected_dice or name not in case.dice:
        return None
    gap = case.expected_dice[name] - case.dice[name]
    return (gap - gaps[name].middle) / gaps[name].spread


def _distance(case: Evidence, usual: Mapping[str, _Usual], name: str) -> float:
    """Say how far a label agrees worse with the prediction than it usually does.

    Where it agrees as usual, whatever is odd is of the patient and no label error.
    """
    return (usual[name].middle - case.dice[name]) / usual[name].spread


def _place(case: Evidence, name: str) -> Place | None:
    """Give where to look for what is wrong with a label."""
    own = [change for change in case.corrections if change.labels == (name,)]
    return max(own, key=lambda change: change.after).where if own else case.where


def _key(change: Correction) -> tuple[str, ...]:
    """Name what a correction's gain is compared with: of a label the same, else its kind."""
    return (change.kind, *(change.labels if len(change.labels) == 1 else ()))


def _usual_dice(cases: Sequence[Evidence]) -> dict[str, _Usual]:
    return _by_name([case.dice for case in cases], _floor(cases))


def _usual_gains(cases: Sequence[Evidence]) -> dict[tuple[str, ...], _Usual]:
    """Give what each correction usually gains; a case that has no use for it counts as 0."""
    found: dict[tuple[str, ...], list[float]] = {}
    for case in cases:
        for change in case.corrections:
            gain = max(0.0, change.after - change.before)  # by how much it harms tells nothing
            found.setdefault(_key(change), []).append(gain)
    return {
        key: _usual(gains + [0.0] * max(0, len(cases) - len(gains)), _floor(cases))
        for key, gains in found.items()
    }


def _usual_gaps(cases: Sequence[Evidence]) -> dict[str, _Usual]:
    """Give by how much the model promises more than it holds."""
    gaps = [
        {name: case.expected_dice[name] - d for name, d in case.dice.items()}
        for case in cases
        if case.dice.keys() <= case.expected_dice.keys()
    ]
    return _by_name(gaps, _floor(cases))


def _usual_volumes(cases: Sequence[Evidence]) -> dict[str, _Usual]:
    logs = [{n: float(np.log(volume)) for n, volume in c.volume_mm3.items()} for c in cases]
    return _by_name(logs, VOLUME_FLOOR)


def _usual_positions(cases: Sequence[Evidence]) -> dict[str, tuple[_Usual, ...]]:
    axes = [
        _by_name([{n: p[axis] for n, p in c.position_mm.items()} for c in cases], POSITION_FLOOR)
        for axis in range(3)
    ]
    return {name: tuple(of_axis[name] for of_axis in axes) for name in axes[0]}


def _by_name(rows: Sequence[Mapping[str, float]], floor: float) -> dict[str, _Usual]:
    """Give the median and the robust spread of each name's values, over the rows that have it."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            found.setdefault(name, []).append(value)
    return {name: _usual(values, floor) for name, values in found.items()}


def _usual(values: Sequence[float], floor: float) -> _Usual:
    middle = float(np.median(values))
    spread = MAD * float(np.median(np.abs(np.array(values) - middle)))
    return _Usual(middle=middle, spread=max(spread, floor))


def _floor(cases: Sequence[Evidence]) -> float:
    return FLOOR if len(cases) >= ENOUGH else FLOOR_OF_FEW
