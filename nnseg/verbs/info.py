"""What is here: versions, the machine and what it can, the data, the models, the registries.

torch is not loaded for it, unless the devices are asked what they can do.
"""

import ast
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from nnseg import __version__, record
from nnseg.errors import NnsegError
from nnseg.folders import (
    FOLD_FOLDER,
    Folders,
    checkpoint_file,
    known_datasets,
    summary_file,
    validation_folder,
)
from nnseg.model.kind import NetworkKind
from nnseg.model.kinds import KINDS
from nnseg.validated import is_validated
from nnseg.volume import ENDINGS, LABEL_ENDINGS

PACKAGES = (
    "torch", "numpy", "scipy", "SimpleITK", "nibabel", "pillow", "tifffile", "blosc2",
    "connected-components-3d", "pydantic", "safetensors", "batchgenerators", "acvl-utils",
    "matplotlib", "onnx", "onnxruntime", "pydicom", "highdicom", "tensorboard", "mlflow-skinny",
    "wandb",
)  # fmt: skip
UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "asimd", "bf16", "sve")
REGISTRIES = {  # what is chosen by name: module and table
    "networks": ("nnseg.model.kinds", "KINDS"),
    "losses": ("nnseg.losses.build", "LOSSES"),
    "optimizers": ("nnseg.learning.optimize", "OPTIMIZERS"),
    "schedules": ("nnseg.model.schedule", "SCHEDULES"),
    "normalizers": ("nnseg.image.normalize", "NORMALIZERS"),
    "planners": ("nnseg.fit", "PLANNERS"),
    "training presets": ("nnseg.learning.recipe", "PRESETS"),
    "prediction presets": ("nnseg.predictor", "PRESETS"),
    "exporters": ("nnseg.verbs.porting", "EXPORTERS"),
    "trackers": ("nnseg.trackers", "TRACKERS"),
}
CPU_INFO = Path("/proc/cpuinfo")
GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The computer."""

    system: str
    processor: str
    cores: int  # that this process may use
    units: tuple[str, ...]  # of UNITS, those that the processor has
    memory_total: int  # bytes; 0 where the system does not tell
    memory_free: int
    gpus: tuple[str, ...]  # as the driver calls them


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """Something that computes, as torch tells of it and a short trial shows."""

    name: str  # "cpu", "cuda:0"
    called: str
    memory: int  # bytes
    precision: str  # that is chosen if none is asked for
    threads: int
    own_kernels: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """One of the data roots, and the disk that it is on."""

    name: str  # "raw", "preprocessed" or "results"
    folder: str
    there: bool
    disk_free: int | None  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFound:
    """A dataset, and how far it has come."""

    name: str
    cases: int | None  # that its dataset.json says it has; None without one
    roots: tuple[str, ...]  # that have a folder of it
    plans: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFound:
    """The trained folds of one configuration."""

    dataset: str
    plan: str
    configuration: str
    folds: tuple[str, ...]  # as they are called: "0", "1_seed2", "all"
    validated: tuple[str, ...]  # those among them whose validation cases are scored
    outdated: tuple[str, ...]  # those whose scores are of other weights
    dice: float | None  # the mean over the validated folds of their foreground means


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """All that `nnseg info` tells."""

    version: str
    python: str
    packages: dict[str, str]  # installed version by name; what is not installed is left out
    machine: Machine
    devices: tuple[Device, ...]  # empty unless they were asked
    roots: tuple[Root, ...]
    datasets: tuple[DatasetFound, ...]
    models: tuple[ModelFound, ...]
    registries: dict[str, tuple[str, ...]]
    networks: dict[str, str]  # by name: what each is, where it is from, what it can be made of
    image_endings: tuple[str, ...]
    label_endings: tuple[str, ...]


def info(folders: Folders, *, devices: bool = False) -> Info:
    """Look at what is here.

    Args:
        folders: The data roots.
        devices: Ask torch which devices there are, and try what they can do, which takes seconds.
            Without it torch is not loaded, and of GPUs it is known what their driver calls them.

    Raises:
        MachineError: A data root cannot be listed.
    """
    return Info(
        version=__version__,
        python=platform.python_version(),
        packages=_packages(),
        machine=_machine(),
        devices=_devices() if devices else (),
        roots=tuple(_roots(folders)),
        datasets=tuple(_datasets(folders)),
        models=tuple(_models(folders)),
        registries={kind: registered(*place) for kind, place in REGISTRIES.items()},
        networks={name: _told(kind) for name, kind in sorted(KINDS.items())},
        image_endings=ENDINGS,
        label_endings=LABEL_ENDINGS,
    )


def registered(module: str, table: str) -> tuple[str, ...]:
    """Name the entries of a registry by the source of its module, without loading what it needs.

    Entries that a program registered itself are not among them.

    >>> registered("nnseg.model.schedule", "SCHEDULES")
    ('cosine', 'cosine_restarts', 'exponential', 'poly')
    """
    source = Path(__file__).parents[2].joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.parse(source.read_text("utf-8")).body:
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)):
            continue
        named = node.targets[0]
        if isinstance(named, ast.Name) and named.id == table:
            return tuple(sorted(keyword.arg for keyword in node.value.keywords if keyword.arg))
    raise AssertionError(f"{module} has no {table}")


def describe(found: Info) -> str:
    """Give what was found as lines for people."""
    machine = found.machine
    lines = [
        f"nnseg {found.version}, Python {found.python}",
        "packages: " + ", ".join(f"{name} {number}" for name, number in found.packages.items()),
        f"machine: {machine.system}, {machine.processor}, {machine.cores} cores"
        + (f" ({', '.join(machine.units)})" if machine.units else ""),
        f"memory: {_gb(machine.memory_free)} free of {_gb(machine.memory_total)}",
    ]
    lines += [f"GPU: {gpu}" for gpu in machine.gpus]
    for device in found.devices:
        own = ", own kernels" if device.own_kernels else ""
        lines.append(
            f"device {device.name}: {device.called}, {_gb(device.memory)}, {device.precision}, "
            f"{device.threads} threads{own}"
        )
    if not found.devices:
        lines.append("devices: --devices asks torch what they can do")
    for root in found.roots:
        there = "" if root.there else ", not there"
        room = "" if root.disk_free is None else f", {_gb(root.disk_free)} free"
        lines.append(f"{root.name}: {root.folder}{there}{room}")
    lines.append(f"datasets: {'none' if not found.datasets else ''}".rstrip())
    for dataset in found.datasets:
        count = "no dataset.json" if dataset.cases is None else f"{dataset.cases} cases"
        plans = f", plans {', '.join(dataset.plans)}" if dataset.plans else ""
        lines.append(f"  {dataset.name}: {count}, in {', '.join(dataset.roots)}{plans}")
    lines.append(f"models: {'none' if not found.models else ''}".rstrip())
    for model in found.models:
        dice = "not scored" if model.dice is None else f"Dice {model.dice:.3f}"
        if model.dice is not None and model.validated != model.folds:
            dice += f" of {', '.join(model.validated)}"
        if model.outdated:
            dice += f"; scores of {', '.join(model.outdated)} are of other weights"
        lines.append(
            f"  {model.dataset} {model.plan}/{model.configuration}: folds "
            f"{', '.join(model.folds)}; {dice}"
        )
    for kind, names in found.registries.items():
        if kind == "networks":
            lines += ["networks:", *(f"  {name}: {text}" for name, text in found.networks.items())]
        else:
            lines.append(f"{kind}: {', '.join(names)}")
    lines.append(f"images: {', '.join(found.image_endings)}")
    lines.append(f"label maps: {', '.join(found.label_endings)}")
    return "\n".join(lines)


def _told(kind: NetworkKind) -> str:
    told = f"{kind.title} ({kind.source}); {' and '.join(f'{d}D' for d in kind.dimensions)}"
    if kind.options:
        told += f"; takes {', '.join(f'--{option}' for option in kind.options)}"
    return f"{told}; backbones: {', '.join(kind.backbones)}" if kind.backbones else told


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _machine() -> Machine:
    from nnseg.estimate import free_memory
    from nnseg.parallel import cores

    text = ""
    with suppress(OSError):
        text = CPU_INFO.read_text("utf-8", errors="replace")
    flags = set(re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)[:1])
    present = set(" ".join(flags).split())
    called = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    total = 0
    if hasattr(os, "sysconf"):
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        processor=called[1].strip() if called else platform.machine(),
        cores=cores(),
        units=tuple(unit for unit in UNITS if unit in present),
        memory_total=total,
        memory_free=free_memory(),
        gpus=tuple(_gpus()),
    )


def _gpus() -> Iterator[str]:
    """Name the GPUs as the driver of NVIDIA lists them."""
    for path in sorted(GPUS.glob("*/information")):
        with suppress(OSError):
            model = re.search(r"^Model:\s*(.+)$", path.read_text("utf-8"), re.MULTILINE)
            if model:
                yield model[1].strip()


def _devices() -> tuple[Device, ...]:
    """Ask torch; this alone loads it."""
    from nnseg.model.machine import survey

    return tuple(
        Device(
            name=one.name,
            called=one.called,
            memory=one.memory,
            precision=one.execution.precision,
            threads=one.execution.threads,
            own_kernels=one.execution.own_kernels,
        )
        for one in survey()
    )


def _roots(folders: Folders) -> Iterator[Root]:
    for name in ("raw", "preprocessed", "results"):
        folder: Path = getattr(folders, name)
        free: int | None = None
        with suppress(OSError):
            free = shutil.disk_usage(next(p for p in _upwards(folder) if p.exists())).free
        yield Root(name=name, folder=str(folder.absolute()), there=folder.is_dir(), disk_free=free)


def _upwards(folder: Path) -> tuple[Path, ...]:
    folder = folder.absolute()
    return (folder, *folder.parents)


def _datasets(folders: Folders) -> Iterator[DatasetFound]:
    for name in known_datasets(folders):
        cases: int | None = None
        with suppress(NnsegError, KeyError, TypeError, ValueError):
            cases = int(record.read_json(folders.spec_file(name))["numTraining"])
        places = {
            "raw": folders.raw_folder(name),
            "preprocessed": folders.prepared_folder(name),
            "results": folders.models_folder(name),
        }
        yield DatasetFound(
            name=name,
            cases=cases,
            roots=tuple(root for root, folder in places.items() if folder.is_dir()),
            plans=tuple(p.stem for p in sorted(folders.plans_folder(name).glob("[!.]*.json"))),
        )


def _models(folders: Folders) -> Iterator[ModelFound]:
    pattern = f"*/*/*/fold_*/{checkpoint_file(Path(), 'final')}"
    grouped: dict[Path, list[Path]] = {}
    for path in sorted(folders.results.glob(pattern)):
        if FOLD_FOLDER.fullmatch(path.parent.name):
            grouped.setdefault(path.parents[1], []).append(path.parent)
    for model, folds in grouped.items():
        known = {fold: dice for fold in folds if (dice := _dice(fold)) is not None}
        scored = {fold: dice for fold, dice in known.items() if is_validated(fold)}
        mean = sum(scored.values()) / len(scored) if scored else None
        yield ModelFound(
            dataset=model.parents[1].name,
            plan=model.parent.name,
            configuration=model.name,
            folds=tuple(_called(fold) for fold in folds),
            validated=tuple(_called(fold) for fold in scored),
            outdated=tuple(_called(fold) for fold in known if fold not in scored),
            dice=mean,
        )


def _called(fold: Path) -> str:
    return fold.name.removeprefix("fold_")


def _dice(fold: Path) -> float | None:
    """Read the foreground mean of a fold's validation cases; None where it is not scored."""
    with suppress(NnsegError, KeyError, TypeError, ValueError):
        scores = record.read_json(summary_file(validation_folder(fold)), most=record.LARGE_BYTES)
        return float(scores["foreground_mean"]["Dice"])
    return None


def _gb(count: int) -> str:
    from nnseg.estimate import in_gb

    return in_gb(count)
