"""The story: each verb loads records, calls one stage, saves records and returns them.

raw/D -> fingerprint -> plan -> preprocess -> train -> predict -> evaluate. Everything that reads
or writes files of a dataset happens here; the stages themselves are functions of arrays.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from hashlib import sha256 as hash_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnseg import commit, record, report, store
from nnseg.axes import Segmentation
from nnseg.dataset import (
    Case,
    DatasetSpec,
    find_training_cases,
    read_spec,
    select_fold,
    spec_to_json,
)
from nnseg.doctor.mend import Mending
from nnseg.doctor.mend import mend as write_mended
from nnseg.errors import (
    DataError,
    MachineError,
    MissingError,
    NnsegError,
    PartlyDoneError,
    StoppedError,
    UsageError,
)
from nnseg.evaluate import (
    TOLERANCE_MM,
    CaseScores,
    Summary,
    from_nnunet,
    score_case,
    summarize,
    to_nnunet,
)
from nnseg.folders import (
    Folders,
    checkpoint_file,
    metrics_file,
    predicted_spec_file,
    progress_file,
    summary_file,
    validation_folder,
)
from nnseg.fsck.examine import Examination
from nnseg.fsck.examine import examine as examine_kept
from nnseg.intake.layout import lay_out
from nnseg.intake.proposal import Proposal, propose
from nnseg.jobs import ScoringJob, find_prediction_jobs, find_scoring_jobs
from nnseg.labels import Labels
from nnseg.lock import locked
from nnseg.parallel import OnProgress, for_each, raise_together
from nnseg.plan import Configuration, Plan
from nnseg.planning import (
    DEFAULT_PLAN,
    import_plans,
    load_plan,
    plan,
    plan_as_nnunet,
)
from nnseg.prepare import (
    check,
    examine,
    fingerprint,
    foretell,
    plan_and_preprocess,
    preprocess,
    up_to_date_fingerprint,
)
from nnseg.preprocess import preprocessing_hash
from nnseg.runlog import logged_run
from nnseg.splits import folds
from nnseg.volume import Volume, grid_fault, read_image, read_segmentation, side_files, write

if TYPE_CHECKING:
    from nnseg.checkpoint import Kind
    from nnseg.inference import Model
    from nnseg.recipe import TrainSettings
    from nnseg.resume import EpochReport, RunRecord
    from nnseg.train import Reserve, Task

__all__ = [
    "DEFAULT_PLAN",
    "check",
    "evaluate",
    "examine",
    "fingerprint",
    "folds",
    "foretell",
    "fsck",
    "import_plans",
    "init",
    "load_plan",
    "mend",
    "plan",
    "plan_and_preprocess",
    "plan_as_nnunet",
    "predict",
    "preprocess",
    "read_summary",
    "spec_for_evaluation",
    "train",
    "up_to_date_fingerprint",
    "validate",
    "validation_summary",
]

logger = logging.getLogger(__name__)

RESTORE_SECONDS = 1e-7  # a voxel and head: logits back to the file's grid, and scores
PLOT_EVERY = 30.0  # seconds; drawing takes a fifth of one
MEMORY_SHARE = 0.3  # of the machine's, for preprocessed cases held by a training


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


def train(
    folders: Folders,
    dataset: str,
    configuration: str,
    fold: str,
    *,
    settings: "TrainSettings | None" = None,
    plan_name: str = DEFAULT_PLAN,
    device: str | None = None,
    precision: str | None = None,
    compiled: bool | None = None,
    resume: bool | None = None,
    overwrite: bool = False,
    validate_after: bool = True,
    on_progress: OnProgress | None = None,
    on_epoch: "Callable[[EpochReport], None] | None" = None,
    say: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> Path:
    """Stage 4: train one fold of a configuration, then predict and score its validation cases.

    The same call goes on where a run stopped, and does nothing for a finished one.

    Args:
        folders: The data roots.
        dataset: Its folder's name.
        configuration: A name in the plan.
        fold: "0" to "4", or "all".
        settings: What may be chosen; None is nnU-Net's recipe.
        plan_name: The plan.
        device: "cpu", "cuda", ...; None is the best there is.
        precision: "fp32", "bf16" or "fp16"; None chooses.
        compiled: Let torch compile the network; None where that pays: it takes a minute.
        resume: True only goes on; None goes on or starts.
        overwrite: Start anew; the old run is kept aside.
        validate_after: False leaves out the full-volume validation.
        on_progress: Called after steps and cases.
        on_epoch: Called after every epoch.
        say: Gets a line for the user, such as where a run goes on.
        stop: Asked after every step; True saves and raises StoppedError.

    Returns:
        The folder of the fold: checkpoints, metrics.csv, progress.png, validation/.

    Raises:
        MissingError: Not planned, not preprocessed, or nothing to go on with.
        UsageError: The run there was made with other settings.
        StoppedError: It stopped with everything saved.
    """
    from nnseg.inference import load_model
    from nnseg.model.device import choose_execution
    from nnseg.recipe import TrainSettings, pays_to_compile
    from nnseg.resume import find_run
    from nnseg.train import Task

    started = time.monotonic()
    settings = settings or TrainSettings()
    the_plan = load_plan(folders, dataset, plan_name)
    config = the_plan.configuration(configuration)
    if config.previous is not None:
        raise UsageError(
            f"{configuration} is a cascade, which cannot be trained yet; train 3d_fullres"
        )
    folder = folders.fold(dataset, plan_name, configuration, fold, settings.seed)
    split = select_fold(folds(folders, dataset), fold, _case_ids(folders, dataset))
    plan_hash, split_hash = _hash(replace(the_plan, decisions=())), _hash(split)
    arguments = {"dataset": dataset, "configuration": configuration, "fold": fold}
    with ExitStack() as held:
        held.enter_context(locked(folder, f"nnseg train {dataset} {configuration} {fold}"))
        earlier = find_run(
            folder,
            settings,
            plan_hash=plan_hash,
            split_hash=split_hash,
            resume=resume,
            overwrite=overwrite,
            device=device,
            precision=precision,
        )
        if earlier is not None and settings.budget_seconds is None:  # --c need not repeat it
            settings = replace(settings, budget_seconds=earlier.settings.budget_seconds)
        done = earlier is not None and earlier.finished
        if done and (summary_file(validation_folder(folder)).is_file() or not validate_after):
            return folder
        run = held.enter_context(logged_run(folder, "train", arguments | asdict(settings)))
        run.outputs += [checkpoint_file(folder, kind) for kind in ("final", "best", "latest")]
        if not done:
            execution = choose_execution(
                earlier.execution.device if earlier else device,
                earlier.execution.precision if earlier else precision,
                compiled=pays_to_compile(settings, compiled),
            )
            if earlier is not None:  # it is usable here; what was found out then goes on
                execution = earlier.execution
                say(f"going on after epoch {earlier.epoch} of {earlier.course.epochs}")
            cases = _open_cases(folders, the_plan, plan_name, config, {*split.train, *split.val})
            task = Task(
                plan=the_plan,
                plan_hash=plan_hash,
                split_hash=split_hash,
                configuration=config,
                fold=fold,
                train_cases=[cases[case_id] for case_id in split.train],
                val_cases=[cases[case_id] for case_id in split.val],
                settings=settings,
                execution=execution,
                folder=folder,
            )
            logger.info("%s", execution)
            run.facts["execution"] = asdict(execution)
            reserve = _validation_reserve(task) if validate_after else None
            finished = _train_task(task, earlier, started, reserve, on_epoch, on_progress, stop)
            run.facts["execution"] = asdict(finished.execution)
            run.facts["epochs"] = finished.course.epochs
            run.facts["seconds"] = finished.seconds
            device, precision = finished.execution.device, finished.execution.precision
        if validate_after:
            model = load_model((folder,), device=device, precision=precision)
            val_cases = _validation_cases(folders, dataset, fold)
            summary = _validate(model, folder, val_cases, TOLERANCE_MM, on_progress, stop)
            run.facts["validation_dice"] = summary.foreground_mean.dice
    return folder


def _train_task(
    task: "Task",
    earlier: "RunRecord | None",
    started: float,
    reserve: "Reserve | None",
    on_epoch: "Callable[[EpochReport], None] | None",
    on_step: OnProgress | None,
    stop: Callable[[], bool],
) -> "RunRecord":
    """Train, and keep metrics.csv and progress.png up to date."""
    from nnseg.train import train as train_network

    history = list(earlier.history) if earlier else []
    metrics, plot = metrics_file(task.folder), progress_file(task.folder)

    def tell(epoch: "EpochReport") -> None:
        history.append(epoch)
        commit.write_whole(metrics, report.history_csv(history).encode())
        if not plot.is_file() or time.time() - plot.stat().st_mtime > PLOT_EVERY:
            report.plot_progress(history, plot)
        if on_epoch:
            on_epoch(epoch)

    finished = train_network(
        task,
        resume=earlier,
        started=started,
        reserve=reserve,
        on_epoch=tell,
        on_step=on_step,
        stop=stop,
    )
    report.plot_progress(finished.history, plot)
    return finished


def _validation_reserve(task: "Task") -> "Reserve":
    """Foretell the seconds of the full-volume validation from one tile, or as many as go at once.

    They are measured once. As the epochs get slower or faster than the first, so will tiles.
    """
    from nnseg.predict import count_tiles, tile_seconds

    patch = task.configuration.patch_size
    tiles = sum(count_tiles(case.shape, patch) for case in task.val_cases)
    voxels = sum(math.prod(case.placement.shape) for case in task.val_cases)
    rest = voxels * task.plan.labels.heads * RESTORE_SECONDS
    measured: list[float] = []  # seconds of a tile
    paces: list[float] = []  # seconds of a step, epoch by epoch

    def reserve(network: Any, mirror_axes: tuple[int, ...], step_seconds: float) -> float:
        if measured:  # the first step was a probe, whose seconds are of another kind
            paces.append(step_seconds)
        else:
            image = task.val_cases[0].image
            measured.append(tile_seconds(network, image, patch, task.execution, mirror_axes))
        slower = paces[-1] / paces[0] if paces else 1.0
        return (tiles * measured[0] + rest) * slower

    return reserve if task.val_cases else lambda *_: 0.0


def validate(
    folders: Folders,
    dataset: str,
    configuration: str,
    fold: str,
    *,
    seed: int = 0,
    plan_name: str = DEFAULT_PLAN,
    checkpoint: "Kind" = "final",
    device: str | None = None,
    precision: str | None = None,
    tolerance_mm: float = TOLERANCE_MM,
    on_progress: OnProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Predict a fold's validation cases whole, and score them: fold_N/validation/summary.json."""
    from nnseg.inference import load_model

    folder = folders.fold(dataset, plan_name, configuration, fold, seed)
    if not folder.is_dir():
        raise MissingError(
            f"{folder} does not exist; `nnseg train {dataset} {configuration} {fold}` makes it"
        )
    with locked(folder, f"nnseg train {dataset} {configuration} {fold} --val"):
        model = load_model((folder,), checkpoint, device=device, precision=precision)
        cases = _validation_cases(folders, dataset, fold)
        out = validation_folder(folder)
        with logged_run(out, "validate", {"checkpoint": checkpoint}) as run:
            run.facts["execution"] = asdict(model.execution)
            return _validate(model, folder, cases, tolerance_mm, on_progress, stop)


