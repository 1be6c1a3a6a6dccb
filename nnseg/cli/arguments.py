"""Options that several commands have, and what they mean.

This file alone reads the environment.
"""

import os
import re
from argparse import SUPPRESS, ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnseg.errors import UsageError

if TYPE_CHECKING:
    from nnseg.folders import Folders
    from nnseg.model.ranks import Ranks

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def add_common(parser: ArgumentParser) -> None:
    common = parser.add_argument_group("everywhere")
    common.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="folder of raw/, preprocessed/ and results/; else NNSEG_ROOT, else the current folder",
    )
    common.add_argument("-q", "--quiet", action="store_true", help="no progress")
    common.add_argument("-v", "--verbose", action="store_true", help="say more")


def add_dataset(parser: Any, *, flag: bool = False) -> None:
    text = "its id (4), its name (Dataset004_Hippocampus) or a path to it (./D)"
    if flag:
        parser.add_argument("-d", "--dataset", required=True, metavar="DATASET", help=text)
    else:
        parser.add_argument("dataset", metavar="DATASET", help=text)


def add_datasets(parser: Any, *, required: bool) -> None:
    parser.add_argument("dataset", nargs="?", metavar="DATASET", help=SUPPRESS)
    parser.add_argument(
        "-d",
        "--datasets",
        nargs="+",
        default=[],
        metavar="DATASET",
        help="ids, names or paths" + ("" if required else "; may be left out"),
    )


def add_group_regex(parser: Any) -> None:
    parser.add_argument(
        "--group-regex",
        metavar="REGEX",
        help="its first group, found in a case's id, is the patient; folds keep patients together",
    )


def add_plan_name(parser: Any) -> None:
    parser.add_argument("-p", "--plan", metavar="NAME", help="name of the plan: nnseg")


def add_configurations(parser: Any) -> None:
    parser.add_argument(
        "-c",
        "--configurations",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(CONFIGURATIONS)}; all that are planned if left out",
    )


def add_apart(parser: Any) -> None:
    text = "each case in a worker process, whose death costs the case and not the run"
    parser.add_argument("--apart", action="store_true", help=text)


def add_dry_run(parser: Any) -> None:
    text = "say what it takes of memory, disk and time, and write nothing"
    parser.add_argument("--dry-run", action="store_true", help=text)


def add_device(parser: Any) -> None:
    parser.add_argument("-device", "--device", metavar="NAME", help="cpu, cuda, cuda:1, mps")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"))


def dataset_of(args: Namespace) -> "tuple[Folders, str]":
    from nnseg.folders import find_dataset

    return find_dataset(folders_of(args), args.dataset)


def datasets_of(args: Namespace) -> "list[tuple[Folders, str]]":
    from nnseg.folders import find_dataset

    names = ([args.dataset] if args.dataset else []) + list(args.datasets)
    if not names:
        raise UsageError("give a dataset: -d 4")
    return [find_dataset(folders_of(args), name) for name in names]


def folders_of(args: Namespace) -> "Folders":
    """Find the data roots: --root, else the environment, else the current folder."""
    from nnseg.folders import Folders

    if args.root:
        return Folders.of_root(args.root)
    root = Folders.of_root(Path(os.environ.get("NNSEG_ROOT", ".")))
    return Folders(
        raw=Path(os.environ.get("nnseg_raw", root.raw)),
        preprocessed=Path(os.environ.get("nnseg_preprocessed", root.preprocessed)),
        results=Path(os.environ.get("nnseg_results", root.results)),
    )


def whole_number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


whole_number.__name__ = "positive whole number"  # argparse names it in its message


def count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


count.__name__ = "whole number from 0 on"


def named_label(text: str) -> tuple[str, int]:
    name, _, value = text.rpartition("=")
    if not name:
        raise ValueError(text)
    return name, int(value)


named_label.__name__ = "NAME=INT"


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def label_pair(text: str) -> tuple[str, str]:
    left, _, right = text.partition("=")
    if not left or not right:
        raise ValueError(text)
    return left, right


label_pair.__name__ = "LEFT=RIGHT"


def ranks_of() -> "Ranks":
    """Say which process of how many this is, as torchrun tells by the environment."""
    from nnseg.model.ranks import Ranks

    return Ranks(
        rank=int(os.environ.get("RANK", "0")),
        count=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


def time_span(text: str) -> float:
    """Read a length of time: 90, 90s, 40m, 8h, 2d."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if not match:
        raise ValueError(text)
    return float(match[1]) * _SECONDS[match[2] or "s"]


time_span.__name__ = "length of time such as 180s, 40m or 8h"
numbers.__name__ = "list of numbers"
