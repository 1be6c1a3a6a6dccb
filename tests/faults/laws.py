"""Laws: what holds of any input, each a function that hypothesis calls with many."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

Rule = Callable[..., None]

EDGE = st.integers(1, 7)
SHAPES = st.tuples(EDGE, EDGE, EDGE)
MM = st.floats(0.3, 6.0, allow_nan=False)
SPACINGS = st.tuples(MM, MM, MM)
SEEDS = st.integers(0, 2**32 - 1)
ORDERS = st.permutations(range(3)).map(tuple)
AXES = st.sampled_from((0, 1, 2))
APART = st.sampled_from((None, 0, 1, 2))
WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
NAMES = st.text("abcdefgh012345", min_size=1, max_size=6)


@dataclass(frozen=True)
class Law:
    """A rule, and from what its arguments are drawn."""

    rule: Rule
    drawn: dict[str, Any]

    def hold(self, examples: int, *, chance: bool) -> None:
        """Try the law on so many examples: always the same, or by chance."""
        limits = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=not chance,
            suppress_health_check=list(HealthCheck),
        )
        limits(given(**self.drawn)(self.rule))()


LAWS: dict[str, Law] = {}


def law(**drawn: Any) -> Callable[[Rule], Rule]:
    """Make a law of a function, whose name says what holds."""

    def add(rule: Rule) -> Rule:
        known = LAWS.get(rule.__name__)  # itself where pytest loads a file once more, for doctests
        same = known is None or known.rule.__code__ == rule.__code__
        assert same, f"two laws are called {rule.__name__}"
        LAWS[rule.__name__] = Law(rule, drawn)
        return rule

    return add


def image_of(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Values from about -30 to 30."""
    return (10 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def mask_of(shape: tuple[int, ...], seed: int) -> NDArray[np.bool_]:
    """Any share of the voxels, none and all among them."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.random(shape) < rng.choice([0.0, 0.1, 0.5, 0.9, 1.0]))


def labels_of(shape: tuple[int, ...], seed: int, highest: int = 3) -> NDArray[np.uint8]:
    """Labels 0 to `highest` in blocks of a few voxels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, highest + 1, [-(-n // 2) for n in shape])
    for axis, size in enumerate(shape):
        coarse = coarse.repeat(2, axis).take(range(size), axis)
    return coarse.astype(np.uint8)
