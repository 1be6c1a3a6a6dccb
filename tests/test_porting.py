"""Models come in and go out whole or not at all, by the two verbs and by the command line."""

import dataclasses
import errno
import json
import logging
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from nnseg import cli, commit, record
from nnseg.checkpoint import load_model, save_model
from nnseg.commit import sha256
from nnseg.dataset import DatasetSpec, spec_to_json
from nnseg.errors import DataError, MachineError, MissingError, PlanError, UsageError
from nnseg.exchange.nnunet_writing import plans_to_json
from nnseg.fingerprint import Fingerprint
from nnseg.folders import Folders, fold_folder, trained_configurations
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.model.architecture import Architecture
from nnseg.networks.build import build_network
from nnseg.plan import Plan, make_plan
from nnseg.runlog import RunReport
from nnseg.verbs import porting

DATASET = "Dataset900_Test"
CASCADE = ("3d_cascade_fullres", "3d_lowres")
SPEC = DatasetSpec(
    channels=("T1",),
    labels=Labels(labels={"background": 0, "left": 1, "right": 2}),
    num_training=20,
    file_ending=".nii.gz",
)

Run = Callable[..., tuple[int, str, str]]


def tiny_plan() -> Plan:
    """A cascade and its stage before, with networks of a few weights."""
    intensity = Intensity(
        mean=3, median=3, std=2, min=0, max=9, percentile_00_5=1, percentile_99_5=8
    )
    measured = Fingerprint(
        spacings=((2.5, 1.0, 0.75),),
        shapes=((20, 36, 40),),
        intensities=(intensity,),
        median_relative_size=1.0,
    )
    plan = make_plan(SPEC, measured, dataset=DATASET)
    network = Architecture(
        network="plain",
        dimensions=3,
        features=(2, 3),
        kernel_sizes=((1, 3, 3),) * 2,
        strides=((1, 1, 1), (1, 2, 2)),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
    )
    full = dataclasses.replace(
        plan.configuration("3d_fullres"), architecture=network, patch_size=(4, 12, 8)
    )
    low = dataclasses.replace(full, name="3d_lowres", data="3d_lowres", spacing=(4.0, 1.5, 1.25))
    cascade = dataclasses.replace(full, name="3d_cascade_fullres", previous="3d_lowres")
    return dataclasses.replace(plan, configurations={one.name: one for one in (full, low, cascade)})


def write_folds(folder: Path) -> None:
    """Two folds of 3d_lowres and one of the cascade, as a plan's folder holds them."""
    plan = tiny_plan()
    for configuration, fold in (("3d_lowres", "0"), ("3d_lowres", "1"), (CASCADE[0], "0")):
        torch.manual_seed(int(fold))
        network = build_network(
            plan.configuration(configuration).architecture,
            plan.input_channels(configuration),
            plan.labels.heads,
        )
        for kind in ("final", "best"):
            save_model(
                fold_folder(folder, configuration, fold),
                "final" if kind == "final" else "best",
                network,
                plan=plan,
                configuration_name=configuration,
                fold=fold,
                epoch=3,
                mirror_axes=(0, 2),
                validation_dice=None,
            )


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan's folder with its models; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("ours")
    write_folds(folder)
    return folder