def _validation_cases(folders: Folders, dataset: str, fold: str) -> list[Case]:
    spec = read_spec(folders.spec_file(dataset))
    cases = find_training_cases(folders, dataset, spec)
    split = select_fold(folds(folders, dataset), fold, [case.case_id for case in cases])
    return [case for case in cases if case.case_id in set(split.val)]


def _validate(
    model: "Model",
    folder: Path,
    cases: Sequence[Case],
    tolerance_mm: float,
    on_progress: OnProgress | None,
    stop: Callable[[], bool],
) -> Summary:
    """Do the work of `validate`; the caller holds the lock of the fold's folder."""
    labels = model.plan.labels
    out = validation_folder(folder)
    out.mkdir(exist_ok=True)
    summary_file(out).unlink(missing_ok=True)  # it would be of other predictions until the end
    scored = []
    for number, case in enumerate(cases):
        if stop():
            raise StoppedError("stopped in the validation; the same command does it anew")
        volume, reference = _read_case(case, len(model.plan.channels))
        segmentation = model.predict(volume.image, volume.geometry.spacing)
        target = out / f"{case.case_id}{model.spec.label_ending}"
        write(target, segmentation, volume.geometry)
        scored.append(
            CaseScores(
                case_id=case.case_id,
                reference_file=str(case.label),
                prediction_file=str(target),
                scores=score_case(
                    segmentation,
                    reference,
                    labels,
                    volume.geometry.spacing,
                    tolerance_mm=tolerance_mm,
                ),
            )
        )
        if on_progress:
            on_progress("validating", number + 1, len(cases))
    summary = summarize(scored, labels, tolerance_mm=tolerance_mm)
    _write_summary(out, summary, labels)
    return summary


