"""One line of Python: whatever holds an image in, the same kind of thing with its labels out."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnseg import record
from nnseg.axes import Image, Spacing
from nnseg.checkpoint import Kind
from nnseg.choose import Choice
from nnseg.confidence import Confidence
from nnseg.dataset import DatasetSpec
from nnseg.ensemble import Map, Member, Prediction, TakePlanes, check_members, predict_image
from nnseg.errors import MissingError, UsageError
from nnseg.folders import (
    CHOICE,
    confidence_file,
    is_of_nnunet,
    postprocessing_file,
    trained_folds,
    validation_folder,
)
from nnseg.inference import load_model
from nnseg.postprocess import Postprocessing, apply
from nnseg.predict import OnTile, Sweep, never
from nnseg.preprocess import Placement
from nnseg.registry import Registry
from nnseg.volume import open_image, write


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """What is given up for time, or time for."""

    step: float = 0.5  # distance of tiles, as a share of their edge
    mirror: bool = True
    folds: int | None = None  # the first so many of those trained; None are all
    precision: str | None = None  # None chooses


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
            output: A file for the label map.
            on_progress: Called with the tiles done and their number, for each stage of each model.
            cancel: Asked often; True ends the prediction with StoppedError.

        Returns:
            The label map, as the same kind of thing: a nibabel or SimpleITK image on the image's
            grid, an array for an array. For a path it is a nibabel image. With `output`, its path.

        Raises:
            UsageError: The image is none of these.
            DataError: The image does not fit the model, or a file is damaged.
            MachineError: There is not enough memory.
        """
        opened = open_image(image, len(self.spec.channels))
        volume = opened.volume
        found = self.segment(
            volume.image, volume.geometry.spacing, on_tile=on_progress, stop=cancel
        ).segmentation
        if output is None:
            return opened.give(found)
        write(Path(output), found, volume.geometry)
        return Path(output)

    def predict_many(
        self,
        images: Iterable[Any],
        *,
        on_progress: Callable[[int], None] | None = None,
        cancel: Callable[[], bool] = never,
    ) -> Iterator[Any]:
        """Segment images one after the other, while the next one is read.

        Args:
            images: Each as for `predict`.
            on_progress: Called with the number of images done.
            cancel: As for `predict`.

        Yields:
            What `predict` gives.
        """
        channels = len(self.spec.channels)
        waiting = iter(images)
        with ThreadPoolExecutor(1) as reader:

            def read_next() -> Any:
                for image in waiting:
                    return reader.submit(open_image, image, channels)
                return None

            coming, done = read_next(), 0
            while coming is not None:
                opened, coming = coming.result(), read_next()
                volume = opened.volume
                found = self.segment(volume.image, volume.geometry.spacing, stop=cancel)
                done += 1
                if on_progress:
                    on_progress(done)
                yield opened.give(found.segmentation)

    def segment(
        self,
        image: Image,
        spacing: Spacing,
        *,
        maps: Sequence[Map] = (),
        probabilities: Callable[[Placement], TakePlanes] | None = None,
        on_tile: OnTile | None = None,
        stop: Callable[[], bool] = never,
    ) -> Prediction:
        """Segment an array; see `predict_image`. The stored rules are applied to the label map."""
        sweep = Sweep(step=self.step, mirror=self.mirror, on_tile=on_tile, stop=stop)
        found = predict_image(
            self.members, image, spacing, sweep=sweep, maps=maps, probabilities=probabilities
        )
        labels = self.members[0].model.plan.labels
        return Prediction(
            segmentation=apply(found.segmentation, self.postprocessing, labels, spacing),
            expected_dice=found.expected_dice,
            maps=found.maps,
        )


def load(
    model: Path | str | Sequence[Path | str],
    *,
    folds: Sequence[str] = (),
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
        folds: As they are called, such as "0"; none are all that are trained.
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
    members, rules = [], Postprocessing()
    choice = _choice_file(paths[0]) if len(paths) == 1 else None
    if choice is not None:
        if folds or weights:
            raise UsageError(f"{choice} says which folds and weights; give none")
        content = record.load(Choice, choice)
        entries = [(choice.parent / one.folder, one.folds, one.weight) for one in content.members]
        rules = content.postprocessing
    else:
        if weights and len(weights) != len(paths):
            raise UsageError(f"{len(weights)} weights for {len(paths)} models; give one each")
        entries = [
            (path, tuple(folds), weight)
            for path, weight in zip(paths, weights or [1.0] * len(paths), strict=True)
        ]
        if len(paths) == 1:
            rules = _stored_rules(paths[0])
    for folder, names, weight in entries:
        found = _folds_of(folder, names, checkpoint, chosen)
        members.append(
            Member(
                model=load_model(
                    found, checkpoint, device=device, precision=precision or chosen.precision
                ),
                weight=weight,
                temperature=_temperature(found) if calibrated else 1.0,
            )
        )
    return Predictor(
        members=tuple(members), postprocessing=rules, step=chosen.step, mirror=chosen.mirror
    )


def _folds_of(
    folder: Path, names: Sequence[str], checkpoint: Kind, chosen: Preset
) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise MissingError(f"{folder}: there is no such folder; give that of a trained model")
    if is_of_nnunet(folder):
        raise UsageError(
            f"{folder} is a model of nnU-Net; `nnseg import {folder} -o FOLDER` makes one of ours"
        )
    found = trained_folds(folder, names, checkpoint)
    return found if names else found[: chosen.folds]


def _temperature(folds: Sequence[Path]) -> float:
    """Give the mean temperature, as a factor, of the folds that have one."""
    found = []
    for fold in folds:
        path = confidence_file(validation_folder(fold))
        if path.is_file():
            calibration = record.load(Confidence, path).calibration
            found += [] if calibration is None else [calibration.temperature]
    if not found:
        raise MissingError(
            f"{folds[0]} has not been calibrated; `nnseg train ... --val` validates it, which does"
        )
    return math.exp(math.fsum(map(math.log, found)) / len(found))


def _choice_file(path: Path) -> Path | None:
    """Give the choice.json that is meant by a path, if one is."""
    if path.is_dir() and (path / CHOICE).is_file():
        return path / CHOICE
    return path if path.name.endswith(".json") else None


def _stored_rules(folder: Path) -> Postprocessing:
    """Give the rules beside a configuration's folds, whichever of the two folders it is."""
    for place in (folder, folder.parent):
        file = postprocessing_file(place)
        if file.is_file():
            return record.load(Postprocessing, file)
    return Postprocessing()
