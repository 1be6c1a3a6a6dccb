"""Exported networks compute what ours do, and model.json suffices to predict what we predict."""

import dataclasses
import importlib.util
import itertools
import logging
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from nnseg import record
from nnseg.axes import Image, Shape, Spacing
from nnseg.checkpoint import save_model
from nnseg.commit import sha256
from nnseg.dataset import DatasetSpec
from nnseg.errors import MachineError, UsageError
from nnseg.exchange import onnx
from nnseg.exchange.onnx import OnnxModel, export_onnx
from nnseg.fingerprint import Fingerprint
from nnseg.folders import postprocessing_file
from nnseg.image.intensity import Intensity
from nnseg.image.resample import COARSE, separate_axis
from nnseg.inference import load_model
from nnseg.labels import Labels
from nnseg.model.architecture import Architecture
from nnseg.networks.build import build_network
from nnseg.plan import Plan, make_plan
from nnseg.postprocess import KeepLargest, MinimumSize, Postprocessing, apply
from nnseg.volume import (
    flat_geometry,
    grid_fault,
    read_image,
    read_segmentation,
    simple_geometry,
    write,
)

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

RUNNER = Path(__file__).parents[2] / "examples" / "predict_with_onnx.py"
PLAIN = Labels(labels={"background": 0, "liver": 1, "tumour": 2})
GAPS = Labels(labels={"background": 0, "liver": 3, "tumour": 7, "ignore": 9})
REGIONS = Labels(
    labels={"background": 0, "whole": (1, 2, 3), "core": (2, 3), "enhancing": 3},
    regions_class_order=(1, 2, 3),
)


def plan_of(
    configuration: str,
    labels: Labels = PLAIN,
    *,
    spacing: Spacing = (1.25, 1.0, 1.1),
    patch: Shape = (4, 8, 6),
    network: str = "plain",
    **changes: Any,
) -> Plan:
    """A plan of two channels, whose only network is tiny."""
    measured = Fingerprint(
        spacings=(spacing,),
        shapes=((24, 30, 28),),
        intensities=tuple(
            Intensity(
                mean=mean,
                median=mean,
                std=3.0,
                min=0.0,
                max=9.0,
                percentile_00_5=0.75,
                percentile_99_5=6.5,
            )
            for mean in (1.0, 2.5)
        ),
        median_relative_size=0.5,  # so that zscore looks at the body only
    )
    spec = DatasetSpec(channels=("MR", "CT"), labels=labels, num_training=3, file_ending=".nii.gz")
    made = make_plan(spec, measured, dataset="Dataset001_Toy", target_spacing=spacing)
    planned = made.configuration(configuration)
    flat = planned.is_2d
    tiny = Architecture(
        network=network,
        dimensions=2 if flat else 3,
        features=(4, 6),
        kernel_sizes=((1, 3, 3),) * 2 if flat else ((1, 3, 3), (3, 3, 3)),
        strides=((1, 1, 1), (1, 2, 2) if flat else (2, 2, 2)),
        encoder_blocks=(1, 1),
        decoder_blocks=(1,),
    )
    planned = dataclasses.replace(planned, architecture=tiny, patch_size=patch, **changes)
    kept = {configuration: planned}
    if planned.previous:
        kept[planned.previous] = dataclasses.replace(planned, name=planned.previous, previous=None)
    return dataclasses.replace(made, configurations=kept)


def write_folds(
    plan: Plan, configuration: str, folder: Path, *mirrored: tuple[int, ...]
) -> list[Path]:
    """Folds with random weights, each mirrored along axes of its own."""
    folds = [folder / f"fold_{number}" for number in range(len(mirrored))]
    for number, (fold, axes) in enumerate(zip(folds, mirrored, strict=True)):
        torch.manual_seed(number)
        architecture = plan.configuration(configuration).architecture
        channels = plan.input_channels(configuration)
        network = build_network(architecture, channels, plan.labels.heads)
        with torch.no_grad():
            for weight in network.parameters():
                weight += 0.1 * torch.randn_like(weight)
        fold.mkdir(parents=True)
        save_model(
            fold,
            "final",
            network,
            plan=plan,
            configuration_name=configuration,
            fold=str(number),
            epoch=1,
            mirror_axes=axes,
            validation_dice=None,
        )
    return folds


