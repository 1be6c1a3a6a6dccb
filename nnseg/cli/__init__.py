"""The command line."""

from nnseg.cli.main import COMMANDS, build_parser, main, plan_and_preprocess, predict, train

__all__ = [
    "COMMANDS",
    "build_parser",
    "main",
    "plan_and_preprocess",
    "predict",
    "train",
]
