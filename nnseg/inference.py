"""A trained model at work: from an image to its label map."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nnseg.axes import Image, Segmentation, Spacing
from nnseg.checkpoint import Kind
from nnseg.checkpoint import load_model as load_checkpoint
from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError, MachineError
from nnseg.folders import trained_folds
from nnseg.model.device import OUT_OF_MEMORY, Execution, choose_execution, is_out_of_memory
from nnseg.plan import Configuration, Plan
from nnseg.predict import load_network, predict_logits
from nnseg.preprocess import preprocess_case, restore


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One configuration's networks, one a fold, ready to predict."""

    plan: Plan
    configuration: Configuration
    networks: tuple[nn.Module, ...]
    mirror_axes: tuple[int, ...]  # of (z, y, x): those that the training of every network mirrored
    execution: Execution
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
        image: Image,
        spacing: Spacing,
        *,
        step: float = 0.5,
        mirror: bool = True,
        previous: Segmentation | None = None,
        on_tile: Callable[[int, int], None] | None = None,
    ) -> Segmentation:
        """Segment one image; a cascade does so in two stages.

        Args:
            image: (channel, z, y, x), float32.
            spacing: mm, (z, y, x).
            step: Distance of tiles, as a share of their edge.
            mirror: Average over mirrored images, too.
            previous: What a cascade's stage before found, as label positions on the grid of the
                preprocessed case, plan order; None has `self.previous` find it.
            on_tile: Called with the tiles done and their number.

        Returns:
            Label map (z, y, x), of the smallest type that holds the labels.

        Raises:
            DataError: The image does not fit the model.
            MachineError: There is not enough memory.
        """
        found = None
        if self.configuration.previous and previous is None:
            assert self.previous is not None, "load_model gave a cascade its stage before"
            found = self.previous.predict(image, spacing, step=step, mirror=mirror, on_tile=on_tile)
        case = preprocess_case(image, found, spacing, self.plan, self.configuration)
        seen = case.image
        if self.configuration.previous:
            positions = case.segmentation if previous is None else previous
            assert positions is not None, "it was given"
            seen = np.concatenate([seen, self.plan.labels.to_channels(positions)])
        logits = self.logits(seen, step=step, mirror=mirror, on_tile=on_tile)
        return restore(logits, case.placement, self.plan.labels, self.configuration)

    def logits(
        self,
        image: Image,
        *,
        step: float = 0.5,
        mirror: bool = True,
        on_tile: Callable[[int, int], None] | None = None,
    ) -> NDArray[np.float32]:
        """Predict a preprocessed image (channel, z, y, x): logits (head, z, y, x), float32.

        The other arguments are those of `predict`. Of a cascade the image has the channels of the
        stage before, too.

        Raises:
            MachineError: There is not enough memory.
        """
        try:
            return predict_logits(
                self.networks,
                image,
                self.configuration.patch_size,
                self.execution,
                mirror_axes=self.mirror_axes if mirror else (),
                step=step,
                on_tile=on_tile,
            )
        except OUT_OF_MEMORY as error:
            if not is_out_of_memory(error):
                raise
            reason = (str(error).splitlines() or ["none is left"])[0]
            raise MachineError(
                f"there is not enough memory for this image ({reason}); free some, or use "
                "--device cpu"
            ) from None


def load_model(
    fold_folders: Sequence[Path],
    checkpoint: Kind = "final",
    *,
    device: str | None = None,
    precision: str | None = None,
    alone: bool = False,
) -> Model:
    """Load one configuration's networks from the folders of its folds.

    A cascade comes with all trained folds of the stage before it, whose folder lies beside its own.

    Args:
        fold_folders: What `nnseg train` made.
        checkpoint: "final" or "best".
        device: "cpu", "cuda", ...; None is the best there is.
        precision: "fp32", "bf16" or "fp16"; None chooses.
        alone: Leave out the stage before a cascade: `predict` will be handed what it found.

    Raises:
        MissingError: A fold has not been trained.
        DataError: A file is damaged, or the folds are of different plans.
    """
    execution = choose_execution(device, precision)
    loaded = [load_checkpoint(folder, checkpoint) for folder in fold_folders]
    first = loaded[0][0]
    for (other, _), folder in zip(loaded, fold_folders, strict=True):
        if other.plan != first.plan or other.configuration_name != first.configuration_name:
            raise DataError(f"{folder}: was trained from another plan than {fold_folders[0]}")
    previous = None
    if first.configuration.previous and not alone:
        beside = fold_folders[0].parent.with_name(first.configuration.previous)
        command = f"nnseg train {first.plan.dataset} {beside.name}"
        folds = trained_folds(beside, kind=checkpoint, made_by=command)
        previous = load_model(folds, checkpoint, device=device, precision=precision)
        if previous.plan != first.plan:
            raise DataError(f"{beside}: was trained from another plan than {fold_folders[0]}")
    return Model(
        plan=first.plan,
        configuration=first.configuration,
        networks=tuple(load_network(one, weights, execution) for one, weights in loaded),
        mirror_axes=tuple(
            axis for axis in first.mirror_axes if all(axis in one.mirror_axes for one, _ in loaded)
        ),
        execution=execution,
        previous=previous,
    )