def drawn_image(shape: Shape) -> Image:
    """Two channels of noise in a body with a hole, which background surrounds."""
    image = np.random.default_rng(5).gamma(2.0, 1.5, (2, *shape)).astype(np.float32)
    z, y, x = shape
    body = np.zeros(shape, np.bool_)
    body[(z > 1) * 2 : z - (z > 1), 1 : y - 2, 3 : x - 1] = True
    body[z // 2, y // 2, x // 2] = False
    body[:, 1:4, 3:5] = False  # a corner that is background within the box
    return image * body


def without_torch(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the example where torch and nnseg cannot be imported."""
    program = (
        "import importlib, runpy, sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'nnseg'):\n"
        "            raise ImportError(name + ' is blocked')\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "for name in ('torch', 'nnseg'):\n"
        "    try:\n"
        "        importlib.import_module(name)\n"
        "    except ImportError as error:\n"
        "        print(error)\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    start = f"import sys; sys.argv = sys.argv[1:]\n{program}"
    return subprocess.run(
        [sys.executable, "-c", start, str(RUNNER), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def runner() -> ModuleType:
    """The example as a module."""
    found = importlib.util.spec_from_file_location("predict_with_onnx", RUNNER)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("configuration", "patch", "network"),
    [
        ("3d_fullres", (4, 8, 6), "plain"),
        ("3d_fullres", (2, 2, 4), "resenc"),  # the deepest level has two voxels
        ("2d", (1, 16, 12), "resenc"),
        ("2d", (1, 2, 4), "plain"),
    ],
)
def test_onnxruntime_computes_the_same_logits_whatever_the_batch(
    configuration: str, patch: Shape, network: str, tmp_path: Path
) -> None:
    import onnxruntime

    plan = plan_of(configuration, patch=patch, network=network)
    folds = write_folds(plan, configuration, tmp_path / "model", (0,), (0,))
    written = export_onnx(folds, tmp_path / "onnx")
    names = ["fold_0.onnx", "fold_1.onnx", "model.json"]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == names
    networks = load_model(folds, device="cpu", precision="fp32").networks
    for ours, path in zip(networks, written, strict=False):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        assert session.get_inputs()[0].shape == ["batch", 2, *patch]
        for batch in (1, 3):
            image = torch.randn(batch, 2, *patch) * 3 + 1
            with torch.inference_mode():
                wanted = ours(image, 1)[0].numpy()
            (found,) = session.run(["logits"], {"image": image.numpy()})
            assert np.abs(found - wanted).max() <= 1e-4 * (wanted.max() - wanted.min())


@pytest.mark.parametrize(
    ("plan", "configuration", "shape", "spacing"),
    [
        (  # thick slices along x, which plan order puts first, and are resampled apart
            plan_of("3d_fullres", spacing=(1.0, 1.1, 4.0)),
            "3d_fullres",
            (17, 13, 10),
            (0.8, 1.3, 3.5),
        ),
        (plan_of("3d_fullres", GAPS), "3d_fullres", (11, 14, 13), (1.4, 0.9, 1.2)),
        (plan_of("3d_fullres", REGIONS), "3d_fullres", (5, 14, 10), (1.0, 1.3, 1.1)),
        (  # the image is smaller than the patch
            plan_of("2d", REGIONS, spacing=(3.0, 1.0, 1.2), patch=(1, 16, 12)),
            "2d",
            (5, 13, 19),
            (2.5, 1.25, 1.0),
        ),
    ],
    ids=["thick", "gaps", "regions", "flat"],
)
def test_the_example_predicts_our_label_map_without_torch_and_nnseg(
    plan: Plan, configuration: str, shape: Shape, spacing: Spacing, tmp_path: Path
) -> None:
    flat = plan.configuration(configuration).is_2d
    mirrored = ((1, 2), (2, 1)) if flat else ((0, 1, 2), (0, 2))
    folds = write_folds(plan, configuration, tmp_path / "model", *mirrored)
    export_onnx(folds, tmp_path / "onnx")
    paths = [tmp_path / f"case_000{channel}.nii.gz" for channel in range(2)]
    for path, channel in zip(paths, drawn_image(shape), strict=True):
        write(path, channel, simple_geometry(shape, spacing))

    done = without_torch(tmp_path / "onnx", *paths, "-o", tmp_path / "out.nii.gz")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["torch is blocked", "nnseg is blocked", ""]

    volume = read_image(paths)
    model = load_model(folds, device="cpu", precision="fp32")
    wanted = model.predict(volume.image, volume.geometry.spacing)
    assert len(np.unique(wanted)) > 2
    found, geometry = read_segmentation(tmp_path / "out.nii.gz")
    assert grid_fault(geometry, volume.geometry) is None
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted)


def test_the_example_segments_a_2d_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folds = write_folds(plan_of("2d", patch=(1, 8, 6)), "2d", tmp_path / "model", (1, 2))
    export_onnx(folds, tmp_path / "onnx")
    paths = [tmp_path / f"case_000{channel}.nii" for channel in range(2)]
    for path, channel in zip(paths, drawn_image((1, 13, 19)), strict=True):
        write(path, channel, flat_geometry((13, 19), (1.2, 0.9)))
    output = tmp_path / "out.nii.gz"
    arguments = [RUNNER, tmp_path / "onnx", *paths, "-o", output]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    runner().main()

    volume = read_image(paths)
    model = load_model(folds, device="cpu", precision="fp32")
    found, geometry = read_segmentation(output)
    assert geometry.dimensions == 2
    assert grid_fault(geometry, volume.geometry) is None
    assert np.array_equal(found, model.predict(volume.image, volume.geometry.spacing))

    arguments.insert(2, paths[0])
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    with pytest.raises(SystemExit, match=r"3 images were given; the model wants 2: .*MR.*CT"):
        runner().main()


RULES = (
    KeepLargest(labels=("liver", "tumour")),
    MinimumSize(label="tumour", smallest=3, unit="voxels"),
    MinimumSize(label="liver", smallest=0.006),
)


def test_rules_beside_a_model_are_written_and_the_example_goes_by_them(tmp_path: Path) -> None:
    plan = plan_of("3d_fullres", GAPS)
    folds = write_folds(plan, "3d_fullres", tmp_path / "plan" / "3d_fullres", (0,))
    record.save(Postprocessing(rules=RULES), postprocessing_file(tmp_path / "plan" / "3d_fullres"))
    described = record.load(OnnxModel, export_onnx(folds, tmp_path / "onnx")[-1])
    assert described.postprocessing == RULES

    paths = [tmp_path / f"case_000{channel}.nii.gz" for channel in range(2)]
    spacing = (1.4, 0.9, 1.2)
    for path, channel in zip(paths, drawn_image((11, 14, 13)), strict=True):
        write(path, channel, simple_geometry((11, 14, 13), spacing))
    done = without_torch(tmp_path / "onnx", *paths, "-o", tmp_path / "out.nii.gz")
    assert done.returncode == 0, done.stderr
    volume = read_image(paths)
    raw = load_model(folds, device="cpu", precision="fp32").predict(volume.image, spacing)
    wanted = apply(raw, Postprocessing(rules=RULES), GAPS, spacing)
    assert not np.array_equal(wanted, raw)
    assert np.array_equal(read_segmentation(tmp_path / "out.nii.gz")[0], wanted)


@pytest.mark.parametrize("rule", RULES)
def test_the_example_takes_out_what_we_do(rule: KeepLargest | MinimumSize) -> None:
    random = np.random.default_rng(3)
    spacing = (1.5, 1.0, 0.8)
    for density in (0.04, 0.1, 0.3):
        drawn = random.choice([0, 3, 7], (6, 14, 17), p=[1 - density, density / 2, density / 2])
        labels = drawn.astype(np.uint8)
        wanted = apply(labels, Postprocessing(rules=(rule,)), GAPS, spacing)
        model = {"postprocessing": [record.to_json(rule)], "labels": GAPS.labels}
        assert np.array_equal(runner().postprocess(labels, model, spacing), wanted)
    empty = np.zeros((2, 3, 4), np.uint8)
    assert not runner().postprocess(empty, model, spacing).any()


@pytest.mark.parametrize(("voxels", "refused"), [(0.005, False), (0.05, True)])
def test_the_example_wants_channels_on_one_grid(
    voxels: float, refused: bool, tmp_path: Path
) -> None:
    files = []
    for number, shift in enumerate((0.0, voxels * 0.8)):
        affine = np.diag([0.8, 1.1, 2.0, 1.0])
        affine[1, 3] = shift
        path = tmp_path / f"{number}.nii"
        nibabel.save(nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), affine), path)
        files.append(nibabel.load(path))
    model = {"channels": [{"name": "MR"}, {"name": "CT"}]}
    if not refused:
        assert runner().read_image(files, model)[0].shape == (2, 6, 5, 4)
        return
    with pytest.raises(SystemExit, match=r"lie 0\.04 mm apart; resample them to one grid"):
        runner().read_image(files, model)


@pytest.mark.parametrize("rule", ["zscore", "ct", "none", "rescale_to_0_1", "rgb_to_0_1"])
def test_the_example_knows_every_normalizer(rule: str) -> None:
    from nnseg.image.normalize import HONOURS_MASK, NORMALIZERS

    image = drawn_image((6, 8, 9))[0]
    body = image != 0
    known = plan_of("2d").intensities[0]
    for use_mask in (False, True) if rule in HONOURS_MASK else (False,):
        ours, theirs = image.copy(), image.copy()
        NORMALIZERS[rule](ours, known, body if use_mask else None)
        channel = {
            "name": "MR",
            "normalization": rule,
            "use_mask": use_mask,
            "intensity": dataclasses.asdict(known),
        }
        runner().normalize(theirs, channel, body)
        assert np.abs(theirs - ours).max() < 1e-5


def test_a_large_patch_is_compared_with_what_torch_computes_exactly(tmp_path: Path) -> None:
    plan = plan_of("2d", patch=(1, 1024, 768))
    folds = write_folds(plan, "2d", tmp_path / "model", ())
    written = export_onnx(folds, tmp_path / "onnx")  # it refuses what deviates
    assert len(written) == 1 + len(folds)
    assert all(path.is_file() for path in written)


@pytest.mark.parametrize("forced", [None, True, False])
def test_the_example_resamples_the_axes_apart_that_we_do(forced: bool | None) -> None:
    choices = [(1.0, 1.0, 4.0), (4.0, 1.0, 4.0), (1.1, 2.0, 1.0), (1.0, 3.0, 1.0), (2.0, 2.0, 2.0)]
    for old, new in itertools.product(choices, repeat=2):
        assert runner().separate_axis(old, new, forced, COARSE) == separate_axis(old, new, forced)


def test_model_json_names_what_other_programs_need(tmp_path: Path) -> None:
    plan = plan_of("3d_fullres", GAPS, spacing=(1.0, 1.1, 4.0))
    folds = write_folds(plan, "3d_fullres", tmp_path / "model", (0, 1), (1, 2))
    *networks, described = export_onnx(folds, tmp_path / "onnx")
    model = record.load(OnnxModel, described)
    assert model.order == (2, 0, 1)
    assert model.spacing == (4.0, 1.0, 1.1)
    assert [(one.name, one.normalization, one.use_mask) for one in model.channels] == [
        ("MR", "zscore", True),
        ("CT", "ct", False),
    ]
    assert model.channels[1].intensity.mean == 2.5
    assert model.mirror_axes == (1,)
    assert (model.decision, model.head_values) == ("argmax", (0, 3, 7))
    assert [one.sha256 for one in model.networks] == [sha256(path) for path in networks]
    assert model.previous is None


def test_heads_of_regions_are_named_by_what_they_paint(tmp_path: Path) -> None:
    labels = dataclasses.replace(REGIONS, regions_class_order=(3, 1, 2))
    folds = write_folds(plan_of("2d", labels, patch=(1, 8, 6)), "2d", tmp_path / "model", ())
    model = record.load(OnnxModel, export_onnx(folds, tmp_path / "onnx")[-1])
    assert (model.decision, model.head_values) == ("regions", (3, 1, 2))


def test_a_cascade_says_what_it_sees_of_the_stage_before(tmp_path: Path) -> None:
    import onnxruntime

    plan = plan_of("3d_fullres", GAPS, previous="3d_lowres")
    folds = write_folds(plan, "3d_fullres", tmp_path / "model", ())
    network, described = export_onnx(folds, tmp_path / "onnx")
    previous = record.load(OnnxModel, described).previous
    assert previous is not None
    assert (previous.configuration, previous.values) == ("3d_lowres", (3, 7))
    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1] == 2 + 2
    with pytest.raises(SystemExit, match="second stage of a cascade"):
        runner().read_model(tmp_path / "onnx")


@pytest.mark.parametrize(("error", "refused"), [(0.9e-4, False), (1.2e-4, True), (np.nan, True)])
def test_a_network_that_deviates_by_over_1e_4_of_the_range_is_not_written(
    error: float, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = write_folds(plan_of("2d", patch=(1, 8, 6)), "2d", tmp_path / "model", ())
    run = onnx._run

    def deviating(path: Path, patches: Any) -> Any:
        logits = run(path, patches)
        assert logits is not None
        logits[1, 2, 0, 3, 4] += error * (logits.max() - logits.min())
        return logits

    monkeypatch.setattr(onnx, "_run", deviating)
    if not refused:
        export_onnx(folds, tmp_path / "onnx")
        return
    with pytest.raises(MachineError, match=r"fold_0\.onnx: .* differ from torch's by up to"):
        export_onnx(folds, tmp_path / "onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_without_onnxruntime_the_log_says_that_nothing_was_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folds = write_folds(plan_of("2d", patch=(1, 8, 6)), "2d", tmp_path / "model", ())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with caplog.at_level(logging.WARNING):
        export_onnx(folds, tmp_path / "onnx")
    assert "fold_0.onnx was not compared with torch: onnxruntime is not installed" in caplog.text


def test_without_the_extra_one_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx.checker", None)
    with pytest.raises(UsageError, match=re.escape("install it by `pip install nnseg[onnx]`")):
        export_onnx([tmp_path / "nowhere"], tmp_path / "onnx")


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    folds = write_folds(plan_of("2d", patch=(1, 8, 6)), "2d", tmp_path / "model", ())
    target = tmp_path / "onnx"
    target.mkdir()
    with pytest.raises(UsageError, match="onnx: is there already; name a new folder"):
        export_onnx(folds, target)
    assert list(target.iterdir()) == []


def test_a_fold_is_given_once(tmp_path: Path) -> None:
    folds = write_folds(plan_of("2d", patch=(1, 8, 6)), "2d", tmp_path / "model", ())
    with pytest.raises(UsageError, match="fold_0 was given twice"):
        export_onnx([*folds, *folds], tmp_path / "onnx")


def test_the_example_refuses_a_changed_network(tmp_path: Path) -> None:
    folds = write_folds(plan_of("2d", patch=(1, 8, 6)), "2d", tmp_path / "model", ())
    network, _ = export_onnx(folds, tmp_path / "onnx")
    network.write_bytes(network.read_bytes() + b"\0")
    with pytest.raises(SystemExit, match=r"fold_0\.onnx: is damaged"):
        runner().read_model(tmp_path / "onnx")
