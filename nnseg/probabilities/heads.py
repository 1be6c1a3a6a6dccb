"""Probabilities of the heads of a network as steps, head by head."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

STEPS = 4096  # of a quantised probability: eight bits change labels where two models are averaged
TURNED_VALUES = 2**18  # turned heads first at once: they stay in the cache of a CPU


def quantise(probabilities: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Round probabilities to steps of 1/4096, half a step at most from what they were.

    0, 1/2 and 1 stay what they are, and with them all float32 arithmetic on the steps is exact.

    >>> quantise(np.array([0, 0.1, 0.5, 1], dtype=np.float32)).tolist()
    [0, 410, 2048, 4096]
    """
    steps: NDArray[np.float32] = probabilities * np.float32(STEPS) + np.float32(0.5)
    return steps.astype(np.uint16)


def heads_first(rows: NDArray[np.float32], kind: "np.dtype[Any]") -> NDArray[Any]:
    """Turn (voxel, head) into (head, voxel); quantised where `kind` holds integers."""
    result = np.empty(rows.shape[::-1], dtype=kind)
    step = max(1, TURNED_VALUES // rows.shape[1])
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        result[:, start : start + step] = (block if kind.kind == "f" else quantise(block)).T
    return result
