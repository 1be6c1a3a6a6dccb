"""One fold of a configuration as files have it: its plan, its split, its preprocessed cases."""

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256 as hash_of
from pathlib import Path
from typing import Any

from nnseg import record, store
from nnseg.commit import sha256
from nnseg.dataset import Case, Fold, find_training_cases, read_spec, select_fold
from nnseg.errors import MissingError
from nnseg.folders import Folders
from nnseg.plan import Configuration, Plan
from nnseg.preprocess import preprocessing_hash
from nnseg.splits import folds
from nnseg.validated import hash_of_split
from nnseg.verbs.planning import check_spec, load_plan
from nnseg.verbs.visit import last_change

MEMORY_SHARE = 0.3  # of the machine's, for preprocessed cases held by a training


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFold:
    """A fold of a configuration: its plan, its cases and its folder."""

    folders: Folders
    dataset: str
    plan_name: str
    plan: Plan
    configuration: Configuration
    fold: str
    split: Fold
    folder: Path

    @property
    def plan_hash(self) -> str:
        """Of all that the plan decides, without its reasons.

        Options of a network count where one is chosen: runs from before there were any go on.
        """
        data = record.to_json(replace(self.plan, decisions=()))
        for configuration in data["configurations"].values():
            architecture = configuration["architecture"]
            if all(choice is None for choice in architecture["options"].values()):
                del architecture["options"]
        return _hash(record.json_text(data))

    @property
    def split_hash(self) -> str:
        """Of which cases are to train on and which to validate with."""
        return hash_of_split(self.split)

    @property
    def data_hash(self) -> str:
        """Of what the cases were preprocessed from and how."""
        ids = sorted({*self.split.train, *self.split.val})
        made_from = tuple((name, store.read_record(self.store, name).made_from) for name in ids)
        return _hash(record.dumps(made_from))

    @property
    def store(self) -> Path:
        """The folder of its preprocessed cases.

        Raises:
            MissingError: It is not there.
        """
        folder = self.folders.store(self.dataset, self.plan_name, self.configuration.data)
        if not folder.is_dir():
            raise MissingError(
                f"{folder} does not exist; `nnseg preprocess -d {self.dataset} "
                f"-c {self.configuration.name}` makes it"
            )
        return folder


def find_fold(
    folders: Folders, dataset: str, plan_name: str, configuration: str, fold: str, seed: int
) -> PlannedFold:
    """Find a fold by its name, "0" to "4" or "all".

    Raises:
        MissingError: There is no such plan, configuration or dataset.
        DataError: The plan is not of the dataset as it is.
    """
    plan = load_plan(folders, dataset, plan_name)
    spec = read_spec(folders.spec_file(dataset))
    check_spec(plan, spec, str(folders.spec_file(dataset)))
    case_ids = [case.case_id for case in find_training_cases(folders, dataset, spec)]
    return PlannedFold(
        folders=folders,
        dataset=dataset,
        plan_name=plan_name,
        plan=plan,
        configuration=plan.configuration(configuration),
        fold=fold,
        split=select_fold(folds(folders, dataset), fold, case_ids),
        folder=folders.fold(dataset, plan_name, configuration, fold, seed),
    )


def replaced_cases(about: PlannedFold) -> tuple[str, ...]:
    """Name the cases of a fold whose raw files are no longer those that were preprocessed.

    Only files that were written or put there since then are read and compared.
    """
    members = {*about.split.train, *about.split.val}
    spec = read_spec(about.folders.spec_file(about.dataset))
    cases = find_training_cases(about.folders, about.dataset, spec)
    mine = [case for case in cases if case.case_id in members]
    return tuple(case.case_id for case in mine if _is_replaced(about.store, case))


def _is_replaced(folder: Path, case: Case) -> bool:
    try:
        if last_change(case.files) <= store.written_at(folder, case.case_id):
            return False
        raw = [sha256(path) for path in case.files]
    except OSError:  # it was read when it was preprocessed
        return True
    stored = store.read_record(folder, case.case_id)
    return stored.made_from != store.origin(raw, stored.data_hash)


def fit_in_memory(about: PlannedFold, case_ids: Iterable[str]) -> bool:
    """Say whether the preprocessed cases are few enough to stay in memory."""
    wanted = store.bytes_in_memory(about.store, case_ids, len(about.plan.channels))
    return wanted < MEMORY_SHARE * _memory()


def open_cases(about: PlannedFold, case_ids: Iterable[str], in_memory: bool) -> dict[str, Any]:
    """Open preprocessed cases of a fold, by their ids.

    Raises:
        MissingError: One has not been preprocessed.
        DataError: One is damaged, or was made from another plan.
    """
    configuration, plan = about.configuration, about.plan
    ids = sorted(case_ids)
    data_hash = preprocessing_hash(plan, plan.configuration(configuration.data))
    return {
        name: store.open_case(about.store, name, data_hash, in_memory=in_memory) for name in ids
    }


def _memory() -> int:
    """Give the bytes of memory of this machine, 0 where it does not tell."""
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _hash(text: str) -> str:
    return hash_of(text.encode()).hexdigest()
