"""A trained model at work: from an image to its label map."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nnseg.axes import Image, Planes, Segmentation, Spacing
from nnseg.checkpoint import Checkpoint, Kind
from nnseg.checkpoint import load_model as load_checkpoint
from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError, MachineError, MissingError
from nnseg.folders import trained_folds
from nnseg.image.normalize import NORMALIZERS
from nnseg.model.device import OUT_OF_MEMORY, Execution, choose_execution, is_out_of_memory
from nnseg.plan import Configuration, Plan
from nnseg.predict import PLAIN_SWEEP, Sweep, load_network, stream_logits
from nnseg.preprocess import Placement, preprocess_case
from nnseg.restore import restore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One configuration's networks, one a fold, ready to predict."""

    plan: Plan
    configuration: Configuration
    networks: tuple[nn.Module, ...]
    mirror_axes: tuple[int, ...]  # of (z, y, x): those that the training of every network mirrored
    execution: Execution
    weights_sha256: tuple[str, ...]  # of each network
    previous: "Model | None" = None  # of a cascade: the stage before

    @property
    def spec(self) -> DatasetSpec:
        """The dataset.json of images to predict: channels, labels, how files end."""
        return DatasetSpec(
            channels=self.plan.channels,
            labels=self.plan.labels,
            num_training=0,
            file_ending=self.plan.file_ending,
        )

    def predict(
        self,
        channels: Sequence[NDArray[Any]],
        spacing: Spacing,
        *,
        sweep: Sweep = PLAIN_SWEEP,
        previous: Segmentation | None = None,
        look: Callable[[Planes], None] | None = None,
    ) -> Segmentation:
        """Segment one image; a cascade does so in two stages.

        Args:
            channels: Each (z, y, x), of any real type.
            spacing: mm, (z, y, x).
            sweep: How the sliding window goes.
            previous: What a cascade's stage before found, as label positions on the grid of the
                preprocessed case, plan order; None has `self.previous` find it.
            look: Called with the logits (z, y, x, head) of the preprocessed case, plan order, some
                planes at a time.

        Returns:
            Label map (z, y, x), of the smallest type that holds the labels.

        Raises:
            DataError: The image does not fit the model, or the networks gave values that are not
                finite.
            MachineError: There is not enough memory.
        """
        seen, placement = self.prepare(channels, spacing, sweep=sweep, previous=previous)
        return self.decide(seen, placement, sweep=sweep, look=look)

    def decide(
        self,
        seen: Image,
        placement: Placement,
        *,
        sweep: Sweep = PLAIN_SWEEP,
        look: Callable[[Planes], None] | None = None,
    ) -> Segmentation:
        """Give the label map of what `prepare` gave; the other arguments are those of `predict`."""
        runs = self.logits(seen, sweep=sweep)
        labels, configuration = self.plan.labels, self.configuration
        return restore(_shown(runs, look), placement, labels, configuration, ask=sweep.ask)

    def prepare(
        self,
        channels: Sequence[NDArray[Any]],
        spacing: Spacing,
        *,
        sweep: Sweep = PLAIN_SWEEP,
        previous: Segmentation | None = None,
    ) -> tuple[Image, Placement]:
        """Make of an image what the network sees; the arguments are those of `predict`.

        Returns:
            (channel, z, y, x), plan order, those of a cascade's stage before last; and where it
            lies in its file.
        """
        found = None
        if self.configuration.previous and previous is None:
            assert self.previous is not None, "load_model gave a cascade its stage before"
            found = self.previous.predict(channels, spacing, sweep=sweep)
        plan, configuration = self.plan, self.configuration
        case = preprocess_case(channels, found, spacing, plan, configuration, ask=sweep.ask)
        if not self.configuration.previous:
            return case.image, case.placement
        positions = case.segmentation if previous is None else previous
        assert positions is not None, "it was given"
        return np.concatenate([case.image, self.plan.labels.to_channels(positions)]), case.placement

    def logits(
        self, image: Image, *, sweep: Sweep = PLAIN_SWEEP, spread: bool = False
    ) -> Iterator[Planes]:
        """Predict a preprocessed image (channel, z, y, x).

        Args:
            image: What `prepare` gave.
            sweep: How the sliding window goes.
            spread: Add a last head that says how far the folds are apart; see `stream_logits`.

        Yields:
            Logits (z, y, x, head), float32: its planes in order, some at a time.

        Raises:
            DataError: The networks gave values that are not finite.
            MachineError: There is not enough memory.
            StoppedError: The sweep was told to stop.
        """
        regions = self.plan.labels.has_regions
        activation = torch.sigmoid if regions else partial(torch.softmax, dim=1)
        try:
            yield from stream_logits(
                self.networks,
                image,
                self.configuration.patch_size,
                self.execution,
                mirror_axes=self.mirror_axes,
                sweep=sweep,
                spread=activation if spread else None,
            )
        except OUT_OF_MEMORY as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or ["none is left"])[0]
            raise MachineError(
                f"there is not enough memory for this image ({reason}); free some, or use "
                "--device cpu"
            ) from None


