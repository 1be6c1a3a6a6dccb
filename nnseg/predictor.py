"""One line of Python: whatever holds an image in, the same kind of thing with its labels out."""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from nnseg import record
from nnseg.axes import (
    Shape,
    Spacing,
    by,
    inverse_order,
    permute,
    smallest_integer_type,
    three,
)
from nnseg.checkpoint import Kind
from nnseg.choose import Choice
from nnseg.dataset import DatasetSpec
from nnseg.ensemble import (
    Map,
    Member,
    Prediction,
    Prepared,
    TakePlanes,
    check_members,
    predict_image,
    prepare_image,
)
from nnseg.errors import MachineError, MissingError, NnsegError, StoppedError, UsageError
from nnseg.estimate import (
    FLOAT_BYTES,
    CaseSize,
    bytes_of_case,
    free_memory,
    in_gb,
    may_read_ahead,
)
from nnseg.folders import (
    CHOICE,
    confidence_file,
    is_of_nnunet,
    trained_folds,
    validation_folder,
)
from nnseg.image.crop import crop_to_body
from nnseg.image.resample import target_shape
from nnseg.inference import Model, load_model
from nnseg.postprocess import Postprocessing, apply
from nnseg.postprocess.stored import stored_rules
from nnseg.predict import OnTile, Sweep, bytes_of_sweep, never
from nnseg.preprocess import Placement, planned_spacing
from nnseg.registry import Registry
from nnseg.scores.confidence import read_confidence
from nnseg.volume import Opened, check_writable, files_of, open_image, write

PROGRAM_BYTES = 4 * 10**8  # of the program with torch and without an image
SURE_SHARE = 0.6  # of what is foretold: networks in fp32 have been seen to take 0.7 of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What is given up for time, or time for."""

    step: float = 0.5  # distance of tiles, as a share of their edge
    mirror: bool = True
    folds: int | None = None  # the first so many of those trained; None are all
    precision: str | None = None  # None chooses


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """The memory that an image is foretold to take, in bytes."""

    memory: int
    device: int  # of a GPU's own memory


