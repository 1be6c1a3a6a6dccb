"""What can be compared of a dataset's models, and on which cases that they were not trained on.

Read `survey` first. No image is read here: what is missing is said before the work begins.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnseg import record
from nnseg.choose import Candidate, ChosenModel, combine
from nnseg.dataset import DatasetSpec, Fold, find_training_cases, read_spec
from nnseg.dataset.folds import FOLD_NUMBER
from nnseg.errors import DataError, MissingError, UsageError
from nnseg.folders import (
    Folders,
    checkpoint_file,
    folds_by_seed,
    trained_configurations,
    validation_folder,
)
from nnseg.parallel import some
from nnseg.plan import Plan, differing_key
from nnseg.splits import folds as folds_of
from nnseg.validated import (
    final_weights,
    is_known,
    is_validated,
    prediction_fault,
    retrain,
    seen_before,
    why_not_held_out,
)
from nnseg.verbs.planning import DEFAULT_PLAN

NAMED = 8  # folds that a message names; more are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """The folds of a configuration that were trained with one seed."""

    dataset: str
    plan: str
    configuration: str
    seed: int = 0
    folds: dict[str, Path] = field(default_factory=dict)  # by number: the folder of each

    @property
    def folder(self) -> str:
        """The folder of its configuration, relative to that of the dataset's models."""
        return f"{self.plan}/{self.configuration}"

    def command(self, fold: str, *, validate: bool = False) -> str:
        """Give the command that trains a fold of it, or validates it."""
        words = ["nnseg train", self.dataset, self.configuration, fold]
        words += ["--val"] if validate else []
        words += [] if self.plan == DEFAULT_PLAN else ["-p", self.plan]
        words += ["--seed", str(self.seed)] if self.seed else []
        return f"`{' '.join(words)}`"

    def called(self, fold: str) -> str:
        """Give a fold's name as a choice has it."""
        return f"{fold}_seed{self.seed}" if self.seed else fold


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What is compared, and on what."""

    dataset: str
    spec: DatasetSpec
    models: dict[str, TrainedModel]  # by name, which is that of the candidate it is by itself
    candidates: tuple[Candidate, ...]
    folds: tuple[str, ...]  # that all models have
    cases: dict[str, str]  # to the fold that held them out
    references: dict[str, Path]  # by case: its label map
    notes: tuple[str, ...]  # what is left out, and why

    @property
    def fold_folders(self) -> tuple[Path, ...]:
        """The folders of all folds whose predictions are compared."""
        return tuple(model.folds[fold] for model in self.models.values() for fold in self.folds)

    def model_of(self, member: ChosenModel) -> str:
        """Give the name of the model that a member of a candidate is."""
        return next(
            candidate.name
            for candidate in self.candidates
            for alone in candidate.members
            if len(candidate.members) == 1
            and (alone.folder, alone.folds) == (member.folder, member.folds)
        )

    def map_file(self, model: str, case_id: str) -> Path:
        """Give the label map that a model predicted of a case that it was not trained on."""
        fold = self.models[model].folds[self.cases[case_id]]
        return validation_folder(fold) / f"{case_id}{self.spec.label_ending}"

    def __str__(self) -> str:
        names = ", ".join(candidate.name for candidate in self.candidates)
        first = f"{len(self.candidates)} candidates on {len(self.cases)} cases of "
        notes = "".join(f"\nnote: {note}" for note in self.notes)
        return f"{first}{_folds(self.folds)}: {names}{notes}"

    def to_json(self) -> dict[str, Any]:
        """Give what is compared as plain JSON values."""
        return {
            "dataset": self.dataset,
            "candidates": [candidate.name for candidate in self.candidates],
            "folds": list(self.folds),
            "cases": len(self.cases),
            "notes": list(self.notes),
        }


def survey(
    folders: Folders,
    dataset: str,
    *,
    plans: Sequence[str] = (DEFAULT_PLAN,),
    configurations: Sequence[str] = (),
    folds: Sequence[str] = (),
    seeds: Sequence[int] = (),
    most_members: int = 2,
    weights: bool = False,
) -> Survey:
    """Find what can be compared, and make sure that all of it is there.

    Every configuration is compared on the folds that all of them have, by what the end of a
    training, or `nnseg train ... --val`, predicts of the cases that a fold held out. A case that
    several folds held out counts once, in the first. A seed is a model of its own if it has all
    these folds. Each predicts with all its folds that are validated, or with those asked for.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        plans: Whose models are compared.
        configurations: Of these plans; none are all that are trained.
        folds: Numbers of folds; none are all that every configuration has.
        seeds: Of the trainings that are compared; none are all that are there.
        most_members: How many models may predict together; 1 compares them one by one.
        weights: Whether one of several models may count twice.

    Raises:
        MissingError: A model is not trained, or its validation or probabilities are missing, of
            other weights, or of cases that it was trained on before the folds changed or that the
            weights it started from were; the commands that make them are named.
        DataError: A model is of another dataset.json than today's.
        UsageError: An argument cannot be meant.
    """
    if most_members < 1:
        raise UsageError(f"most_members is {most_members}; it must be at least 1")
    asked = _numbers(folds)
    spec = read_spec(folders.spec_file(dataset))
    maps = {
        case.case_id: case.label
        for case in find_training_cases(folders, dataset, spec)
        if case.label is not None
    }
    splits = folds_of(folders, dataset)
    trained = _trained(folders, dataset, plans, configurations, seeds, len(splits))
    common, chosen, notes = _comparable(trained, asked)
    models = _named(chosen)
    orders = {name: _order(name, model, common, spec) for name, model in models.items()}
    if most_members > 1 and len(set(orders.values())) > 1:
        notes.append(
            "models whose plans have the axes in different orders are not averaged with each other"
        )
    cases, again = _held_out(splits, common)
    if again:
        notes.append(f"{some(again)}: held out by several folds, of which the first one counts")
    notes += _unknown(models, common)
    trained_here = _by_weights(folders.models_folder(dataset))
    notes += _unknown_starts(models, common, trained_here)
    result = Survey(
        dataset=dataset,
        spec=spec,
        models=models,
        candidates=combine(
            [_alone(name, model, common, asked) for name, model in models.items()],
            most_members=most_members,
            weights=weights,
            may_join=lambda one, other: orders[one.name] == orders[other.name],
        ),
        folds=common,
        cases=cases,
        references={case_id: maps[case_id] for case_id in cases},
        notes=tuple(notes),
    )
    _check_predictions(result, splits, trained_here)
    return result


def _numbers(folds: Sequence[str]) -> tuple[str, ...]:
    """Give the numbers of folds that were asked for, each once.

    Raises:
        UsageError: One is no number: a fold `all`, or one of a seed.
    """
    for fold in folds:
        if fold == "all":
            raise UsageError(
                "fold all held no case out to compare models by; give numbers of folds"
            )
        if not fold.isdecimal():
            raise UsageError(
                f"there is no fold {fold!r} to compare models by; give numbers: a seed is a model "
                "of its own"
            )
    return tuple(dict.fromkeys(str(int(fold)) for fold in folds))


def _trained(
    folders: Folders,
    dataset: str,
    plans: Sequence[str],
    configurations: Sequence[str],
    seeds: Sequence[int],
    count: int,
) -> list[TrainedModel]:
    """List the models of some plans, configurations and seeds that have a numbered fold of `count`.

    Raises:
        MissingError: A plan or a configuration that was named has none.
    """
    found = []
    for plan in dict.fromkeys(plans):
        named = [folders.model(dataset, plan, name) for name in dict.fromkeys(configurations)]
        for place in named or trained_configurations(folders.plan_models(dataset, plan)):
            for seed, trained in folds_by_seed(place).items():
                if seeds and seed not in seeds:
                    continue
                numbers = sorted(int(fold) for fold in trained if FOLD_NUMBER.fullmatch(fold))
                folds = {str(n): trained[str(n)] for n in numbers if n < count}
                if folds:
                    found.append(
                        TrainedModel(
                            dataset=dataset,
                            plan=plan,
                            configuration=place.name,
                            seed=seed,
                            folds=folds,
                        )
                    )
    with_plan = {model.plan for model in found}
    with_name = {model.configuration for model in found}
    any_of = next(iter(configurations), "CONFIGURATION")
    untrained = [(plans[0], name) for name in configurations if name not in with_name]
    untrained += [(plan, any_of) for plan in plans if plan not in with_plan]
    for plan, name in untrained[:1]:
        wanted = TrainedModel(
            dataset=dataset, plan=plan, configuration=name, seed=next(iter(seeds), 0)
        )
        raise MissingError(
            f"{folders.models_folder(dataset) / wanted.folder}: no fold there has held cases out "
            f"that models could be compared by; {wanted.command('0')} trains one"
        )
    return found


def _comparable(
    trained: Sequence[TrainedModel], asked: Sequence[str]
) -> tuple[tuple[str, ...], list[TrainedModel], list[str]]:
    """Give the folds to compare on, the models that have them, and what is to be said of others.

    Raises:
        MissingError: A configuration lacks a fold that was asked for, or no fold is of all.
    """
    groups: dict[str, list[TrainedModel]] = {}
    for model in trained:
        groups.setdefault(model.folder, []).append(model)
    bases = [max(group, key=lambda model: _overlap(model, asked)) for group in groups.values()]
    lacking = [model.command(fold) for model in bases for fold in asked if fold not in model.folds]
    if lacking:
        raise MissingError(
            f"not every model has these folds; {', '.join(lacking)} would train them"
        )
    common = tuple(asked) or tuple(
        fold for fold in bases[0].folds if all(fold in model.folds for model in bases)
    )
    if not common:
        there = "; ".join(f"{model.folder} has {_folds(tuple(model.folds))}" for model in bases)
        first = next(iter(bases[0].folds))
        more = ", ".join(model.command(first) for model in bases if first not in model.folds)
        raise MissingError(f"no fold is trained of all models: {there}; {more} would give one")
    common = tuple(sorted(common, key=int))
    notes = []
    for model in [] if asked else bases:
        if extra := tuple(fold for fold in model.folds if fold not in common):
            notes.append(
                f"{model.folder}: {_folds(extra)} not scored, as not every configuration has "
                f"{'it' if len(extra) == 1 else 'them'}"
            )
    models = []
    for model in trained:
        if all(fold in model.folds for fold in common):
            models.append(model)
        else:
            notes.append(
                f"{model.folder} with seed {model.seed}: left out, as it has "
                f"{_folds(tuple(model.folds))} only"
            )
    return common, models, notes


def _overlap(model: TrainedModel, asked: Sequence[str]) -> int:
    """Say how many of the folds asked for, or of all, a model has."""
    return sum(fold in model.folds for fold in asked) if asked else len(model.folds)


def _named(models: Sequence[TrainedModel]) -> dict[str, TrainedModel]:
    """Give models by names as short as tell them apart."""
    several = len({model.plan for model in models}) > 1
    named = {}
    for model in models:
        name = model.folder if several else model.configuration
        named[f"{name} seed {model.seed}" if model.seed else name] = model
    return named


def _alone(
    name: str, model: TrainedModel, common: Sequence[str], asked: Sequence[str]
) -> Candidate:
    """Give the candidate that a model is by itself, with the folds that it would predict with."""
    folds = [
        fold
        for fold, folder in model.folds.items()
        if fold in common or (not asked and is_validated(folder))
    ]
    member = ChosenModel(folder=model.folder, folds=tuple(model.called(fold) for fold in folds))
    return Candidate(name=name, members=(member,))


def _order(
    name: str, model: TrainedModel, common: Sequence[str], spec: DatasetSpec
) -> tuple[int, ...]:
    """Give the order of axes of a model, by which others must predict to be averaged with it.

    Raises:
        DataError: A fold of it is damaged, or of other channels or labels than today's.
    """
    orders = []
    for fold in common:
        path = checkpoint_file(model.folds[fold], "final")
        content = record.read_json(path)
        if not isinstance(content, dict) or "plan" not in content:
            raise DataError(f"{path}: is no checkpoint; restore it, or train this fold anew")
        plan = record.parse(Plan, content["plan"], str(path))
        if difference := differing_key(plan, spec):
            raise DataError(
                f"{path}: in today's dataset.json {difference} when {name} was trained; train it "
                "anew, or leave it out by -c and -p"
            )
        orders.append(tuple(plan.order))
    return orders[0]


def _held_out(
    splits: Sequence[Fold], common: Sequence[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Give the first fold that held each case out, and the cases that several did."""
    cases: dict[str, str] = {}
    again = set()
    for fold in common:
        for case_id in splits[int(fold)].val:
            if cases.setdefault(case_id, fold) != fold:
                again.add(case_id)
    return dict(sorted(cases.items())), tuple(sorted(again))


