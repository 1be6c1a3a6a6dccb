"""The story: each verb loads records, calls one stage, saves records and returns them.

raw/D -> fingerprint -> plan -> preprocess -> train -> predict -> evaluate. Everything that reads
or writes files of a dataset happens here; the stages themselves are functions of arrays.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnseg import commit, store
from nnseg.doctor.mend import Mending
from nnseg.doctor.mend import mend as write_mended
from nnseg.errors import (
    MissingError,
)
from nnseg.folders import (
    Folders,
)
from nnseg.fsck.examine import Examination
from nnseg.fsck.examine import examine as examine_kept
from nnseg.intake.layout import lay_out
from nnseg.intake.proposal import Proposal, propose
from nnseg.lock import locked
from nnseg.parallel import OnProgress
from nnseg.splits import folds
from nnseg.verbs.applying import apply_postprocessing
from nnseg.verbs.choosing import find_best
from nnseg.verbs.comparing import compare_results
from nnseg.verbs.ensembling import ensemble
from nnseg.verbs.info import info
from nnseg.verbs.measuring import check, examine, fingerprint, up_to_date_fingerprint
from nnseg.verbs.planning import (
    DEFAULT_PLAN,
    import_plans,
    load_plan,
    plan,
    plan_as_nnunet,
)
from nnseg.verbs.porting import export_model, import_model
from nnseg.verbs.postprocessing import decide_postprocessing
from nnseg.verbs.predicting import predict
from nnseg.verbs.prepare import foretell, plan_and_preprocess, preprocess
from nnseg.verbs.reporting import (
    outline_report,
    outline_report_on_predictions,
    report_on,
    report_on_predictions,
)
from nnseg.verbs.scoring import (
    evaluate,
    evaluate_test_set,
    find_evaluation,
    read_summary,
    spec_for_evaluation,
    spec_of_labels,
    validation_summary,
)
from nnseg.verbs.surveying import survey
from nnseg.verbs.suspecting import suspect
from nnseg.verbs.training import rehearse, train
from nnseg.verbs.validating import validate
from nnseg.verbs.verifying import verify

if TYPE_CHECKING:
    pass

__all__ = [
    "DEFAULT_PLAN",
    "apply_postprocessing",
    "check",
    "compare_results",
    "decide_postprocessing",
    "ensemble",
    "evaluate",
    "evaluate_test_set",
    "examine",
    "export_model",
    "find_best",
    "find_evaluation",
    "fingerprint",
    "folds",
    "foretell",
    "fsck",
    "import_model",
    "import_plans",
    "info",
    "init",
    "load_plan",
    "mend",
    "outline_report",
    "outline_report_on_predictions",
    "plan",
    "plan_and_preprocess",
    "plan_as_nnunet",
    "predict",
    "preprocess",
    "read_summary",
    "rehearse",
    "report_on",
    "report_on_predictions",
    "spec_for_evaluation",
    "spec_of_labels",
    "survey",
    "suspect",
    "train",
    "up_to_date_fingerprint",
    "validate",
    "validation_summary",
    "verify",
]

logger = logging.getLogger(__name__)


def init(
    folders: Folders,
    name: str,
    images: Sequence[str],
    labels: str,
    *,
    number: int | None = None,
    channels: Sequence[str] = (),
    label_names: Mapping[str, int] | None = None,
    copy: bool = False,
    save: bool = True,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Proposal:
    """Make a raw dataset of files as they lie, by links or copies; see `propose` and `lay_out`.

    Args:
        folders: The data roots.
        name: Of the dataset, without its number.
        images: A pattern for each channel, such as `scans/*_t1.nii.gz`.
        labels: The pattern of the label maps.
        number: Of the dataset; None is the next after the highest that is there.
        channels: Their names; left out, they are proposed.
        label_names: Integers by name; a label that is not named is label_N.
        copy: Copy the files instead of linking them.
        save: False proposes without writing anything.
        workers: Files read at once; None is one a core.
        on_progress: Called after each label map.

    Raises:
        UsageError: A name, a number or a pattern cannot be meant, or the dataset is there already.
        MissingError: A pattern matches nothing.
        DataError: Files cannot be read, or a labelled case lacks a channel.
        MachineError: The disk is full, or the folder cannot be written or hold links.
    """
    proposal = propose(
        folders,
        name,
        images,
        labels,
        number=number,
        channels=channels,
        label_names=label_names,
        workers=workers,
        on_progress=on_progress,
    )
    if save:
        lay_out(folders, proposal, copy=copy)
    return proposal


def fsck(
    folders: Folders,
    dataset: str,
    *,
    redo: bool = False,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Examination:
    """Go over all that is kept of a dataset: preprocessed data, models, records of runs.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        redo: Remove preprocessed cases that are damaged and what cut-off writes left, make those
            cases anew that are damaged, missing or out of date, and give what is found then.
            Checkpoints stay as they are.
        workers: Cases at once; None is one a core.
        on_progress: Called after each case.

    Raises:
        MissingError: Nothing is kept of the dataset.
        DataError: Cases could not be made anew, all listed; the others are done.
    """
    found = examine_kept(folders, dataset, workers=workers, on_progress=on_progress)
    if not redo or not (found.remakes or found.unfinished):
        return found
    for folder in {path.parent for path in found.unfinished}:
        commit.sweep_orphans(folder)
    for remake in found.remakes:
        folder = folders.store(dataset, remake.plan, remake.configuration)
        with locked(folder, f"nnseg fsck {dataset} --redo"):
            for case_id in remake.damaged:
                store.remove_case(folder, case_id)
    for name in dict.fromkeys(remake.plan for remake in found.remakes):
        stale = [remake.configuration for remake in found.remakes if remake.plan == name]
        preprocess(
            folders, dataset, stale, plan_name=name, workers=workers, on_progress=on_progress
        )
    return examine_kept(folders, dataset, workers=workers, on_progress=on_progress)


def mend(
    folders: Folders,
    dataset: str,
    target: Path | None = None,
    *,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Mending:
    """Write a corrected copy of a raw dataset, which stays as it is; see `nnseg.doctor.mend`.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        target: The copy's folder; None is DATASET_fixed beside the dataset.
        workers: Files at once; None is one a core.
        on_progress: Called after each case and file.

    Raises:
        MissingError: The dataset is not there.
        UsageError: There is something at `target`, or it cannot be meant.
        DataError: No case would be left.
        MachineError: The disk does not suffice.
    """
    source = folders.raw_folder(dataset)
    if not source.is_dir():
        raise MissingError(f"{source} does not exist; put the raw dataset there")
    place = target or folders.raw_folder(f"{dataset}_fixed")
    return write_mended(source, place, workers=workers, on_progress=on_progress)
