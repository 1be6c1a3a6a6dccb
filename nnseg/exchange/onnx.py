"""Models as ONNX: networks for other programs, and all that these must know to run them.

`export_onnx` writes a folder: a network for each fold, and model.json, an `OnnxModel`, which says
what happens to an image before them and to their logits after. examples/predict_with_onnx.py
follows it with neither nnseg nor torch.
"""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnseg import __version__, record
from nnseg.axes import Order, Shape
from nnseg.checkpoint import Kind
from nnseg.commit import sha256, whole_file, whole_folder
from nnseg.errors import MachineError, UsageError
from nnseg.exchange.rules import find_rules
from nnseg.image.intensity import Intensity
from nnseg.image.resample import COARSE
from nnseg.inference import Model, load_model
from nnseg.model.tiles import SIGMA
from nnseg.plan import Resampling
from nnseg.postprocess import Rule

logger = logging.getLogger(__name__)

FORMAT = 2
FILE = "model.json"
INPUT, OUTPUT = "image", "logits"
OPSET = 17  # what torch's older exporter knows best, and runtimes since 2022 run
TILE_STEP = 0.5  # as prediction has it
TOLERANCE = 1e-4  # largest difference of logits, as a share of their range
SEED = 0

STEPS = (
    "Read each channel as float32 (z, y, x): the axes of a NIfTI file reversed. Spacing is in mm. "
    "A 2D file is one slice, whose z spacing is 999 times the larger of its others. Of a picture "
    "(file_ending .png, .bmp, .jpg, .jpeg, .tif or .tiff) rows are y, columns x, each 1 mm apart, "
    "and its colours are channels one after the other; a TIFF's CASE.json may hold its spacing. "
    "All channels lie on one grid.",
    "Crop all channels to the box of the body: voxels where some channel is not 0, and holes among "
    "them that no path through voxel faces joins to the border. Without such voxels keep all.",
    "Transpose: axis i of what follows is axis order[i] of the image; spacing likewise.",
    "Normalize each channel by its rule. zscore: subtract its mean, divide by its deviation; with "
    "use_mask both are taken over the body, and voxels beyond it stay 0. ct: clip to "
    "percentile_00_5 and percentile_99_5, subtract mean, divide by std, all of `intensity`. "
    "rescale_to_0_1: subtract its minimum, divide by the maximum then. rgb_to_0_1: divide by 255. "
    "none: leave it. What divides is at least 1e-8.",
    "Resample to `spacing`, of which null keeps the image's: axes get round(old / new * voxels) "
    "voxels, halves to even. Voxel i of n lies at (i + 0.5) / n of the axis; splines of `order`, "
    "edges repeated, results clipped to the channel's range. If the coarsest spacing before is "
    "over coarse_ratio times the finest, or else after, and one axis alone has it, that axis is "
    "separate: the slices across it are resampled in their plane, each clipped to its own range, "
    "then the axis with order_along (0: the nearest slice). separate true or false decides "
    "regardless of the ratio.",
    "Pad with 0 on both sides of an axis shorter than patch_size, the odd voxel behind.",
    "Tiles along an axis: ceil((voxels - patch) / max(1, patch * tile_step)) + 1 of them, evenly "
    "from end to end, starts rounded, halves to even.",
    "A tile's logits are the mean over all networks and over all sets of mirror_axes, flipped "
    "before and back after. The input is (batch, channel, z, y, x), float32; z is 1 for 2D.",
    "The image's logits are the weighted mean of its tiles'; voxel i of n along an axis weighs "
    "exp(-((i - n // 2) / (tile_sigma * n)) ** 2 / 2), a voxel the product over the axes. Cut the "
    "padding off.",
    "Resample the logits to the cropped image's voxels by resample_logits, as images are; before "
    "is `spacing`, after the image's.",
    "argmax: a voxel gets the value in head_values of the head with the largest logit. regions: a "
    "voxel gets the value of the last head whose logit is over 0, or 0 where there is none.",
    "Transpose back, put the box at its place in the image, 0 elsewhere.",
    "Postprocess by each of the rules in `postprocessing`, in this order, on what the one before "
    "left; names are those in `labels`. Voxels whose corners touch are neighbours. keep_largest: "
    "of the voxels that have a value of any of its labels, all but the largest connected component "
    "become 0; of several equally large ones all stay. minimum_size: components of its label "
    "smaller than `smallest` become 0, counted in voxels, or in ml by the image's spacing, where "
    "one that is short of it by a millionth stays.",
    "Write the smallest unsigned integers that hold all values; of JPEG images a .png.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """A channel of the image, and what brings it to the scale of the network."""

    name: str
    normalization: str  # a name of NORMALIZERS
    use_mask: bool  # normalize within the body only
    intensity: Intensity  # of the training data


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFile:
    """The network of a fold, beside model.json."""

    file: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviousStage:
    """Of a cascade: what its network sees of the stage before, after the channels of the image.

    It is the stage's label map as one channel for each of `values`, 1 where the map has it and 0
    elsewhere, on the grid of the resampled image, to which `resample` brings the map.
    """

    configuration: str
    values: tuple[int, ...]
    resample: Resampling


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxModel:
    """model.json: all that a program must know to run the networks beside it.

    `steps` say in words what is done in which order; the other fields are the numbers. Per-axis
    values are (z, y, x) in plan order, the order after the transposition.
    """

    format: int = FORMAT
    nnseg_version: str
    dataset: str
    configuration: str
    steps: tuple[str, ...]
    networks: tuple[NetworkFile, ...]
    input: str
    output: str
    file_ending: str  # of the images
    channels: tuple[Channel, ...]
    crop: Literal["nonzero"]
    order: Order  # from image order to plan order
    spacing: tuple[float | None, float, float]  # mm; None keeps the image's own
    resample_image: Resampling
    resample_logits: Resampling
    coarse_ratio: float
    patch_size: Shape
    tile_step: float  # share of the patch
    tile_sigma: float  # share of the patch
    mirror_axes: tuple[int, ...]
    labels: dict[str, int | tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None
    decision: Literal["argmax", "regions"]
    head_values: tuple[int, ...]  # for each channel of the logits
    previous: PreviousStage | None
    postprocessing: tuple[Rule, ...]
    record_sha256: str = ""  # of this record without it; `record.save_sealed` writes it


class _Logits(nn.Module):
    """A network that gives the logits at full resolution alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        logits: Tensor = self.network(image, 1)[0]
        return logits


def export_onnx(folds: Sequence[Path], target: Path, kind: Kind = "final") -> tuple[Path, ...]:
    """Write the networks of a configuration as ONNX, and what a program must know to run them.

    `target` becomes a folder with fold_0.onnx, ... and model.json, whole or not at all. Networks
    compute in fp32; their input `image` is (batch, channel, z, y, x), of which batch is free and
    the rest is fixed to the patch; z is 1 for a 2D network, so that one program runs both kinds.
    Their output `logits` is (batch, head, z, y, x). Of a cascade only its own network is written.

    Rules for label maps that lie beside the folds, or their configurations, come along.

    Where onnxruntime is installed, each network computes a random batch of two patches there, too:
    no logit may differ from torch's by more than `TOLERANCE` times the largest minus the smallest
    of torch's.

    Args:
        folds: Folders that `nnseg train` made, of one configuration; see `load_model`.
        target: The folder to make.
        kind: The checkpoint, "final" or "best".

    Returns:
        The files: the networks in the order of `folds`, then model.json.

    Raises:
        UsageError: The package onnx is not installed, there is something at `target`, or two folds
            have one name.
        MissingError: A fold has not been trained.
        DataError: A file is damaged, or the folds are of different plans.
        MachineError: onnxruntime computes something else, or the folder cannot be written.
    """
    checker = _checker()
    if target.exists():
        raise UsageError(f"{target}: is there already; name a new folder, or remove it")
    names = [folder.resolve().name for folder in folds]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{twice[0]} was given twice; leave one out, files are named by the folds")
    rules = find_rules(folds[0])
    postprocessing = rules[1].rules if rules else ()
    # fp32 on a CPU runs on PyTorch's operators alone: an exporter cannot see into our kernels.
    model = load_model(folds, kind, device="cpu", precision="fp32", alone=True)
    # In the channels-last layout torch's norms of large patches err by more than is allowed.
    for network in model.networks:
        network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    patches = _random_patches(model)
    networks = []
    with whole_folder(target) as folder:
        for name, network in zip(names, model.networks, strict=True):
            path = folder / f"{name}.onnx"
            with whole_file(path) as unfinished:
                _export(_Logits(network).eval(), patches, unfinished)
                checker.check_model(str(unfinished))
                _check_parity(f"{name}.onnx", network, unfinished, patches)
            networks.append(NetworkFile(file=path.name, sha256=sha256(path)))
        record.save_sealed(_describe(model, networks, postprocessing), folder / FILE)
    return (*(target / network.file for network in networks), target / FILE)


def _describe(
    model: Model, networks: Sequence[NetworkFile], postprocessing: tuple[Rule, ...]
) -> OnnxModel:
    plan, configuration = model.plan, model.configuration
    labels = plan.labels
    return OnnxModel(
        nnseg_version=__version__,
        dataset=plan.dataset,
        configuration=configuration.name,
        steps=STEPS,
        networks=tuple(networks),
        input=INPUT,
        output=OUTPUT,
        file_ending=plan.file_ending,
        channels=tuple(
            Channel(name=name, normalization=rule, use_mask=use_mask, intensity=intensity)
            for name, rule, use_mask, intensity in zip(
                plan.channels,
                configuration.normalization,
                configuration.use_mask,
                plan.intensities,
                strict=True,
            )
        ),
        crop="nonzero",
        order=plan.order,
        spacing=configuration.spacing,
        resample_image=configuration.resample_image,
        resample_logits=configuration.resample_logits,
        coarse_ratio=COARSE,
        patch_size=configuration.patch_size,
        tile_step=TILE_STEP,
        tile_sigma=SIGMA,
        mirror_axes=model.mirror_axes,
        labels=labels.labels,
        regions_class_order=labels.regions_class_order,
        decision="regions" if labels.has_regions else "argmax",
        head_values=(labels.regions_class_order or ())
        if labels.has_regions
        else (0, *labels.foreground_values),
        previous=PreviousStage(
            configuration=configuration.previous,
            values=labels.foreground_values,
            resample=configuration.resample_segmentation,
        )
        if configuration.previous
        else None,
        postprocessing=postprocessing,
    )


def _random_patches(model: Model) -> Tensor:
    """Draw two patches of what a network sees: two, so that a batch size cannot be built in."""
    channels = model.plan.input_channels(model.configuration.name)
    generator = torch.Generator().manual_seed(SEED)
    return torch.randn(2, channels, *model.configuration.patch_size, generator=generator)


def _export(network: nn.Module, patches: Tensor, path: Path) -> None:
    # Of torch's two exporters this is the older one: it has long settled, and needs no package
    # but onnx. The other was new in 2.5 and has changed with each release since, needs an
    # onnxscript that goes with the torch at hand, and takes some 20 times as long for the same
    # graph. That this one is deprecated, and says so, costs networks without control flow nothing.
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (patches,),
            str(path),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )


