"""The command line."""

from nnseg.cli.main import COMMANDS, build_parser, main, plan_and_preprocess, predict, train
from nnseg.cli.preparing import PLANNERS

__all__ = [
    "COMMANDS",
    "PLANNERS",
    "build_parser",
    "main",
    "plan_and_preprocess",
    "predict",
    "train",
]
