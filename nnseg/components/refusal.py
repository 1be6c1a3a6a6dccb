"""Whether a component refuses what it cannot work on."""

from collections.abc import Callable
from typing import Any


def refuses(call: Callable[..., Any], *arguments: Any, **options: Any) -> bool:
    """Say whether a call raises an error, of whatever kind, rather than giving something."""
    try:
        call(*arguments, **options)
    except Exception:
        return True
    return False