def _check_parity(name: str, network: nn.Module, path: Path, patches: Tensor) -> None:
    """Compare torch's logits with onnxruntime's.

    Raises:
        MachineError: They differ by more than `TOLERANCE` of their range.
    """
    found = _run(path, patches.numpy())
    if found is None:
        logger.warning("%s was not compared with torch: onnxruntime is not installed", name)
        return
    with torch.inference_mode():
        wanted = network(patches, 1)[0].numpy()
    if found.shape != wanted.shape:
        raise MachineError(
            f"{name}: onnxruntime's logits have the shape {found.shape} where torch's have "
            f"{wanted.shape}; nothing was written, try another version of onnxruntime"
        )
    apart = float(np.abs(found - wanted).max())
    extent = float(wanted.max() - wanted.min())
    if not apart <= TOLERANCE * extent:
        raise MachineError(
            f"{name}: onnxruntime's logits differ from torch's by up to {apart:.3g}, whose range "
            f"is {extent:.3g}; at most {TOLERANCE:g} of it is allowed; nothing was written, try "
            "another version of onnxruntime"
        )
    logger.info("%s: logits differ from torch's by at most %.2g of %.3g", name, apart, extent)


def _run(path: Path, patches: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """Give what onnxruntime computes, or None where it is not installed."""
    try:
        runtime = import_module("onnxruntime")
    except ImportError:
        return None
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run([OUTPUT], {INPUT: patches})[0]
    return logits


def _checker() -> Any:
    """Import what checks ONNX files; without its package torch cannot write them, either.

    Raises:
        UsageError: It is not installed.
    """
    try:
        return import_module("onnx.checker")
    except ImportError as error:
        raise UsageError(
            f"onnx is not installed ({error}); install it by `pip install nnseg[onnx]`"
        ) from None