PRESETS = Registry[Preset](
    "preset",
    fast=Preset(step=0.75, mirror=False, folds=1),
    default=Preset(),
    best=Preset(precision="fp32"),  # as exact as nnU-Net itself
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictor:
    """Models ready to predict, one or several together. It may be used from several threads."""

    members: tuple[Member, ...]
    postprocessing: Postprocessing = field(default_factory=Postprocessing)
    step: float = 0.5
    mirror: bool = True

    def __post_init__(self) -> None:
        check_members(self.members)

    @property
    def spec(self) -> DatasetSpec:
        """The dataset.json of images to predict: channels, labels, how files end."""
        return self.members[0].model.spec

    def predict(
        self,
        image: Any,
        *,
        output: Path | str | None = None,
        on_progress: OnTile | None = None,
        cancel: Callable[[], bool] = never,
    ) -> Any:
        """Segment one image.

        Args:
            image: A path, an image of nibabel or SimpleITK, (array, spacing), or a list of one for
                each channel; see `open_image`.
            output: A file for the label map, other than those of the image.
            on_progress: Called with the tiles done and their number, of all models together. Each
                stage before a cascade's last has a count of its own before that.
            cancel: Asked often, within a pass of a network, too; True ends the prediction.

        Returns:
            The label map, as the same kind of thing: a nibabel or SimpleITK image on the image's
            grid, an array for an array. For a path it is a nibabel image. With `output`, its path.

        Raises:
            UsageError: The image is none of these, or `output` a file of it.
            DataError: The image does not fit the model, a file is damaged, or `output` cannot be of
                this format.
            MachineError: There is not enough memory.
            StoppedError: `cancel` said True; no file is written.
        """
        ask = Sweep(stop=cancel).ask
        ask()
        target = None if output is None else Path(output)
        if target is not None and any(_is_same_file(target, file) for file in files_of(image)):
            raise UsageError(f"{target} is the image itself; give another file for its label map")
        opened = open_image(image, len(self.spec.channels))
        ask()
        geometry, give = opened.volume.geometry, opened.give
        if target is not None:
            check_writable(target, geometry)
        prepared = self.prepare(
            tuple(opened.volume.image), geometry.spacing, on_tile=on_progress, stop=cancel
        )
        del opened  # the networks run without the image in memory
        found = self.segment(prepared, on_tile=on_progress, stop=cancel).segmentation
        ask()
        if target is None:
            return give(found)
        write(target, found, geometry, self.spec.labels.as_text)
        return target

    def predict_many(
        self,
        images: Iterable[Any],
        *,
        on_progress: Callable[[int], None] | None = None,
        on_error: Callable[[Any, NnsegError], Any] | None = None,
        cancel: Callable[[], bool] = never,
    ) -> Iterator[Any]:
        """Segment images one after the other, while the next one is read unless it is large.

        Args:
            images: Each as for `predict`.
            on_progress: Called with the number of images done.
            on_error: Called with an image that cannot be segmented, and why. What it gives comes in
                the place of the label map, and the other images follow. Without it they are lost.
            cancel: As for `predict`.

        Yields:
            What `predict` gives, one for each image.

        Raises:
            NnsegError: As `predict`, for the first bad image; with `on_error` only StoppedError.
        """

        def labels_of(opening: Callable[[], Opened]) -> Any:
            opened = opening()
            volume, give = opened.volume, opened.give
            prepared = self.prepare(tuple(volume.image), volume.geometry.spacing, stop=cancel)
            del opened, volume
            return give(self.segment(prepared, stop=cancel).segmentation)

        with closing(_open_ahead(images, len(self.spec.channels))) as coming:
            for done, (image, opening) in enumerate(coming, start=1):
                try:
                    labels = labels_of(opening)
                except NnsegError as error:
                    if on_error is None or isinstance(error, StoppedError):
                        raise
                    labels = on_error(image, error)
                if on_progress:
                    on_progress(done)
                yield labels

    def prepare(
        self,
        channels: Sequence[NDArray[Any]],
        spacing: Spacing,
        *,
        on_tile: OnTile | None = None,
        stop: Callable[[], bool] = never,
    ) -> Prepared:
        """Make of an image what the networks see; see `prepare_image`.

        Who drops the image then has it in memory no longer while the networks run.

        Raises:
            MachineError: The image would be so large at the spacing of a model that it cannot be
                kept in the memory that is free.
        """
        self._check_memory(channels, spacing)
        return prepare_image(self.members, channels, spacing, sweep=self._sweep(on_tile, stop))

    def segment(
        self,
        prepared: Prepared,
        *,
        maps: Sequence[Map] = (),
        probabilities: Callable[[Placement], TakePlanes] | None = None,
        on_tile: OnTile | None = None,
        stop: Callable[[], bool] = never,
    ) -> Prediction:
        """Segment what `prepare` gave; see `predict_image`. The stored rules are applied."""
        sweep = self._sweep(on_tile, stop)
        found = predict_image(
            self.members, prepared, sweep=sweep, maps=maps, probabilities=probabilities
        )
        sweep.ask()
        labels = self.members[0].model.plan.labels
        return Prediction(
            segmentation=apply(
                found.segmentation, self.postprocessing, labels, prepared.placements[0].spacing
            ),
            expected_dice=found.expected_dice,
            maps=found.maps,
        )

    def stages(self) -> tuple[Model, ...]:
        """Give the models in the order in which they run: before a cascade's, its stage before."""
        return tuple(stage for member in self.members for stage in _stages(member.model))

    def foretell(self, size: CaseSize) -> Needs:
        """Foretell the most memory that an image of some size takes.

        An image takes most while it is preprocessed (`bytes_of_case`), or else while the networks
        run: in float32 all channels as each model sees them, and with a cascade as the file has
        them; the label map; and what `bytes_of_sweep` says.
        """
        stages = self.stages()
        weights = sum(
            values.numel() * values.element_size()
            for stage in stages
            for network in stage.networks
            for values in network.parameters()
        )
        labels = self.members[0].model.plan.labels
        image = size.voxels * smallest_integer_type(labels.values[-1]).itemsize
        if len(stages) > len(self.members):
            image += FLOAT_BYTES * len(self.spec.channels) * size.voxels
        most, seen, sums, a_pass = 0, 0.0, 0, 0
        for stage in stages:
            plan, configuration = stage.plan, stage.configuration
            most = max(most, bytes_of_case(size, plan, [configuration]))
            _, shape = _grid_seen(stage, size)
            channels = plan.input_channels(configuration.name)
            seen += FLOAT_BYTES * channels * math.prod(shape)
            one_pass, kept = bytes_of_sweep(
                configuration.architecture,
                shape,
                configuration.patch_size,
                plan.labels.heads,
                stage.execution,
            )
            a_pass, sums = max(a_pass, one_pass), sums + kept
        device = stages[0].execution.torch_device.type
        networks = weights + a_pass + sums
        memory = PROGRAM_BYTES + max(most, int(image + seen) + (networks if device == "cpu" else 0))
        return Needs(memory=memory, device=0 if device == "cpu" else networks)

    def _sweep(self, on_tile: OnTile | None, stop: Callable[[], bool]) -> Sweep:
        return Sweep(step=self.step, mirror=self.mirror, on_tile=on_tile, stop=stop)

    def _check_memory(self, channels: Sequence[NDArray[Any]], spacing: Spacing) -> None:
        """Refuse an image that surely needs more memory than is free: the system would kill us."""
        free, shape = free_memory(), three(channels[0].shape)
        size = CaseSize(shape=shape, spacing=spacing, voxels=math.prod(shape))
        here = PROGRAM_BYTES + sum(channel.nbytes for channel in channels)  # already
        if SURE_SHARE * (self.foretell(size).memory - here) <= free:
            return
        body = crop_to_body(tuple(channels), None).channels[0]  # the air around it takes little
        size = replace(size, shape=three(body.shape))
        needed = self.foretell(size).memory - here
        if SURE_SHARE * needed <= free:
            return
        stage = max(self.stages(), key=lambda stage: math.prod(_grid_seen(stage, size)[1]))
        back = inverse_order(stage.plan.order)
        new_spacing, new_shape = (permute(each, back) for each in _grid_seen(stage, size))
        raise MachineError(
            f"the image has {by(size.shape)} voxels of {by(spacing)} mm (z, y, x) around its body; "
            f"at the model's {by(new_spacing)} mm they are {by(new_shape)}, and that takes about "
            f"{in_gb(needed)} of memory, of which {in_gb(free)} are free; correct the spacing, or "
            "free memory"
        )


def _grid_seen(stage: Model, size: CaseSize) -> tuple[Spacing, Shape]:
    """Give the spacing and shape, plan order, that an image is resampled to for a model."""
    spacing = permute(size.spacing, stage.plan.order)
    new = planned_spacing(spacing, stage.configuration)
    return new, target_shape(permute(size.shape, stage.plan.order), spacing, new)


def _is_same_file(target: Path, file: Path) -> bool:
    return target.exists() and file.exists() and target.samefile(file)


def _open_ahead(
    images: Iterable[Any], channels: int
) -> Generator[tuple[Any, Callable[[], Opened]], None, None]:
    """Go through images, each with what opens it, while a small next one is opened already."""
    reader = ThreadPoolExecutor(1)
    last: tuple[Any, Callable[[], Opened]] | None = None
    try:
        for image in images:
            opening: Callable[[], Opened] = partial(open_image, image, channels)
            if may_read_ahead(files_of(image)):
                opening = reader.submit(opening).result
            if last is not None:
                yield last
            last = image, opening
        if last is not None:
            yield last
    finally:
        reader.shutdown(wait=False)  # nobody waits for an image that nobody wants any more


def _stages(model: Model) -> tuple[Model, ...]:
    return (*(_stages(model.previous) if model.previous else ()), model)


def load(
    model: Path | str | Sequence[Path | str],
    *,
    folds: Sequence[str | int] = (),
    weights: Sequence[float] = (),
    checkpoint: Kind = "final",
    preset: str = "default",
    calibrated: bool = False,
    device: str | None = None,
    precision: str | None = None,
) -> Predictor:
    """Load a model, or several to predict together.

    Args:
        model: The folder of a configuration (fold_0, ...) or of one fold, or a choice.json or the
            folder that it lies in. Of several, their probabilities are averaged.
        folds: As they are called, such as 0 or "all"; none are all that are trained. A cascade's
            stage before has the same, or all of its own if it lacks one of them.
        weights: Of several models; none are all alike.
        checkpoint: "final" or "best".
        preset: A name of PRESETS: `fast` gives up exactness for time, `best` the other way round.
        calibrated: Divide logits by the temperature that fitted the validation cases of the folds
            best, where they become probabilities. One model finds the same labels all the same.
        device: "cpu", "cuda", ...; None is the best there is.
        precision: "fp32", "bf16" or "fp16"; None chooses.

    Raises:
        MissingError: There is no such model, it has not been trained, or, to be calibrated, not
            been validated.
        UsageError: A name is unknown, or a choice comes with folds or weights of its own.
        DataError: A file is damaged, or the models do not fit each other.
    """
    chosen = PRESETS[preset]
    paths = [Path(one) for one in ([model] if isinstance(model, Path | str) else model)]
    names = tuple(map(str, folds))
    members, rules = [], Postprocessing()
    stored: Path | None = None
    choice = _choice_file(paths[0]) if len(paths) == 1 else None
    if choice is not None:
        if names or weights:
            raise UsageError(f"{choice} says which folds and weights; give none")
        content = record.load(Choice, choice)
        entries = [(choice.parent / one.folder, one.folds, one.weight) for one in content.members]
        rules = content.postprocessing
    else:
        if weights and len(weights) != len(paths):
            raise UsageError(f"{len(weights)} weights for {len(paths)} models; give one each")
        entries = [
            (path, names, weight)
            for path, weight in zip(paths, weights or [1.0] * len(paths), strict=True)
        ]
        if len(paths) == 1:
            stored = paths[0]
    most = None if names else chosen.folds  # who names folds means them
    for folder, wanted, weight in entries:
        found = _folds_of(folder, wanted, checkpoint)[:most]
        loaded = load_model(
            found,
            checkpoint,
            device=device,
            precision=precision or chosen.precision,
            folds_before=wanted,
            most_before=most,
        )
        temperature = _temperature(found, loaded.weights_sha256) if calibrated else 1.0
        members.append(Member(model=loaded, weight=weight, temperature=temperature))
    if stored is not None:
        rules = stored_rules(stored, members[0].model.plan.labels)
    return Predictor(
        members=tuple(members), postprocessing=rules, step=chosen.step, mirror=chosen.mirror
    )


def _folds_of(folder: Path, names: Sequence[str], checkpoint: Kind) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise MissingError(f"{folder}: there is no such folder; give that of a trained model")
    if is_of_nnunet(folder):
        raise UsageError(
            f"{folder} is a model of nnU-Net; `nnseg import {folder} -o FOLDER` makes one of ours"
        )
    return trained_folds(folder, names, checkpoint)


def _temperature(folds: Sequence[Path], weights: Sequence[str]) -> float:
    """Give the mean temperature, as a factor, of the folds that have one of their weights."""
    found = []
    for fold, digest in zip(folds, weights, strict=True):
        confidence = read_confidence(fold, digest)
        if confidence is not None and confidence.calibration is not None:
            found.append(confidence.calibration.temperature)
    if not found:
        if any(confidence_file(validation_folder(fold)).is_file() for fold in folds):
            raise MissingError(
                f"{folds[0]} has a calibration that is not proven to be of its weights, as after a "
                "training that went on; `nnseg train ... --val` validates it, which calibrates it"
            )
        raise MissingError(
            f"{folds[0]} has not been calibrated; `nnseg train ... --val` validates it, which does"
        )
    return math.exp(math.fsum(map(math.log, found)) / len(found))


def _choice_file(path: Path) -> Path | None:
    """Give the choice.json that is meant by a path, if one is."""
    if path.is_dir() and (path / CHOICE).is_file():
        return path / CHOICE
    return path if path.name.endswith(".json") else None
