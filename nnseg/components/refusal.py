"""Whether a component refuses what it cannot work on."""

from collections.abc import Callable
from typing import Any

from nnseg.errors import NnsegError

REFUSALS = (NnsegError, ValueError, RuntimeError)  # the last is torch's, of shapes that do not fit


def refuses(call: Callable[..., Any], *arguments: Any, **options: Any) -> bool:
    """Say whether a call refuses its arguments rather than giving something.

    Raises:
        Exception: Any other error, which is a failure and no refusal.
    """
    try:
        call(*arguments, **options)
    except REFUSALS:
        return True
    return False
