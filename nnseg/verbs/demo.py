"""The whole job in one call: data, plan, preprocessing, training, prediction, scores.

On built-in phantoms it ends with images that the network has not seen, and says how far a mere
threshold would have come; on a raw dataset it ends with the scores of the first fold.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnseg import phantom, pipeline, report
from nnseg.commit import write_whole
from nnseg.dataset import find_cases, read_spec
from nnseg.errors import StoppedError, UsageError
from nnseg.evaluate import Summary
from nnseg.folders import Folders, find_dataset
from nnseg.parallel import OnProgress
from nnseg.scores.tables import describe_scores
from nnseg.volume import read_image, read_segmentation

if TYPE_CHECKING:
    from nnseg.learning.resume import EpochReport

DATASET = "Dataset001_Phantoms"
VARIANT = "mri"
TRAINING_CASES, TEST_CASES = 32, 8
CONFIGURATION = "3d_fullres"
MARK = "demo.txt"  # says that a folder is a demo's own
RESERVE = 12.0  # seconds for what comes before and after the training

NEXT = """\
What now, with data of your own:
  1. put them in raw/Dataset002_Mine: imagesTr/CASE_0000.nii.gz (a file for each channel),
     labelsTr/CASE.nii.gz, dataset.json (docs/tutorial.md shows one)
  2. nnseg doctor 2                          every problem of the files, with its remedy
  3. nnseg run 2 --budget 8h                 plans, trains, chooses the best models, reports
  4. nnseg_predict -i IN -o OUT -d 2         with the models that were chosen
