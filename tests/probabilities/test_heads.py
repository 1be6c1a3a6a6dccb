import numpy as np
from boxed import HALF_STEP

from nnseg.probabilities.heads import STEPS, quantise


def test_quantising_is_off_by_half_a_step_at_most() -> None:
    values = np.linspace(0, 1, 100_003, dtype=np.float32)
    steps = quantise(values)
    assert np.abs(steps / STEPS - values).max() <= HALF_STEP
    assert np.unique(steps).size == STEPS + 1
    assert quantise(np.float32([1.0000001])) == STEPS  # softmax rounds