def _unknown(models: Mapping[str, TrainedModel], common: Sequence[str]) -> Iterator[str]:
    """Say of which models no record tells what they were trained on."""
    for model in models.values():
        if unknown := tuple(fold for fold in common if not is_known(model.folds[fold])):
            yield (
                f"{model.folder}: no record says which cases {_folds(unknown)} trained on; that "
                "today's folds are those of then is taken for granted"
            )


def _by_weights(models: Path) -> dict[str, Path]:
    """Give the folders of all trained folds of a dataset by their final weights."""
    folds = (
        fold
        for plan in (sorted(models.glob("[!.]*/")) if models.is_dir() else ())
        for place in trained_configurations(plan)
        for of_seed in folds_by_seed(place).values()
        for fold in of_seed.values()
    )
    return {weights: fold for fold in folds if (weights := final_weights(fold)) is not None}


def _unknown_starts(
    models: Mapping[str, TrainedModel], common: Sequence[str], trained: Mapping[str, Path]
) -> Iterator[str]:
    """Say which models started from weights of which no record tells what they had seen."""
    for model in models.values():
        if unknown := tuple(
            fold for fold in common if not seen_before(model.folds[fold], (), trained)[1]
        ):
            yield (
                f"{model.folder}: no record here says on which cases the weights were trained that "
                f"{_folds(unknown)} started from; that they held out those compared is taken for "
                "granted"
            )


