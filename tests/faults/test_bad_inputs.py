"""Every bad input is refused in words that help, or is used as what it means."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bad_inputs import (
    DATASET,
    RIGHT,
    BadInput,
    Data,
    Refused,
    Verdict,
    in_dataset,
    nifti,
    write_case,
)
from bad_inputs_datasets import spoilt_datasets
from bad_inputs_formats import other_files, stacks
from bad_inputs_json import spoilt_json
from bad_inputs_nifti import nifti_files
from bad_inputs_oracle import Judgement, table
from bad_inputs_runs import Predicting, Preparing
from tallies import Tally

FILES = (*nifti_files(), *other_files())
DATASETS = (*spoilt_datasets(), *spoilt_json(), *stacks())
PREPARED = (
    *(in_dataset(bad, role) for bad in FILES for role in bad.verdicts if role != "predicted"),
    *DATASETS,
)
READ = ("cut off", "bit rot", "another content", "header", "spacing and directions", "NRRD")
PREPROCESSED = tuple(
    bad for bad in PREPARED if bad.row in READ and isinstance(bad.verdict, Refused)
)
PREDICTED = tuple(
    replace(bad, verdict=bad.predicted, command="predict")
    for bad in DATASETS
    if bad.predicted is not None
)
ONE_IN = 20  # of the bad inputs of a row, that are judged in the quick form

pytestmark = pytest.mark.fault("B1.1", "B1.4", "B1.5", "S05", "S06", "S08", "S09", "S10")


@pytest.fixture(scope="module")
def preparing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Preparing]:
    runs = Preparing(tmp_path_factory.mktemp("preparing"))
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def predicting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Predicting]:
    runs = Predicting(tmp_path_factory.mktemp("predicting"))
    yield runs
    runs.close()


@pytest.fixture(scope="module")
def everything(tell: Callable[[str], None]) -> Iterator[list[Judgement]]:
    """Gathers what was judged, and tells it as a table at the end."""
    judged: list[Judgement] = []
    yield judged
    for line in table(judged):
        tell(line)


@pytest.fixture
def count(tally: Tally, everything: list[Judgement]) -> Callable[[Sequence[Judgement]], None]:
    """Counts what was judged, and fails where a rule was not kept."""

    def judged(ones: Sequence[Judgement]) -> None:
        everything.extend(ones)
        tally("bad inputs", sum(one.state == "OK" for one in ones), len(ones))
        wrong = [one.wrong for one in ones if one.wrong]
        assert not wrong, "\n".join(wrong)
        silent = [str(one.bad) for one in ones if not one.helps]
        assert not silent, f"no remedy: {silent}"

    return judged


def sample(bad: Sequence[BadInput], one_in: int) -> list[BadInput]:
    """Give every n-th of each row, the first among them."""
    rows = dict.fromkeys(one.row for one in bad)
    return [one for row in rows for one in [b for b in bad if b.row == row][::one_in]]


IN_PART_AND_WHOLE = pytest.mark.parametrize(
    "one_in", [ONE_IN, pytest.param(1, marks=pytest.mark.slow)]
)


@IN_PART_AND_WHOLE
def test_a_dataset_with_a_bad_input_is_refused_in_words_that_help_or_used_as_what_it_means(
    preparing: Preparing, count: Callable[[Sequence[Judgement]], None], one_in: int
) -> None:
    count([preparing.judge(bad) for bad in sample(PREPARED, one_in)])


@IN_PART_AND_WHOLE
def test_preprocessing_names_the_case_that_went_bad_after_planning_and_does_the_others(
    preparing: Preparing, count: Callable[[Sequence[Judgement]], None], one_in: int
) -> None:
    chosen = sample(PREPROCESSED, 4 * one_in)
    count([preparing.judge_after_plan(bad) for bad in chosen])


@pytest.mark.parametrize("kind", ["volumes", pytest.param("pictures", marks=pytest.mark.slow)])
def test_a_prediction_lists_every_bad_image_with_its_cause_and_does_the_good_ones(
    predicting: Predicting, count: Callable[[Sequence[Judgement]], None], kind: str
) -> None:
    files = [bad for bad in FILES if "predicted" in bad.verdicts and bad.drawn == kind]
    count(predicting.judge_together(kind, files))


@IN_PART_AND_WHOLE
def test_a_folder_of_odd_images_is_predicted_but_for_what_cannot_be_and_that_is_named(
    predicting: Predicting, count: Callable[[Sequence[Judgement]], None], one_in: int
) -> None:
    count([predicting.judge(bad) for bad in sample(PREDICTED, one_in)])


def test_what_judges_bad_inputs_notices_silence_wrong_numbers_and_words_without_help(
    preparing: Preparing,
) -> None:
    def state(spoil: Callable[[Data], object], verdict: Verdict, *names: str) -> str:
        bad = BadInput(name="of the oracle", row="", spoil=spoil, verdict=verdict, names=names)
        return preparing.judge(bad).state

    def cut(data: Data) -> object:
        return data.image().write_bytes(data.image().read_bytes()[:-9])

    def mirror(data: Data) -> None:
        data.change(label=data.cases["case_0"].label[::-1])

    refused = Refused(cause="cut off|is damaged")
    assert state(lambda data: None, RIGHT) == "OK"
    assert state(lambda data: None, refused) == "SILENT"
    assert state(mirror, RIGHT) == "SILENT"
    assert state(lambda data: data.change(spacing=(1.5, 1.0, 2.1)), RIGHT) == "SILENT"
    assert state(cut, refused, "case_0_0000.nii.gz") == "OK"
    assert state(cut, RIGHT) == "MESSAGE"
    assert state(cut, refused, "case_1_0000.nii.gz") == "MESSAGE"
    assert state(cut, Refused(cause="of another spacing")) == "MESSAGE"
    assert state(cut, Refused(cause="cut off|is damaged", code=6)) == "MESSAGE"


@pytest.mark.fault("R38")
def test_an_image_that_grows_while_it_is_read_is_named_and_not_used(
    preparing: Preparing, predicting: Predicting, count: Callable[[Sequence[Judgement]], None]
) -> None:
    growing = BadInput(
        name="a file grows",
        row="growing file",
        spoil=make_large,
        verdict=Refused(cause="changed while they were read"),
        names=("case_0_0000.nii",),
    )
    judged = []
    for run, folder in (
        (preparing, f"root/raw/{DATASET}/imagesTr"),
        (predicting, "spoilt/imagesTr"),
    ):
        code = 3 if run is preparing else 6
        verdict = replace(growing.verdict, code=code)
        with growth_of(run.scratch / folder / "case_0_0000.nii"):
            judged.append(run.judge(replace(growing, verdict=verdict)))
    count(judged)


def make_large(data: Data) -> None:
    """Make a case take a while to be read; what follows its first image means nothing."""
    label = np.zeros((200, 190, 50), np.uint8)
    label[20:50, 30:60, 10:20], label[60:80, 60:90, 30:40] = 1, 2
    value = np.random.default_rng(0).normal(loc=label).astype(np.float32)
    data.change(channels=(value, -value), label=label)
    write_case(data, "case_0")
    data.image().unlink()
    data.image().with_name("case_0_0000.nii").write_bytes(nifti(value, packed=False))


@contextmanager
def growth_of(path: Path) -> Iterator[None]:
    """Append a byte to a file a thousand times a second, as soon as it is there."""
    over = threading.Event()

    def grow() -> None:
        while not over.wait(0.001):
            with suppress(FileNotFoundError):
                file = os.open(path, os.O_WRONLY | os.O_APPEND)
                os.write(file, b".")
                os.close(file)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
