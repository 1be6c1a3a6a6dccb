import dataclasses
import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from image_networks import fill
from safetensors.torch import save_file
from tiny import CPU, FLAT, SHORT, train

from nnseg import pipeline, record
from nnseg.checkpoint import load_model
from nnseg.cli import main
from nnseg.errors import DataError, UsageError
from nnseg.folders import Folders
from nnseg.labels import Labels
from nnseg.learning.resume import read_run
from nnseg.model.architecture import Architecture, NetworkOptions
from nnseg.networks.backbones import BACKBONES
from nnseg.networks.build import build_network
from nnseg.networks.inflation import flat_levels
from nnseg.networks.timm_weights import fit_encoder, read_encoder_weights
from nnseg.plan import Plan
from nnseg.runlog import RunReport
from nnseg.verbs.pretrained import Pretrained, begin

BARELY = dataclasses.replace(SHORT, epochs=1, iterations=1, lr=1e-9)
ENCODED = Architecture(
    network="encoder_unet",
    dimensions=2,
    features=(4, 8, 16),
    kernel_sizes=((1, 3, 3),) * 3,
    strides=((1, 1, 1), (1, 2, 2), (1, 2, 2)),
    encoder_blocks=(1, 1, 1),
    decoder_blocks=(1, 1),
    options=NetworkOptions(backbone="resnet18d"),
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a ResNet-18-D, as timm has them."""
    with torch.random.fork_rng(devices=[]):
        network = BACKBONES["resnet18d"](flat_levels(4), 3)
    fill(network)
    path = tmp_path_factory.mktemp("timm") / "model.safetensors"
    save_file(network.state_dict(), path)
    return path


def encoded(folders: Folders, **options: Any) -> Folders:
    """The same dataset with a plan of an image network."""
    path = folders.plan_file(FLAT, "nnseg")
    plan = record.load(Plan, path)
    architecture = dataclasses.replace(ENCODED, options=NetworkOptions(**options))
    planned = dataclasses.replace(plan.configuration("2d"), architecture=architecture)
    record.save(dataclasses.replace(plan, configurations={"2d": planned}), path)
    return folders


def run(folders: Folders, **options: Any) -> Path:
    return train(folders, FLAT, "2d", settings=BARELY, validate_after=False, **options)


def test_a_training_starts_from_an_encoder_of_timms_and_says_so(
    prepared: Folders, file: Path
) -> None:
    said: list[str] = []
    fold = run(encoded(prepared), pretrained_encoder=file, say=said.append)
    expected = fit_encoder(read_encoder_weights(file), ENCODED, 1).weights
    after = load_model(fold, "final")[1]
    learnt = [name for name in expected if "running" not in name]
    assert len(learnt) == 21
    for name in learnt:
        assert (after[name] - expected[name]).abs().max() < 1e-6
    assert said[0].startswith(f"starting from {file}\nthe encoder's {len(expected)} parameters")
    report = record.load(RunReport, fold / "run.json")
    facts = report.facts["pretrained"]
    assert facts["source"] == str(file)
    assert facts["adapted"] == ["encoder.conv1.0.weight"]
    assert set(facts["kept"]) | set(facts["adapted"]) == set(expected)
    assert set(facts["fresh"]) == {name for name in after if not name.startswith("encoder.")}
    assert report.inputs[str(file)] == hashlib.sha256(file.read_bytes()).hexdigest()


def test_colours_are_those_of_the_image_where_a_cascade_sees_labels_too(
    prepared: Folders, file: Path
) -> None:
    plan = record.load(Plan, prepared.plan_file(FLAT, "nnseg"))
    stage = dataclasses.replace(plan.configuration("2d"), architecture=ENCODED)
    behind = dataclasses.replace(stage, name="behind", previous="2d")
    plan = dataclasses.replace(plan, configurations={"2d": stage, "behind": behind})
    assert plan.input_channels("behind") > plan.input_channels("2d") == 1
    found = read_encoder_weights(file)
    alone, both = (begin(found, plan, name, 0).weights for name in plan.configurations)
    first = both["encoder.conv1.0.weight"]
    assert first.shape[1] == plan.input_channels("behind")
    assert torch.equal(first[:, :1], alone["encoder.conv1.0.weight"])
    assert not first[:, 1:].any()


def test_labels_in_another_order_of_dataset_json_keep_their_heads(prepared: Folders) -> None:
    plan = record.load(Plan, prepared.plan_file(FLAT, "nnseg"))
    names = ("background", "one", "two")
    inputs, heads = plan.input_channels("2d"), len(names)
    first, other = (
        dataclasses.replace(plan, labels=Labels(labels={n: names.index(n) for n in order}))
        for order in (names, ("two", "background", "one"))
    )
    network = build_network(plan.configuration("2d").architecture, inputs, heads)
    source = Pretrained(
        source=Path("model"),
        sha256="",
        plan=first,
        configuration_name="2d",
        weights=dict(network.state_dict()),
    )
    found = begin(source, other, "2d", 1)
    assert (found.adapted, found.fresh) == ((), ())
    for name, value in source.weights.items():
        assert torch.equal(found.weights[name], value)


def test_a_run_goes_on_only_with_the_encoder_that_it_started_from(
    prepared: Folders, file: Path
) -> None:
    fold = run(encoded(prepared), pretrained_encoder=file)
    earlier = read_run(fold)
    assert earlier is not None
    assert earlier.settings.pretrained == hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(UsageError, match="pretrained is now None"):
        run(prepared)
    run(prepared, pretrained_encoder=file)


def test_an_encoder_that_does_not_fit_is_refused_before_anything_is_written(
    prepared: Folders, file: Path
) -> None:
    with pytest.raises(UsageError, match="network plain has no image network as its encoder"):
        run(prepared, pretrained_encoder=file)
    with pytest.raises(DataError, match="is not of resnet50d"):
        run(encoded(prepared, backbone="resnet50d"), pretrained_encoder=file)
    assert list(prepared.results.rglob("*.json")) == []


def test_a_model_and_an_encoder_are_not_taken_together(prepared: Folders, file: Path) -> None:
    with pytest.raises(UsageError, match="give --pretrained or --pretrained-encoder"):
        run(prepared, pretrained=file.parent, pretrained_encoder=file)


def damaged(folders: Folders, path: Path) -> Path:
    """A model whose weights have lost their end."""
    fold = folders.fold(FLAT, "nnseg", "2d", "0", 0)
    shutil.copytree(fold, path)
    weights = path / load_model(fold, "final")[0].weights_file
    weights.write_bytes(weights.read_bytes()[:-9])
    return path


@pytest.mark.parametrize(
    ("option", "start", "found"),
    [
        ("--pretrained", "nothing", "nothing does not exist"),
        ("--pretrained", "damaged", "checkpoint_final"),
        ("--pretrained", "model.pth", "model.pth"),
        ("--pretrained-encoder", "nothing", "nothing"),
        ("--pretrained-encoder", "model.pth", "model.pth"),
        ("--pretrained-encoder", "timm", "network plain has no image network as its encoder"),
    ],
)
def test_a_dry_run_refuses_as_the_run_does_what_nothing_can_start_from(
    flat: Folders,
    prepared: Folders,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    start: str,
    found: str,
) -> None:
    source = file if start == "timm" else tmp_path / start
    if start == "damaged":
        damaged(flat, source)
    elif start == "model.pth":
        source.write_bytes(b"no weights")
    root = prepared.raw.parent
    before = sorted(root.rglob("*"))
    words = ["train", FLAT, "2d", "0", option, str(source), "--root", str(root), "--device", "cpu"]
    code, told = main([*words, "--dry-run"]), capsys.readouterr().err
    assert sorted(root.rglob("*")) == before
    assert code != 0
    assert found in told
    assert (main(words), capsys.readouterr().err) == (code, told)


def test_a_dry_run_starts_from_what_the_run_would_and_writes_nothing(
    flat: Folders, prepared: Folders, file: Path
) -> None:
    before = sorted(prepared.raw.parent.rglob("*"))
    source = flat.fold(FLAT, "nnseg", "2d", "0", 0)
    pipeline.rehearse(prepared, FLAT, "2d", "0", settings=BARELY, pretrained=source, **CPU)
    encoded(prepared)
    pipeline.rehearse(prepared, FLAT, "2d", "0", settings=BARELY, pretrained_encoder=file, **CPU)
    assert sorted(prepared.raw.parent.rglob("*")) == before
