"""The kinds of components, and what holds one to the rules of its kind."""

import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from nnseg.components import files, images, networks, plans, training
from nnseg.errors import PlanError
from nnseg.fit import PLANNERS
from nnseg.image.normalize import NORMALIZERS
from nnseg.learning.optimize import OPTIMIZERS
from nnseg.losses.build import LOSSES
from nnseg.model.schedule import SCHEDULES
from nnseg.networks.backbones import BACKBONES
from nnseg.networks.build import NETWORKS
from nnseg.networks.layers import NORMS
from nnseg.networks.upsampling import UPSAMPLINGS
from nnseg.probabilities.kinds import KINDS
from nnseg.registry import Registry
from nnseg.volume import ENDINGS

Rules: TypeAlias = Iterator[tuple[str, bool]]  # what a component must do, and whether it did


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentKind:
    """Components that are chosen by name, and the rules that each of them keeps."""

    names: Collection[str]  # of those that there are
    rules: Callable[[str], Rules]  # tried on the one of that name


COMPONENTS = Registry[ComponentKind](
    "kind of component",
    planner=ComponentKind(names=PLANNERS, rules=plans.rules_of_planner),
    normalizer=ComponentKind(names=NORMALIZERS, rules=images.rules_of_normalizer),
    resampler=ComponentKind(names=images.RESAMPLERS, rules=images.rules_of_resampler),
    network=ComponentKind(names=NETWORKS, rules=networks.rules_of_network),
    backbone=ComponentKind(names=BACKBONES, rules=networks.rules_of_backbone),
    norm=ComponentKind(names=NORMS, rules=networks.rules_of_norm),
    upsampling=ComponentKind(names=UPSAMPLINGS, rules=networks.rules_of_upsampling),
    loss=ComponentKind(names=LOSSES, rules=training.rules_of_loss),
    optimizer=ComponentKind(names=OPTIMIZERS, rules=training.rules_of_optimizer),
    schedule=ComponentKind(names=SCHEDULES, rules=training.rules_of_schedule),
    augmentation=ComponentKind(names=training.TRANSFORMS, rules=training.rules_of_augmentation),
    file_format=ComponentKind(names=ENDINGS, rules=files.rules_of_format),
    probabilities=ComponentKind(names=KINDS, rules=files.rules_of_probabilities),
)


def check_component(kind: str, name: str) -> int:
    """Hold a component to all rules of its kind, on small data of its own.

    What they are about: values that are finite for one voxel, for constants and for an empty
    foreground; NaN that is refused or stays NaN, and is never made a number of; wrong shapes that
    are refused; the same result twice; inputs that stay as they were; and what was written or
    turned round comes back. Register a component of your own first.

    Args:
        kind: A name of COMPONENTS, such as "normalizer".
        name: The name by which it is chosen.

    Returns:
        How many rules it was held to.

    Raises:
        PlanError: There is no such kind or component, or it breaks rules: all of them are named.

    Source: the common checks of scikit-learn's estimators are the pattern.
    """
    held = 0
    broken: dict[str, None] = {}  # each once, in their order
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # NaN is what some rules are about
            for rule, kept in COMPONENTS[kind].rules(name):
                held += 1
                if not kept:
                    broken[rule] = None
    except PlanError:
        raise
    except Exception as error:
        broken[f"it fails with {type(error).__name__} after {held} rules: {error}"] = None
    if broken:
        raise PlanError(
            f"the {kind} {name!r} breaks {len(broken)} of its rules: {'; '.join(broken)}; mend it"
        )
    return held