def predict(
    model: "Model",
    source: Path,
    target: Path,
    *,
    step: float = 0.5,
    mirror: bool = True,
    part: int = 0,
    parts: int = 1,
    overwrite: bool = True,
    on_progress: OnProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Path]:
    """Stage 5: segment every image of a folder, or one file.

    Args:
        model: What `load_model` gave.
        source: A folder of CASE_0000.nii.gz, ... or one file that holds all channels.
        target: A folder; a file if `source` is one.
        step: Distance of tiles, as a share of their edge.
        mirror: Average over mirrored images, too.
        part: Of `parts` equal shares of the cases, this one, counted from 0.
        parts: Number of shares.
        overwrite: False keeps outputs that are there.
        on_progress: Called after each case.
        stop: Asked after every case; True raises StoppedError.

    Returns:
        Case id to the file written.

    Raises:
        PartlyDoneError: Some cases failed; they are listed and the others are done.
        UsageError: `target` is `source`.
    """
    if parts > 1 and source.is_file():
        raise UsageError(f"{source} is one image; -num_parts shares out a folder of them")
    spec = model.spec
    jobs = find_prediction_jobs(source, target, spec)[part::parts]
    folder = target if source.is_dir() else jobs[0].target.parent
    name = "run" if parts == 1 else f"run_{part}_of_{parts}"
    if source.is_file():
        name = f"{jobs[0].case_id}.run"
    arguments = {"source": str(source), "target": str(target), "step": step, "mirror": mirror}
    written: dict[str, Path] = {}
    failed: dict[str, NnsegError] = {}
    with logged_run(folder, "predict", arguments, name=name) as run:
        run.facts["execution"] = asdict(model.execution)
        for number, job in enumerate(jobs):
            if stop():
                raise StoppedError(f"stopped after {number} of {len(jobs)} cases")
            try:
                if overwrite or not job.target.exists():
                    if job.fault:
                        raise DataError(job.fault)
                    volume = read_image(job.images, len(spec.channels))
                    segmentation = model.predict(
                        volume.image, volume.geometry.spacing, step=step, mirror=mirror
                    )
                    write(job.target, segmentation, volume.geometry)
                written[job.case_id] = job.target
                run.cases[job.case_id] = "done"
                run.inputs += job.images
                run.outputs += [job.target, *side_files(job.target)]
            except (DataError, MissingError, MachineError) as error:
                run.cases[job.case_id] = str(error)
                failed[job.case_id] = error
            if on_progress:
                on_progress("predicting", number + 1, len(jobs))
        if source.is_dir():
            text = record.json_text(spec_to_json(spec))
            commit.write_whole(predicted_spec_file(folder), text.encode())
        if failed and written:
            listed = "".join(f"\n  case {name}: {error}" for name, error in failed.items())
            raise PartlyDoneError(f"{len(failed)} of {len(jobs)} cases failed:{listed}")
        raise_together(failed, len(jobs))
    return written


