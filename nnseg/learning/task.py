"""What one training is about: the data, the plan and the choices."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from nnseg.errors import UsageError
from nnseg.learning.batches import BatchSource
from nnseg.learning.course import Course, budget_batch, count_patches, plan_course, plan_steps
from nnseg.learning.recipe import TrainSettings
from nnseg.losses.balance import balanced_weights, count_voxels
from nnseg.losses.sums import Loss
from nnseg.model.device import Execution
from nnseg.model.draws import Augmentation, plan_augmentation
from nnseg.model.kinds import KINDS
from nnseg.model.ranks import ALONE, Ranks
from nnseg.plan import Configuration, Plan
from nnseg.store import TrainingCase

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What one training is about: the data, the plan and the choices; it does not change.

    `previous` has, for a cascade, a label map of positions (z, y, x) for every case, on its grid:
    what the stage before predicts of it. `initial` are weights by name to start from; those of
    other names or shapes than the network's are passed over. `loader_workers` is how many threads
    make batches ahead, None as the loader sees fit; the batches are the same.
    """

    plan: Plan
    plan_hash: str
    split_hash: str
    configuration: Configuration
    fold: str
    train_cases: Sequence[TrainingCase]
    val_cases: Sequence[TrainingCase]
    settings: TrainSettings
    execution: Execution
    folder: Path  # where checkpoints go
    previous: Mapping[str, Any] | None = None  # by case id
    initial: Mapping[str, Tensor] | None = None
    loader_workers: int | None = None
    ranks: Ranks = ALONE
    data_hash: str = ""  # of what the cases were preprocessed from
    balance: tuple[float, ...] | None = None  # class weights counted, in the order of dataset.json

    def __post_init__(self) -> None:
        self.ranks.share(self.batch_size)  # refuses more processes than samples
        names, weights = list(self.plan.labels.foreground), self.settings.class_weights
        if weights == "balanced" and self.plan.labels.has_regions:
            raise UsageError(
                "class_weights cannot be balanced for regions, whose heads each weigh all voxels "
                "alike; give a number for each, or leave them out"
            )
        if isinstance(weights, tuple) and len(weights) != len(names):
            raise UsageError(
                f"class_weights has {len(weights)} entries; {', '.join(names)} need one each"
            )
        _ = self.swaps  # refuses names that are none

    @property
    def batch_size(self) -> int:
        """Samples of a batch."""
        return self.settings.batch_size or self.configuration.batch_size

    @property
    def channels(self) -> int:
        """Input channels of the network; of a cascade, the foreground of the stage before, too."""
        found = 0 if self.previous is None else len(self.plan.labels.foreground_values)
        return len(self.plan.channels) + found

    @property
    def swaps(self) -> tuple[tuple[int, int], ...]:
        """Pairs of label positions that trade places when left and right do.

        Raises:
            UsageError: A name is no label's.
        """
        labels = self.plan.labels.consecutive.labels
        for name in (name for pair in self.settings.swap_labels for name in pair):
            if not isinstance(labels.get(name), int) or not labels[name]:
                known = ", ".join(n for n, v in labels.items() if isinstance(v, int) and v)
                raise UsageError(f"swap_labels has {name!r}, which is no label; known: {known}")
        return tuple((labels[a], labels[b]) for a, b in self.settings.swap_labels)  # type: ignore[misc]

    @property
    def left_right(self) -> int:
        """The axis, in plan order, from left to right: the last of the image."""
        return self.plan.order.index(2)

    def training(self, course: Course) -> BatchSource:
        """Give where augmented batches come from."""
        return self._source(self.train_cases, course, self.augmentation(course))

    def validation(self, course: Course) -> BatchSource:
        """Give where batches to validate with come from."""
        return self._source(self.val_cases, course, None)

    def augmentation(self, course: Course) -> Augmentation:
        """Give the rules by which a training along `course` changes its patches."""
        return plan_augmentation(
            self.configuration.patch_size,
            self.configuration.architecture.dimensions,
            course.augmentation,
            swaps=self.swaps,
            swap_axis=self.left_right,
            elastic=self.settings.elastic,
            spacing=self.configuration.spacing,
        )

    def budget_batch(self, step_seconds: float) -> int | None:
        """Give the batch size that suits a budget, as `nnseg.learning.course.budget_batch` does."""
        return budget_batch(self.settings, step_seconds, self.batch_size, self.ranks.count)

    def course(self, step_seconds: float | None = None, batch_size: int | None = None) -> Course:
        """Plan the course: by the settings, and where they leave it open by the data.

        Args:
            step_seconds: What a step takes, where there is a budget.
            batch_size: What `budget_batch` gave; such steps take so long.
        """
        shapes = [case.shape for case in self.train_cases]
        samples = (batch_size or self.batch_size) * self.settings.accumulate  # a step
        patch_size = self.configuration.patch_size
        return plan_course(
            self.settings,
            step_seconds,
            plan_steps(shapes, patch_size, samples),
            batch_size,
            step_passes=samples / count_patches(shapes, patch_size),
        )

    @property
    def loss(self) -> Loss:
        """What is minimised."""
        weights = self.settings.class_weights
        if weights == "balanced":
            assert self.balance is not None, "`balanced` has counted"
            weights = self.balance
        if weights is not None:
            named = dict(zip(self.plan.labels.foreground, weights, strict=True))
            weights = tuple(named[name] for name in self.plan.labels.in_head_order)
        return self.settings.make_loss(weights)

    def _source(
        self, cases: Sequence[TrainingCase], course: Course, augmentation: Augmentation | None
    ) -> BatchSource:
        batch_size = course.batch_size or self.batch_size
        return BatchSource(
            cases=cases,
            configuration=self.configuration,
            seed=self.settings.seed,
            fold=self.fold,
            batch_size=batch_size,
            device=self.execution.torch_device,
            augmentation=augmentation,
            previous=None if self.previous is None else [self.previous[c.case_id] for c in cases],
            previous_labels=len(self.plan.labels.foreground_values),
            samples=self.ranks.share(batch_size),
            mixup=None if augmentation is None else self.settings.mixup,
        )

    @property
    def output_weights(self) -> tuple[float, ...]:
        """Weight of the loss at each output of the network that has one, the main one first."""
        architecture = self.configuration.architecture
        return KINDS[architecture.network].weights(architecture)


def balanced(task: Task) -> Task:
    """Give the task with its classes' voxels counted, if its settings want weights by them.

    All label maps of the training cases are read once for that.
    """
    if task.settings.class_weights != "balanced" or task.balance is not None:
        return task
    labels = task.plan.labels.consecutive
    voxels = count_voxels((case.segmentation for case in task.train_cases), labels)
    weights = balanced_weights(voxels, labels)
    named = zip(labels.foreground, weights, strict=True)
    logger.info("class weights: %s", ", ".join(f"{name} {weight:.3g}" for name, weight in named))
    return replace(task, balance=weights)