def _shown(runs: Iterable[Planes], look: Callable[[Planes], None] | None) -> Iterator[Planes]:
    for planes in runs:
        if look is not None:
            look(planes)
        yield planes


def load_model(
    fold_folders: Sequence[Path],
    checkpoint: Kind = "final",
    *,
    device: str | None = None,
    precision: str | None = None,
    alone: bool = False,
    folds_before: Sequence[str] = (),
    most_before: int | None = None,
) -> Model:
    """Load one configuration's networks from the folders of its folds.

    A cascade comes with trained folds of the stage before it, whose folder lies beside its own.

    Args:
        fold_folders: What `nnseg train` made.
        checkpoint: "final" or "best".
        device: "cpu", "cuda", ...; None is the best there is.
        precision: "fp32", "bf16" or "fp16"; None chooses.
        alone: Leave out the stage before a cascade: `predict` will be handed what it found.
        folds_before: Those of the stage before, as they are called; none are all that are trained,
            as where one of them is not.
        most_before: Of them, the first so many; None are all.

    Raises:
        MissingError: A fold has not been trained.
        DataError: A file is damaged, or the folds are of different plans.
    """
    execution = choose_execution(device, precision, trains=False)
    loaded = [load_checkpoint(folder, checkpoint) for folder in fold_folders]
    first = loaded[0][0]
    for (other, _), folder in zip(loaded, fold_folders, strict=True):
        if other.plan != first.plan or other.configuration_name != first.configuration_name:
            raise DataError(f"{folder}: was trained from another plan than {fold_folders[0]}")
    previous = None
    if first.configuration.previous and not alone:
        beside = fold_folders[0].absolute().parent.with_name(first.configuration.previous)
        command = f"nnseg train {first.plan.dataset} {beside.name}"
        folds = trained_folds(beside, kind=checkpoint, made_by=command)
        if folds_before:
            try:
                folds = trained_folds(beside, folds_before, checkpoint, command)
            except MissingError as error:
                logger.warning("%s; all of its trained folds are taken", error)
        previous = load_model(folds[:most_before], checkpoint, device=device, precision=precision)
        if previous.plan != first.plan:
            raise DataError(f"{beside}: was trained from another plan than {fold_folders[0]}")
    return Model(
        plan=first.plan,
        configuration=first.configuration,
        networks=tuple(_networks(loaded, fold_folders, execution)),
        mirror_axes=tuple(
            axis for axis in first.mirror_axes if all(axis in one.mirror_axes for one, _ in loaded)
        ),
        execution=execution,
        weights_sha256=tuple(one.weights_sha256 for one, _ in loaded),
        previous=previous,
    )


def _networks(
    loaded: Sequence[tuple[Checkpoint, dict[str, Tensor]]],
    folders: Sequence[Path],
    execution: Execution,
) -> Iterator[nn.Module]:
    for (checkpoint, weights), folder in zip(loaded, folders, strict=True):
        try:
            for name in checkpoint.configuration.normalization:
                NORMALIZERS[name]  # or every image would say that there is none
            yield load_network(checkpoint, weights, execution)
        except DataError as error:
            raise type(error)(f"{folder}: {error}") from None
