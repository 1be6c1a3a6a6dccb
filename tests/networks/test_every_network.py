"""Every network goes the whole way: planned, trained, killed, continued, predicted, exported.

It is as deep as it is planned, but narrower, and its patch is small.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from nnseg import load, pipeline, record
from nnseg.axes import Shape
from nnseg.checkpoint import Checkpoint, load_model
from nnseg.errors import StoppedError
from nnseg.fit import PLANNERS, Target, build_architecture
from nnseg.folders import Folders, checkpoint_file
from nnseg.learning.recipe import TrainSettings
from nnseg.learning.resume import read_run
from nnseg.model.architecture import NO_OPTIONS, NetworkOptions
from nnseg.model.kinds import KINDS
from nnseg.networks.build import build_network
from nnseg.plan import Configuration, Plan
from nnseg.topology import Depth, find_topology

DATASETS = {2: "Dataset001_Flat", 3: "Dataset002_Thick"}
VARIANTS = {2: "2d", 3: "anisotropic"}
CONFIGURATIONS = {2: "2d", 3: "3d_fullres"}
PATCHES: dict[int, Shape] = {2: (1, 40, 32), 3: (6, 28, 20)}
NARROWER = 8
SHORT = TrainSettings(
    epochs=3, iterations=2, validation_iterations=1, batch_size=2, augmentation="mild"
)
STOPPED_AFTER = 4  # steps of training and validation: within the second epoch

# Those whose other sizes, or whose other dimensions, are among the quick ones.
SLOW = {"mednext_b", "mednext_m", "mednext_l"}
BACKBONES = KINDS["encoder_unet"].backbones


class Killed(BaseException):
    """Ends a training as SIGKILL does: nothing more is saved."""


@dataclasses.dataclass(frozen=True)
class Tried:
    """A network in some dimensions, and with options."""

    network: str
    dimensions: int
    options: NetworkOptions = NO_OPTIONS

    def __str__(self) -> str:
        chosen = "-".join(str(value) for value in self.options.chosen.values())
        return f"{self.network}-{self.dimensions}d" + (f"-{chosen}" if chosen else "")


def cases() -> list[Any]:
    """Each network in all its dimensions, each backbone, and each option."""
    every = [Tried(name, d) for name, kind in KINDS.items() for d in kind.dimensions]
    every += [
        Tried("encoder_unet", dimensions, NetworkOptions(backbone=name))
        for name in BACKBONES[1:]
        for dimensions in (2, 3)
    ]
    chosen = NetworkOptions(upsampling="shuffled", norm="batch", dropout=0.2)
    every += [
        Tried(name, kind.dimensions[-1], chosen)
        for name, kind in KINDS.items()
        if {"upsampling", "norm", "dropout"} <= set(kind.options)
    ]
    every.append(Tried("plain", 3, NetworkOptions(upsampling="interpolated")))
    marks = {tried: [pytest.mark.slow] for tried in every if is_slow(tried)}
    return [pytest.param(tried, marks=marks.get(tried, []), id=str(tried)) for tried in every]


def is_slow(tried: Tried) -> bool:
    has_options = bool(tried.options.chosen) and tried.network != "unetpp"
    return tried.network in SLOW or has_options


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Phantoms of both kinds, measured."""
    root = tmp_path_factory.mktemp("networks")
    for dimensions, dataset in DATASETS.items():
        folders = tiny.draw(root, dataset, VARIANTS[dimensions], cases=5, test_cases=1)
        pipeline.fingerprint(folders, dataset, workers=1)
    return folders


def narrowed(plan: Plan, tried: Tried) -> Plan:
    """The plan with one configuration: as deep, an eighth as wide, for a small patch."""
    planned = plan.configuration(CONFIGURATIONS[tried.dimensions])
    kind = KINDS[tried.network]
    least, most = kind.levels
    depth = Depth(least=least, most=most, halves_plane=kind.halves_plane)
    topology = find_topology(planned.spacing, PATCHES[tried.dimensions], depth)
    target = Target(
        planner=PLANNERS["default"],
        memory_gb=plan.memory_gb,
        network=tried.network,
        options=planned.architecture.options,
        channels=len(plan.channels),
        outputs=len(plan.labels.labels),
    )
    whole = build_architecture(topology, planned.architecture.dimensions, target)
    features = tuple(max(4, width // NARROWER) for width in whole.features)
    narrow: Configuration = dataclasses.replace(
        planned,
        architecture=dataclasses.replace(whole, features=features),
        patch_size=topology.patch_size,
        batch_size=2,
    )
    return dataclasses.replace(plan, configurations={narrow.name: narrow})


def moved(fold: Path) -> bool:
    """Whether training moved what meets the image and what gives the logits, to numbers."""
    checkpoint, after = load_model(fold, "final")
    plan, name = checkpoint.plan, checkpoint.configuration_name
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SHORT.seed)
        network = build_network(
            plan.configuration(name).architecture, plan.input_channels(name), plan.labels.heads
        )
    before = network.state_dict()
    convolutions = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    ends = [f"{convolutions[0]}.weight", *(n for n in before if n.startswith("heads."))]
    different = [end for end in ends if not torch.equal(before[end], after[end])]
    finite = all(x.isfinite().all() for x in after.values())
    return finite and ends[0] in different and len(different) > 1


def kill() -> bool:
    raise Killed


@pytest.mark.parametrize("tried", cases())
def test_a_network_trains_stops_goes_on_predicts_and_is_exported(
    tried: Tried, drawn: Folders, tmp_path: Path
) -> None:
    dataset, configuration = DATASETS[tried.dimensions], CONFIGURATIONS[tried.dimensions]
    folders = dataclasses.replace(drawn, results=tmp_path / "undisturbed")
    name = str(tried).replace(".", "")
    plan = pipeline.plan(folders, dataset, name=name, network=tried.network, options=tried.options)
    plan = narrowed(plan, tried)
    record.save(plan, folders.plan_file(dataset, name))
    pipeline.preprocess(folders, dataset, plan_name=name, workers=1)

    fold = tiny.train(folders, dataset, configuration, plan_name=name, settings=SHORT)
    run = read_run(fold)
    assert run is not None
    assert len(run.history) == SHORT.epochs
    assert all(math.isfinite(report.loss) for report in run.history)
    assert moved(fold)
    assert pipeline.validation_summary(fold).mean

    disturbed = dataclasses.replace(drawn, results=tmp_path / "disturbed")
    again: dict[str, Any] = {"plan_name": name, "settings": SHORT, "validate_after": False}
    with pytest.raises(StoppedError):
        tiny.train(disturbed, dataset, configuration, stop=tiny.stop_after(STOPPED_AFTER), **again)
    with pytest.raises(Killed):  # in the third epoch, which begins anew where it was stopped
        tiny.train(disturbed, dataset, configuration, resume=True, stop=kill, **again)
    other = tiny.train(disturbed, dataset, configuration, resume=True, **again)
    for kind in ("final", "best"):
        first, second = (
            record.load_sealed(Checkpoint, checkpoint_file(each, kind), made_by="nnseg train")
            for each in (fold, other)
        )
        assert first == second  # the hashes of their weights among them

    model = load(fold.parent, folds=("0",), device="cpu", precision="fp32")
    (path,) = pipeline.predict(
        model, folders.raw_folder(dataset) / "imagesTs", tmp_path / "predicted"
    ).values()
    assert path.is_file()

    *networks, about = pipeline.export_model(fold, tmp_path / "onnx", to="onnx")
    assert [path.name for path in networks] == ["fold_0.onnx"]  # its logits were compared
    assert about.name == "model.json"
