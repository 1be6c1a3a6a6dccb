"""Chance in a network: what dropout draws follows from a seed, and the program's numbers stay.

torch's dropout draws from the generators of the whole program. They are lent out for a pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import numpy as np
import torch

OF_NETWORK = 1  # sets these numbers apart from those of samples


def pass_seed(seed: int, fold: str, epoch: int, batch: int, rank: int = 0) -> int:
    """Give the seed of what a network draws for its share of a batch.

    >>> pass_seed(0, "0", 3, 7) == pass_seed(0, "0", 3, 7)
    True
    >>> len({pass_seed(0, "0", 3, 7), pass_seed(0, "0", 7, 3), pass_seed(0, "0", 3, 7, rank=1)})
    3
    """
    key = [seed, crc32(fold.encode()), epoch, batch, rank, OF_NETWORK]
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Have torch draw by a seed, on the CPU and the device; afterwards as if it had not."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        number = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[number])
    elif device.type == "mps":
        generators.append(torch.mps._get_default_mps_generator())
    states = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