def evaluate(
    reference: Path,
    prediction: Path,
    labels: Labels,
    file_ending: str,
    *,
    tolerance_mm: float = TOLERANCE_MM,
    workers: int | None = None,
    on_progress: OnProgress | None = None,
) -> Summary:
    """Stage 6: score the label maps of a folder, or one; write summary.json beside them.

    Raises:
        DataError: A prediction lacks its reference, lies on another grid, or cannot be read.
    """
    jobs = find_scoring_jobs(reference, prediction, file_ending)
    folder = prediction if prediction.is_dir() else prediction.parent
    if not os.access(folder, os.W_OK):
        raise MachineError(f"{folder} cannot be written; its summary.json goes there: copy it")

    def score(job: ScoringJob) -> CaseScores:
        truth, geometry = read_segmentation(job.reference)
        predicted, other = read_segmentation(job.prediction)
        if fault := grid_fault(geometry, other):
            raise DataError(
                f"{job.prediction} lies on another grid than {job.reference}: {fault}; predict "
                "again"
            )
        return CaseScores(
            case_id=job.case_id,
            reference_file=str(job.reference),
            prediction_file=str(job.prediction),
            scores=score_case(
                predicted, truth, labels, geometry.spacing, tolerance_mm=tolerance_mm
            ),
        )

    arguments = {"reference": str(reference), "prediction": str(prediction)}
    with logged_run(folder, "evaluate", arguments | {"tolerance_mm": tolerance_mm}) as run:
        scored = for_each(score, jobs, lambda job: job.case_id, workers, "scoring", on_progress)
        result = summarize([scored[job.case_id] for job in jobs], labels, tolerance_mm=tolerance_mm)
        _write_summary(folder, result, labels)
        run.inputs += [path for job in jobs for path in (job.reference, job.prediction)]
        run.outputs.append(summary_file(folder))
    return result


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


