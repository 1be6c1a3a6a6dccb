"""What is here is told without loading torch, and told right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import FLAT

from nnseg import cli, record
from nnseg.folders import Folders
from nnseg.verbs.info import REGISTRIES, describe, info, registered
from nnseg.verbs.scoring import validation_summary
from nnseg.volume import ENDINGS


@pytest.mark.parametrize("kind", REGISTRIES)
def test_the_names_in_the_source_are_those_of_the_registry(kind: str) -> None:
    module, table = REGISTRIES[kind]
    program = f"import json, {module} as it; print(json.dumps(sorted(it.{table})))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert registered(module, table) == tuple(json.loads(said.stdout))


def test_datasets_and_models_are_found(flat: Folders) -> None:
    found = info(flat)
    (dataset,) = found.datasets
    assert (dataset.name, dataset.cases, dataset.plans) == (FLAT, 6, ("nnseg",))
    assert dataset.roots == ("raw", "preprocessed", "results")
    (model,) = found.models
    assert (model.plan, model.configuration, model.folds) == ("nnseg", "2d", ("0",))
    summary = validation_summary(flat.fold(FLAT, "nnseg", "2d", "0", 0))
    assert model.validated == ("0",)
    assert model.dice == pytest.approx(summary.foreground_mean.dice)
    assert found.image_endings == ENDINGS
    text = describe(found)
    assert f"{FLAT} nnseg/2d: folds 0; Dice {model.dice:.3f}" in text


def test_networks_are_told_with_what_they_are(tmp_path: Path) -> None:
    found = info(Folders.of_root(tmp_path / "nothing"))
    assert tuple(found.networks) == found.registries["networks"]
    lines = describe(found).splitlines()
    (line,) = (line for line in lines if line.startswith("  unetpp: "))
    assert "UNet++" in line
    assert "arXiv:1807.10165" in line
    assert line.endswith("; 2D and 3D; takes --upsampling, --norm, --dropout")
    (line,) = (line for line in lines if line.startswith("  unet3d: "))
    assert "; 3D; takes " in line
    (line,) = (line for line in lines if line.startswith("  plain: "))
    assert line.endswith("; 2D and 3D; takes --upsampling")
    (line,) = (line for line in lines if line.startswith("  encoder_unet: "))
    assert "; backbones: resnet18d, " in line


def test_a_place_without_anything_is_told_too(tmp_path: Path) -> None:
    found = info(Folders.of_root(tmp_path / "nothing"))
    assert (found.datasets, found.models) == ((), ())
    assert [root.there for root in found.roots] == [False] * 3
    assert all(root.disk_free for root in found.roots)
    assert "datasets: none" in describe(found)


def test_a_damaged_dataset_or_summary_costs_its_figure_only(prepared: Folders) -> None:
    prepared.spec_file(FLAT).write_text("{")
    fold = prepared.fold(FLAT, "nnseg", "2d", "0", 0)
    (fold / "validation").mkdir(parents=True)
    (fold / "checkpoint_final.json").write_text("{}")
    (fold / "validation" / "summary.json").write_text("[]")
    found = info(prepared)
    assert found.datasets[0].cases is None
    assert found.models[0].dice is None
    assert "not scored" in describe(found)


def test_the_machine_is_told(tmp_path: Path) -> None:
    machine = info(Folders.of_root(tmp_path)).machine
    assert machine.cores >= 1
    assert 0 < machine.memory_free <= machine.memory_total
    assert machine.processor


def test_torch_is_loaded_only_where_devices_are_asked(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom nnseg import cli\n"
        "code = cli.main(sys.argv[1:])\n"
        "sys.exit(code or 'torch' in sys.modules)\n"
    )
    words = ["info", "--root", str(tmp_path), "--json"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["packages"]["torch"]
    assert told["devices"] == []


def test_devices_are_asked_of_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "--root", str(tmp_path), "--devices", "--json"]) == 0
    (cpu, *_) = json.loads(capsys.readouterr().out)["devices"]
    assert cpu["name"] == "cpu"
    assert cpu["precision"] in ("fp32", "bf16")
    assert cpu["threads"] >= 1


def test_what_is_told_is_a_record(flat: Folders) -> None:
    assert record.dumps(info(flat)).startswith("{")
