"""A trained model at work: from an image to its label map."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from nnseg.axes import Image, Segmentation, Spacing
from nnseg.checkpoint import Kind
from nnseg.checkpoint import load_model as load_checkpoint
from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError, MachineError
from nnseg.model.device import Execution, choose_execution
from nnseg.plan import Configuration, Plan
from nnseg.predict import load_network, predict_logits
from nnseg.preprocess import preprocess_case, restore


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One configuration's networks, one a fold, ready to predict."""

    plan: Plan
    configuration: Configuration
    networks: tuple[nn.Module, ...]
    mirror_axes: tuple[int, ...]
    execution: Execution

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
        on_tile: Callable[[int, int], None] | None = None,
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: (channel, z, y, x), float32.
            spacing: mm, (z, y, x).
            step: Distance of tiles, as a share of their edge.
            mirror: Average over mirrored images, too.
            on_tile: Called with the tiles done and their number.

        Returns:
            Label map (z, y, x), of the smallest type that holds the labels.

        Raises:
            DataError: The image does not fit the model.
            MachineError: There is not enough memory.
        """
        case = preprocess_case(image, None, spacing, self.plan, self.configuration)
        try:
            logits = predict_logits(
                self.networks,
                case.image,
                self.configuration.patch_size,
                self.execution,
                mirror_axes=self.mirror_axes if mirror else (),
                step=step,
                on_tile=on_tile,
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            reason = (str(error).splitlines() or ["none is left"])[0]
            raise MachineError(
                f"there is not enough memory for this image ({reason}); free some, or use "
                "--device cpu"
            ) from None
        return restore(logits, case.placement, self.plan.labels, self.configuration)


def load_model(
    fold_folders: Sequence[Path],
    checkpoint: Kind = "final",
    *,
    device: str | None = None,
    precision: str | None = None,
) -> Model:
    """Load one configuration's networks from the folders of its folds.

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
    return Model(
        plan=first.plan,
        configuration=first.configuration,
        networks=tuple(load_network(one, weights, execution) for one, weights in loaded),
        mirror_axes=first.mirror_axes,
        execution=execution,
    )
