"""Which devices there are, and how a network would be computed on each."""

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nnseg.errors import MachineError
from nnseg.model.device import Execution, choose_execution


@dataclass(frozen=True, slots=True, kw_only=True)
class Surveyed:
    """A device, and how a prediction would run on it if nothing else is asked for."""

    name: str  # as --device takes it
    called: str
    memory: int  # bytes; 0 where it does not tell
    execution: Execution


def survey() -> Iterator[Surveyed]:
    """Try each device; those that torch lists but that cannot be used are left out."""
    memory = 0
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [("cpu", platform.machine(), memory)]
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(number)
            found.append((f"cuda:{number}", about.name, about.total_memory))
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU", memory))
    for name, called, size in found:
        try:
            execution = choose_execution(name, trains=False)
        except MachineError:
            continue
        yield Surveyed(name=name, called=called, memory=size, execution=execution)
