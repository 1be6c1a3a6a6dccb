"""Who may write into a folder of predictions, and what."""

import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from nnseg import record
from nnseg.dataset import DatasetSpec, spec_to_json
from nnseg.errors import MachineError, UsageError
from nnseg.jobs import PredictionJob
from nnseg.labels import Labels
from nnseg.predicted_folder import Wanted, alone, find_jobs, withdraw_scores

ONE = DatasetSpec(
    channels=("CT",),
    labels=Labels(labels={"background": 0, "lesion": 1}),
    num_training=0,
    file_ending=".nii.gz",
)
OTHER = DatasetSpec(
    channels=("CT",),
    labels=Labels(labels={"background": 0, "vessel": 1}),
    num_training=0,
    file_ending=".nii.gz",
)
ALL = Wanted(maps=("entropy",), probabilities="chunks")


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_all_that_is_written_of_a_case_is_named_before() -> None:
    assert [path.name for path in ALL.files(Path("out/x.nrrd"))] == [
        "x.nrrd",
        "x_entropy.nrrd",
        "x_probabilities.b2nd",
        "x_probabilities.json",
    ]


def test_a_share_is_every_so_many_th_case(tmp_path: Path) -> None:
    images = touch(tmp_path / "in", *(f"{name}_0000.nii.gz" for name in "abcde"))
    jobs = find_jobs(ONE, images, tmp_path / "out", ALL, part=1, parts=2)
    assert [job.case_id for job in jobs] == ["b", "d"]
    with pytest.raises(UsageError, match="is one image; -num_parts shares out a folder"):
        find_jobs(ONE, images / "a_0000.nii.gz", tmp_path / "out", ALL, parts=2)


def test_a_case_that_is_called_as_the_map_of_another_is_refused(tmp_path: Path) -> None:
    images = touch(tmp_path / "in", "a_0000.nii.gz", "a_entropy_0000.nii.gz")
    assert len(find_jobs(ONE, images, tmp_path / "out", Wanted())) == 2
    for part in (0, 1):  # whichever share has which
        with pytest.raises(UsageError, match="of case a and of case a_entropy; rename one"):
            find_jobs(ONE, images, tmp_path / "out", ALL, part=part, parts=2)


def test_no_file_that_is_written_is_an_image(tmp_path: Path) -> None:
    image = touch(tmp_path, "a_entropy.nii.gz") / "a_entropy.nii.gz"
    target = tmp_path / "a.nii.gz"
    assert len(find_jobs(ONE, image, target, Wanted(), overwrite=True)) == 1
    with pytest.raises(UsageError, match=r"a_entropy\.nii\.gz: the output must not be the input"):
        find_jobs(ONE, image, target, ALL, overwrite=True)
    images = touch(tmp_path / "in")
    out = touch(tmp_path / "out", "a.nii.gz", "run.json")
    (images / "a_0000.nii.gz").symlink_to(out / "a.nii.gz")
    with pytest.raises(UsageError, match=r"a\.nii\.gz: the output must not be the input"):
        find_jobs(ONE, images, out, Wanted())


def test_results_keep_the_names_of_their_labels(tmp_path: Path) -> None:
    images = touch(tmp_path / "in", "a_0000.nii.gz")
    out = touch(tmp_path / "out", "run.json", "a.nii.gz", "a.nii.gz.proof.json")
    (out / "dataset.json").write_text(record.json_text(spec_to_json(ONE)))
    assert len(find_jobs(OTHER, images, out, Wanted())) == 1  # the only result is replaced
    touch(out, "b.nii.gz", "b.nii.gz.proof.json")
    assert len(find_jobs(ONE, images, out, Wanted())) == 1
    with pytest.raises(UsageError, match="names other labels, those of 1 results that would stay"):
        find_jobs(OTHER, images, out, Wanted())


def test_two_predictions_are_in_one_folder_at_once_only_if_neither_spoils_the_other(
    tmp_path: Path,
) -> None:
    def together(*runs: tuple[str, str]) -> None:
        with ExitStack() as stack:
            for run, command in runs:
                stack.enter_context(alone(tmp_path, run, command))

    together(("run_0_of_2", "A"), ("run_1_of_2", "A"))  # shares of a command
    together(("x.run", "A"), ("y.run", "B"))  # one image each
    together(("run", "A"))  # all of them have ended
    for first, second in (
        (("run", "A"), ("run", "A")),
        (("run", "A"), ("run_0_of_2", "B")),
        (("run_0_of_2", "A"), ("run_1_of_2", "B")),
        (("x.run", "A"), ("x.run", "A")),
        (("x.run", "A"), ("run", "B")),
        (("run", "A"), ("x.run", "B")),
    ):
        with pytest.raises(MachineError, match=rf"is in use by `A`, process {os.getpid()} on .*;"):
            together(first, second)


def test_who_was_killed_keeps_nobody_out(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from nnseg.predicted_folder import alone\n"
        "with alone(Path(sys.argv[1]), 'run', 'A'): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -9
    with alone(tmp_path, "run_0_of_2", "B"), alone(tmp_path, "run_1_of_2", "B"):
        pass


def test_scores_go_with_the_label_maps_that_they_are_of(tmp_path: Path) -> None:
    scores = tmp_path / "summary.json"
    scores.touch()
    job = PredictionJob(case_id="a", images=(), target=tmp_path / "a.nii.gz")
    withdraw_scores(tmp_path, [job])  # a new case beside those that are scored
    withdraw_scores(tmp_path, [])
    assert scores.exists()
    job.target.touch()
    withdraw_scores(tmp_path, [job])
    withdraw_scores(tmp_path, [job])
    assert not scores.exists()