def spec_for_evaluation(
    reference: Path, prediction: Path, dataset_json: Path | None
) -> DatasetSpec:
    """Find the dataset.json that names the labels of two folders, or two files."""
    if dataset_json is not None:
        return read_spec(dataset_json)
    here = prediction if prediction.is_dir() else prediction.parent
    above = (reference if reference.is_dir() else reference.parent).parent
    for path in (predicted_spec_file(here), predicted_spec_file(above)):
        if path.is_file():
            return read_spec(path)
    raise MissingError(
        f"neither {here} nor {above} has a dataset.json that names the labels; give one by "
        "--dataset-json"
    )


def read_summary(folder: Path, labels: Labels) -> Summary:
    """Read the summary.json that an evaluation wrote into `folder`."""
    path = summary_file(folder)
    return from_nnunet(record.read_json(path, "nnseg evaluate"), labels, str(path))


def validation_summary(fold_folder: Path) -> Summary:
    """Read the scores of a trained fold's validation cases."""
    from nnseg.checkpoint import Checkpoint

    checkpoint = record.load(Checkpoint, checkpoint_file(fold_folder, "final"), "nnseg train")
    return read_summary(validation_folder(fold_folder), checkpoint.plan.labels)


def _read_case(case: Case, channels: int) -> tuple[Volume, Segmentation]:
    """Read a labelled case: its volume and its label map, which must lie on the same grid."""
    volume = read_image(case.images, channels)
    assert case.label is not None, "training cases have one"
    segmentation, geometry = read_segmentation(case.label)
    if fault := grid_fault(volume.geometry, geometry):
        raise DataError(f"{case.label}: lies on another grid than the image: {fault}")
    return volume, segmentation


def _case_id(case: Case) -> str:
    return case.case_id


def _case_ids(folders: Folders, dataset: str) -> list[str]:
    spec = read_spec(folders.spec_file(dataset))
    return [case.case_id for case in find_training_cases(folders, dataset, spec)]


def _open_cases(
    folders: Folders,
    the_plan: Plan,
    plan_name: str,
    configuration: Configuration,
    case_ids: Iterable[str],
) -> dict[str, store.TrainingCase]:
    """Open preprocessed cases, in memory where they fit into our share of it."""
    folder = folders.store(the_plan.dataset, plan_name, configuration.data)
    if not folder.is_dir():
        raise MissingError(
            f"{folder} does not exist; `nnseg preprocess -d {the_plan.dataset} "
            f"-c {configuration.name}` makes it"
        )
    ids = sorted(case_ids)
    data_hash = preprocessing_hash(the_plan, the_plan.configuration(configuration.data))
    wanted = store.bytes_in_memory(folder, ids, len(the_plan.channels))
    in_memory = wanted < MEMORY_SHARE * _memory()
    return {name: store.open_case(folder, name, data_hash, in_memory=in_memory) for name in ids}


def _memory() -> int:
    """Give the bytes of memory of this machine, 0 where it does not tell."""
    if not hasattr(os, "sysconf"):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _hash(value: Any) -> str:
    """Give a hash of a record's content."""
    return hash_of(record.dumps(value).encode()).hexdigest()


def _write_summary(folder: Path, summary: Summary, labels: Labels) -> None:
    text = record.json_text(to_nnunet(summary, labels))
    commit.write_whole(summary_file(folder), text.encode())