@pytest.fixture
def theirs(ours: Path, tmp_path: Path) -> Path:
    """The same as nnU-Net has it."""
    porting.export_model(ours, tmp_path / "theirs")
    return tmp_path / "theirs"


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Run]:
    """Run a command in an empty folder; give its exit code, stdout and stderr."""
    monkeypatch.delenv("NNSEG_ROOT", raising=False)
    monkeypatch.setenv("BLOSC_NTHREADS", "1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    root = logging.getLogger("nnseg")
    level, kept = root.level, list(root.handlers)

    def call(*argv: str | Path) -> tuple[int, str, str]:
        code = cli.main([str(word) for word in argv])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    yield call
    root.setLevel(level)
    root.handlers[:] = kept
    logging.captureWarnings(False)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# ---------------------------------------------------------------- out


def test_a_plans_models_are_exported_each_in_a_folder_of_its_own(ours: Path, theirs: Path) -> None:
    assert files_below(theirs) == {
        f"nnUNetTrainer__nnUNetPlans__{place}"
        for configuration in CASCADE
        for place in (
            f"{configuration}/plans.json",
            f"{configuration}/dataset.json",
            f"{configuration}/fold_0/checkpoint_final.pth",
            "3d_lowres/fold_1/checkpoint_final.pth",
        )
    }


@pytest.mark.parametrize(
    ("source", "kind"),
    [("3d_lowres", "final"), ("3d_lowres/fold_1", "final"), ("3d_lowres/fold_1", "best")],
)
def test_one_configuration_becomes_the_models_folder_itself(
    ours: Path, source: str, kind: str, tmp_path: Path
) -> None:
    folds = ["fold_1"] if "fold" in source else ["fold_0", "fold_1"]
    target = tmp_path / "out"
    chosen = "best" if kind == "best" else "final"
    assert porting.export_model(ours / source, target, kind=chosen) == (target,)
    checkpoints = {f"{fold}/checkpoint_{kind}.pth" for fold in folds}
    assert files_below(target) == {"plans.json", "dataset.json", *checkpoints}


@pytest.mark.parametrize("source", ["3d_cascade_fullres", "3d_cascade_fullres/fold_0", "."])
def test_a_cascade_takes_all_folds_of_the_stage_before_it_along(
    ours: Path, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ours / "3d_cascade_fullres" if source == "." else ours
    monkeypatch.chdir(start)
    porting.export_model(Path(source), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*3d_lowres/fold_*/*.pth"))) == 2
    assert len(list((tmp_path / "out").glob("*3d_cascade_fullres/fold_*/*.pth"))) == 1


def test_what_is_not_trained_cannot_be_exported(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="is not trained"):
        porting.export_model(tmp_path, tmp_path / "out")
    with pytest.raises(PlanError, match="no format to export models to is named 'tiff'"):
        porting.export_model(tmp_path, tmp_path / "out", to="tiff")


def test_only_nnunet_has_room_for_several_configurations(ours: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="3d_cascade_fullres, 3d_lowres; ONNX is written of one"):
        porting.export_model(ours, tmp_path / "out", to="onnx")


# ---------------------------------------------------------------- in


def test_an_import_lies_as_a_training_leaves_it_and_says_where_it_is_from(
    ours: Path, theirs: Path, tmp_path: Path
) -> None:
    target = tmp_path / "back"
    target.mkdir()  # an empty folder is no obstacle
    imported = porting.import_model([theirs], target)
    assert [one.configuration_name for one in imported] == list(CASCADE)
    assert [path.name for path in trained_configurations(target)] == list(CASCADE)
    for configuration, fold in (("3d_lowres", "1"), ("3d_cascade_fullres", "0")):
        weights = load_model(fold_folder(target, configuration, fold), "final")[1]
        wanted = load_model(fold_folder(ours, configuration, fold), "final")[1]
        assert weights.keys() == wanted.keys()
        assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    report = record.load(RunReport, target / "run_import.json")
    checkpoint = next(theirs.glob("*3d_lowres/fold_1/*.pth"))
    assert report.inputs[str(checkpoint)] == sha256(checkpoint)
    assert report.arguments["sources"] == [str(theirs)]


def test_a_model_comes_from_several_folders(theirs: Path, tmp_path: Path) -> None:
    folders = sorted(theirs.iterdir())
    imported = porting.import_model(folders, tmp_path / "back")
    assert [one.configuration_name for one in imported] == list(CASCADE)


def test_checking_writes_nothing(theirs: Path, tmp_path: Path) -> None:
    before = files_below(tmp_path)
    assert len(porting.import_model([theirs], tmp_path / "back", save=False)) == 2
    next(theirs.glob("*3d_lowres/fold_1/*.pth")).write_bytes(b"damaged")
    with pytest.raises(DataError, match="fold_1"):
        porting.import_model([theirs], tmp_path / "back", save=False)
    assert files_below(tmp_path) == before


def test_an_import_that_fails_leaves_nothing(theirs: Path, tmp_path: Path) -> None:
    next(theirs.glob("*3d_lowres/fold_1/*.pth")).write_bytes(b"damaged")  # the last that is read
    with pytest.raises(DataError, match="fold_1"):
        porting.import_model([theirs], tmp_path / "back")
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_there_is_not_written_over(
    ours: Path, theirs: Path, kind: str, tmp_path: Path
) -> None:
    target = tmp_path / "taken"
    if kind == "folder":
        target.mkdir()
        (target / "notes.txt").write_text("mine")
    elif kind == "file":
        target.write_text("mine")
    else:
        target.symlink_to(tmp_path / "nowhere")
    for call in (porting.import_model, porting.export_model):
        with pytest.raises(UsageError, match="is there already"):
            call([theirs] if call is porting.import_model else ours, target)  # type: ignore[operator]
    assert target.is_symlink() or (target / "notes.txt").exists() or target.read_text() == "mine"


@pytest.mark.parametrize("direction", ["import", "export nnunet"])
def test_an_empty_folder_that_cannot_be_replaced_is_filled(
    ours: Path, theirs: Path, direction: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "parent" / "here"
    target.mkdir(parents=True)
    node = target.stat().st_ino

    def refuse(folder: Path) -> None:
        raise OSError(errno.EBUSY, "is mounted", str(folder))

    monkeypatch.setattr(Path, "rmdir", refuse)
    monkeypatch.chdir(target)
    if direction == "import":
        porting.import_model([theirs], Path())
        assert load_model(fold_folder(target, "3d_lowres", "1"), "final")[0].fold == "1"
        assert (target / "run_import.json").is_file()
    else:
        written = porting.export_model(ours, Path())
        assert {path.parent for path in written} == {target}
        assert all((path / "plans.json").is_file() for path in written)
    assert target.stat().st_ino == node
    assert [path.name for path in target.parent.iterdir()] == ["here"]
    assert not list(target.glob(".*"))


def test_a_filled_folder_has_its_records_last_and_nothing_after_an_error(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "back"
    target.mkdir()
    rename, moved = Path.rename, []

    def counted(path: Path, to: Path) -> Path:
        if to.parent == target and not to.name.startswith("."):
            moved.append(to.name)
        if path.suffix == ".json":
            raise OSError(errno.EIO, "the disk fails")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", counted)
    with pytest.raises(MachineError, match="back: cannot be written"):
        porting.import_model([theirs], target)
    assert moved == [*CASCADE, "run_import.log", "run_import.json"]
    assert list(target.iterdir()) == []


def test_what_a_killed_import_left_is_no_obstacle(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "back"
    target.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(commit, "_PROCESS", "0" * 8)  # another process of this number
        left = commit.unfinished_path(target / "new")
    left.mkdir()
    porting.import_model([theirs], target)
    assert not left.exists()


# ---------------------------------------------------------------- by the command line


def test_the_commands_bring_a_model_out_and_in_again(ours: Path, tmp_path: Path, run: Run) -> None:
    code, out, _ = run("export", ours / "3d_lowres", "--to", "nnunet", "-o", "theirs")
    assert (code, out) == (0, f"wrote {Path.cwd() / 'theirs'}\n")
    with zipfile.ZipFile("theirs.zip", "w") as packed:
        for name in files_below(Path("theirs")):
            packed.write(Path("theirs") / name, f"{DATASET}/Model/{name}")
    told = f"{DATASET} 3d_lowres, nnUNetTrainer: folds 0 (final), 1 (final)\n"
    code, out, _ = run("import", "theirs.zip", "-o", "back", "--dry-run")
    assert (code, out) == (0, told + "nothing was written\n")
    assert not Path("back").exists()
    code, out, _ = run("import", "theirs.zip", "-o", "back")
    assert (code, out) == (0, told + "nnseg predict -m back/3d_lowres -i IN -o OUT\n")
    assert load_model(Path("back/3d_lowres/fold_1"), "final")[0].plan.name == "nnUNetPlans"
    code, _, err = run("import", "theirs.zip", "-o", "back")
    assert code == UsageError.exit_code
    assert err.startswith("nnseg: back is there already")


def test_the_command_that_predicts_is_one_that_runs(ours: Path, tmp_path: Path, run: Run) -> None:
    """Of models that have checkpoint_best alone, it must be asked for."""
    run("export", ours / "3d_lowres", "--to", "nnunet", "-o", "theirs", "-chk", "best")
    _, out, _ = run("import", "theirs", "-o", "two words")
    assert out.endswith("\nnnseg predict -m 'two words/3d_lowres' -i IN -o OUT -chk best\n")
    fold = Path("theirs/fold_1")
    (fold / "checkpoint_best.pth").rename(fold / "checkpoint_final.pth")
    _, out, _ = run("import", "theirs", "-o", "back")
    assert out.splitlines()[1:] == [
        "nnseg predict -m back/3d_lowres -i IN -o OUT",
        "that leaves out folds 0, which have a checkpoint_best only",
    ]


def test_a_zip_that_is_cut_off_is_one_line(run: Run, theirs: Path) -> None:
    with zipfile.ZipFile("whole.zip", "w") as packed:
        for name in files_below(theirs):
            packed.write(theirs / name, name)
    Path("cut.zip").write_bytes(Path("whole.zip").read_bytes()[:-3000])
    code, out, err = run("import", "cut.zip", "-o", "back")
    assert (code, out) == (DataError.exit_code, "")
    assert err.startswith("nnseg: cut.zip: is no zip, or it is cut off or damaged")
    assert err.count("\n") == 1
    assert {path.name for path in Path().iterdir()} == {"cut.zip", "whole.zip"}


def test_a_plans_json_is_still_imported_for_a_dataset(run: Run) -> None:
    folders = Folders.of_root(Path())
    for number in range(5):
        for folder, ending in ((folders.images(DATASET), "_0000"), (folders.labels(DATASET), "")):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"case{number}{ending}.nii.gz").touch()
    folders.spec_file(DATASET).write_text(
        json.dumps(spec_to_json(dataclasses.replace(SPEC, num_training=5)))
    )
    Path("plans.json").write_text(json.dumps(plans_to_json(tiny_plan())))
    code, out, _ = run("import", "plans.json", "-d", DATASET, "-p", "tiny", "--dry-run")
    assert code == 0
    assert "3d_lowres" in out
    assert not folders.prepared_folder(DATASET).exists()
    code, out, _ = run("import", "plans.json", "-d", DATASET, "-p", "tiny")
    assert code == 0
    assert out.endswith(f"nnseg preprocess -d {DATASET} -p tiny\n")
    assert record.load(Plan, folders.plan_file(DATASET, "tiny")).dataset == DATASET


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["model"], "say where the model is to go: -o FOLDER"),
        (["model", "-o", "there", "-d", "4"], "-d is for a plans.json"),
        (["plans.json"], "a plans.json is imported by itself, for a dataset"),
        (["plans.json", "model", "-d", "4"], "a plans.json is imported by itself"),
        (["plans.json", "-d", "4", "-o", "there"], "a plans.json is imported by itself"),
    ],
)
def test_options_that_do_not_go_together_are_refused(argv: list[str], words: str, run: Run) -> None:
    code, _, err = run("import", *argv)
    assert code == UsageError.exit_code
    assert words in err
