"""How the learning rate falls: a name of SCHEDULES to a function of the training's progress.

Progress runs from 0 to 1, whatever the number of epochs: a budget may set it, and change it.
"""

from collections.abc import Callable
from math import cos, frexp, pi
from typing import TypeAlias

from nnseg.registry import Registry

Schedule: TypeAlias = Callable[[float], float]  # progress 0..1 to a factor of the learning rate

RESTARTED = 4  # falls of `cosine_restarts`
ROUNDING = 1e-9  # an epoch that begins at a restart is behind it
EPOCH_FACTOR, EPOCHS_OF_FACTOR = 0.985, 300


def poly(progress: float) -> float:
    """Fall almost linearly to 0: (1 - progress) ** 0.9, nnU-Net's schedule.

    >>> poly(0.0), round(poly(0.5), 3), poly(1.0)
    (1.0, 0.536, 0.0)
    """
    return float((1 - progress) ** 0.9)


def cosine(progress: float) -> float:
    """Fall along half a cosine, flat at both ends.

    >>> cosine(0.0), round(cosine(0.5), 3), cosine(1.0)
    (1.0, 0.5, 0.0)
    """
    return 0.5 * (1 + cos(pi * progress))


def cosine_restarts(progress: float) -> float:
    """Fall along half a cosine four times, each time twice as long as before, from 1 again.

    The restarts are after 1, 3 and 7 fifteenths; half of the training is the last fall.

    Source: Loshchilov and Hutter 2017, arXiv:1608.03983, with T_mult = 2.

    >>> [round(cosine_restarts(step / 30), 3) for step in (0, 1, 2, 5, 6, 14, 22, 30)]
    [1.0, 0.5, 1.0, 0.146, 1.0, 1.0, 0.5, 0.0]
    """
    if progress >= 1:
        return 0.0
    mantissa, _ = frexp(1 + (2**RESTARTED - 1) * progress + ROUNDING)  # falls end at 2, 4, 8, 16
    return cosine(2 * mantissa - 1)


def exponential(progress: float) -> float:
    """Fall by the same factor in equal times, to about a hundredth at the end.

    Its source multiplies the rate by 0.985 after each of 300 epochs; so does this one of as many.
    With more or fewer epochs the factor follows, and the end is the same.

    Source: Isensee et al. 2018, arXiv:1802.10508.

    >>> [round(exponential(progress), 4) for progress in (0.0, 1 / 300, 0.5, 1.0)]
    [1.0, 0.985, 0.1036, 0.0107]
    """
    return float(EPOCH_FACTOR ** (EPOCHS_OF_FACTOR * progress))


SCHEDULES = Registry[Schedule](
    "schedule",
    poly=poly,
    cosine=cosine,
    cosine_restarts=cosine_restarts,
    exponential=exponential,
)
COOL_DOWNS: dict[str, Schedule] = {"cosine_restarts": cosine}  # how a training ends that rises
