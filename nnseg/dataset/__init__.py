"""A raw dataset: its dataset.json, its cases and its cross-validation folds."""

from nnseg.dataset.cases import (
    CHANNEL_FILE,
    Case,
    channel_fault,
    find_cases,
    find_image_files,
    find_label_maps,
    find_training_cases,
    listed_cases,
    one_label_map,
    visible_files,
)
from nnseg.dataset.folds import (
    FOLDS,
    SPLIT_SEED,
    Fold,
    check_folds,
    extend_folds,
    make_folds,
    select_fold,
)
from nnseg.dataset.spec import (
    DatasetSpec,
    ListedCase,
    parse_spec,
    read_spec,
    spec_to_json,
)

__all__ = [
    "CHANNEL_FILE",
    "FOLDS",
    "SPLIT_SEED",
    "Case",
    "DatasetSpec",
    "Fold",
    "ListedCase",
    "channel_fault",
    "check_folds",
    "extend_folds",
    "find_cases",
    "find_image_files",
    "find_label_maps",
    "find_training_cases",
    "listed_cases",
    "make_folds",
    "one_label_map",
    "parse_spec",
    "read_spec",
    "select_fold",
    "spec_to_json",
    "visible_files",
]