def _check_predictions(found: Survey, splits: Sequence[Fold], trained: Mapping[str, Path]) -> None:
    """Make sure that all predictions are there, of the models' final weights and out of fold.

    Raises:
        MissingError: Some are not; the commands that make them are named.
    """
    averaged = {
        member.folder
        for candidate in found.candidates
        if len(candidate.members) > 1
        for member in candidate.members
    }
    faults = []
    for name, model in found.models.items():
        for fold in found.folds:
            cases = [case_id for case_id, of in found.cases.items() if of == fold]
            maps = {case_id: found.map_file(name, case_id) for case_id in cases}
            if fault := why_not_held_out(model.folds[fold], cases, splits[int(fold)]):
                again = retrain(model.dataset, model.plan, model.configuration, fold, model.seed)
                faults.append(f"{model.folds[fold]}: {fault}; {again}")
            elif fault := seen_before(model.folds[fold], cases, trained)[0]:
                faults.append(
                    f"{model.folds[fold]}: {fault}; train it anew without --pretrained or from "
                    "weights that held them out, or leave it out by -c and -p"
                )
            elif fault := prediction_fault(
                model.folds[fold], maps, compact=model.folder in averaged
            ):
                command = model.command(fold, validate=True)
                faults.append(f"{model.folds[fold]}: {fault}; {command} makes it up")
    if faults:
        more = f"\n  and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
        raise MissingError(
            "models cannot be compared yet:"
            + "".join(f"\n  {one}" for one in faults[:NAMED])
            + more
        )


def _folds(folds: Sequence[str]) -> str:
    """Name folds.

    >>> _folds(("0",)), _folds(("0", "2"))
    ('fold 0', 'folds 0, 2')
    """
    return f"fold{'' if len(folds) == 1 else 's'} {', '.join(folds)}"