"""

Say = Callable[[str], None]


def run(
    folder: Path,
    *,
    budget_seconds: float = 180.0,
    real: Path | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    say: Say = lambda text: None,
    on_progress: OnProgress | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Summary:
    """Do the whole job within a budget of wall clock.

    Args:
        folder: Gets raw/, preprocessed/ and results/; what an earlier demo left is replaced.
        budget_seconds: For everything, from now.
        real: A raw dataset to use instead of phantoms; it is only read.
        seed: Of phantoms and training.
        device: Where to train; None is the best there is.
        precision: As for `pipeline.train`.
        say: Gets each line for the user.
        on_progress: Called as work goes on.
        stop: True ends the demo with StoppedError.

    Returns:
        The scores: of new phantoms, or of the validation cases of fold 0 of `real`.

    Raises:
        UsageError: The budget is too short to train at all, or the folder holds files that no
            demo made.
    """
    from nnseg.learning.recipe import TrainSettings

    started = time.monotonic()
    _check_options(folder, budget_seconds, real)
    _claim(folder)
    folders, dataset = _take_data(Folders.of_root(folder), real, seed, say)
    configuration = _prepare(folders, dataset, say, on_progress)
    if stop():
        raise StoppedError("the demo was stopped; it begins anew next time")

    left = budget_seconds - (time.monotonic() - started) - RESERVE
    if left < RESERVE:
        raise UsageError(
            f"of the budget of {budget_seconds:.0f} s, {left:.0f} s are left to train; give more"
        )
    say(f"5/6 training for {left:.0f} s")
    fold = "0" if len(pipeline.folds(folders, dataset)) > 0 else "all"
    trained = pipeline.train(
        folders,
        dataset,
        configuration,
        fold,
        settings=TrainSettings(budget_seconds=left, seed=seed),
        device=device,
        precision=precision,
        validate_after=real is not None,
        on_progress=on_progress,
        on_epoch=lambda epoch: say(_describe(epoch)),
        stop=stop,
    )
    if real is not None:
        summary = pipeline.validation_summary(trained)
        say(f"6/6 scores of the {len(summary.cases)} validation cases of fold {fold}")
        say(describe_scores(summary))
        page = pipeline.report_on_predictions(folders, trained, on_progress=on_progress, stop=stop)
    else:
        say(f"6/6 predicting and scoring {TEST_CASES} phantoms that it has never seen")
        summary = _test(
            folders, trained, folder / "predictions", device, precision, on_progress, stop
        )
        say(describe_scores(summary))
        baseline = _threshold(folders)
        say(f"a threshold (Otsu) with the largest component: Dice {baseline:.4f}")
        page = pipeline.report_on_predictions(
            folders, folder / "predictions", on_progress=on_progress, stop=stop
        )
    say(f"the report, for any browser: {page}")
    say(f"done in {report.duration(time.monotonic() - started)}; all of it is in {folder}\n")
    say(NEXT.rstrip())
    return summary


def _check_options(folder: Path, budget_seconds: float, real: Path | None) -> None:
    """Refuse a budget that is too short to train at all, and a dataset that cannot be taken."""
    if budget_seconds < 2 * RESERVE:
        raise UsageError(
            f"a budget of {budget_seconds:.0f} s is too short; give {2 * RESERVE:.0f}s or more"
        )
    if real is not None:
        real = real.resolve()
        if not real.is_dir() or real.is_relative_to(folder.resolve()):
            raise UsageError(f"--real {real}: give a raw dataset outside {folder}")


def _claim(folder: Path) -> None:
    """Remove what an earlier demo left in `folder`; what others have there is never touched."""
    mark = folder / MARK
    if folder.is_dir() and any(folder.iterdir()) and not mark.is_file():
        raise UsageError(
            f"{folder} holds files that no demo made; give an empty or a new folder by -o, or "
            "remove them"
        )
    for name in ("raw", "preprocessed", "results", "predictions"):
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
    write_whole(mark, b"`nnseg demo` made this folder; the next demo replaces what is in it.\n")


def _take_data(folders: Folders, real: Path | None, seed: int, say: Say) -> tuple[Folders, str]:
    """Draw phantoms, or find the dataset `real`: where it lies, and its name."""
    if real is not None:
        real = real.resolve()
        found = find_dataset(folders, str(real))
        say(f"1/6 taking {real}")
        return found
    say(f"1/6 drawing {TRAINING_CASES} phantoms to train on and {TEST_CASES} to test on")
    raw = folders.raw_folder(DATASET)
    phantom.write_dataset(raw, VARIANT, cases=TRAINING_CASES, test_cases=TEST_CASES, seed=seed)
    return folders, DATASET


def _prepare(folders: Folders, dataset: str, say: Say, on_progress: OnProgress | None) -> str:
    """Measure, plan and preprocess a dataset: the configuration to train."""
    say("2/6 examining and measuring the data")
    pipeline.fingerprint(folders, dataset, on_progress=on_progress)
    say("3/6 planning")
    plan = pipeline.plan(folders, dataset)
    configuration = CONFIGURATION if CONFIGURATION in plan.configurations else "2d"
    chosen = plan.configuration(configuration)
    say(f"    {configuration}: patch {chosen.patch_size}, batch {chosen.batch_size}")
    say("4/6 preprocessing")
    pipeline.preprocess(folders, dataset, (configuration,), on_progress=on_progress)
    return configuration


def _describe(epoch: "EpochReport") -> str:
    return "    " + report.describe_epoch(epoch, (epoch.epochs - epoch.epoch) * epoch.seconds)


def _test(
    folders: Folders,
    trained: Path,
    out: Path,
    device: str | None,
    precision: str | None,
    on_progress: OnProgress | None,
    stop: Callable[[], bool],
) -> Summary:
    """Predict the test images and score them."""
    from nnseg.predictor import load

    raw = folders.raw_folder(DATASET)
    predictor = load(trained, device=device, precision=precision)
    pipeline.predict(predictor, raw / "imagesTs", out, on_progress=on_progress, stop=stop)
    spec = read_spec(folders.spec_file(DATASET))
    return pipeline.evaluate(raw / "labelsTs", out, spec.labels, spec.file_ending)


def _threshold(folders: Folders) -> float:
    """Give the mean Dice of the threshold baseline on the test images."""
    raw = folders.raw_folder(DATASET)
    spec = read_spec(folders.spec_file(DATASET))
    scores = []
    for case in find_cases(raw / "imagesTs", raw / "labelsTs", spec):
        assert case.label is not None, "phantoms have labels"
        segmentation, _ = read_segmentation(case.label)
        image = read_image(case.images).image
        scores.append(phantom.threshold_baseline(image, segmentation, spec.labels))
    return float(np.mean(scores))
