"""Attacks in nnU-Net's plans.json and dataset.json, which name classes, folders and sizes."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from attacks import OUT, Arguments, Attack, Change, Make, Place, change_json, put, spoil_theirs
from harmful_texts import CLASS, JSON_BOMBS, PATHS, QUICK

FULL = ("configurations", "3d_lowres")
NETWORK = (*FULL, "architecture")
FEATURES = (*NETWORK, "arch_kwargs", "features_per_stage")


def attacks_on_plans() -> Iterator[Attack]:
    """Plans that name what is not theirs to name, and JSON that is none."""
    yield from classes()
    yield from paths()
    yield from sizes()
    for name, text in JSON_BOMBS.items():
        yield Attack(
            name=f"plans that are {name}",
            make=replace_plans(text),
            cause="JSON|nested|more than",
            names="plans.json",
            rule="S05",
            slow="MB" in name,
        )
    for name, script in (("a shell's", "$(touch {0})"), ("a format's", "%s%n{0.__class__}{1}")):
        yield Attack(
            name=f"a folder of {name} name",
            make=import_from(script),
            codes=(0,),
            rule="S10",
        )


def classes() -> Iterator[Attack]:
    attack = partial(Attack, rule="S04")
    for key in (
        (*NETWORK, "network_class_name"),
        (*NETWORK, "arch_kwargs", "conv_op"),
        (*NETWORK, "arch_kwargs", "norm_op"),
        (*NETWORK, "arch_kwargs", "nonlin"),
        (*FULL, "normalization_schemes", 0),
        (*FULL, "resampling_fn_data"),
        (*FULL, "resampling_fn_seg"),
        (*FULL, "resampling_fn_probabilities"),
        ("image_reader_writer",),
    ):
        yield attack(
            name=f"plans with a class as {key[-1]}",
            make=spoil_plans(put(CLASS, *key)),
            cause="this",
            names="plans.json",
        )
    for key in (("experiment_planner_used",), (*FULL, "preprocessor_name")):
        yield attack(
            name=f"plans with a class as {key[-1]}",
            make=spoil_plans(put(CLASS, *key)),
            codes=(0, 3),
        )
    yield attack(
        name="plans that have a name imported",
        make=spoil_plans(put(["dropout_op", "conv_op"], *NETWORK, "_kw_requires_import")),
        codes=(0, 3),
    )


def paths() -> Iterator[Attack]:
    for what, text in PATHS.items():
        for named, key, slow in (
            ("a name", ("plans_name",), False),
            ("a dataset", ("dataset_name",), what not in QUICK),
            ("data", (*FULL, "data_identifier"), what not in QUICK),
        ):
            yield Attack(
                name=f"plans with {what} for {named}",
                make=spoil_plans(put(text, *key)),
                codes=(0, 3),  # a name that cannot be one of ours may be replaced by ours
                check=stays_inside,
                rule="S06",
                slow=slow,
            )
        yield Attack(
            name=f"dataset.json with {what} for an ending",
            make=spoil_plans(put(text, "file_ending"), "dataset.json"),
            cause="file_ending|ending",
            names="dataset.json",
            rule="S06",
            slow=what not in QUICK,
        )


def sizes() -> Iterator[Attack]:
    yield Attack(
        name="plans of a network of 10^9 features",
        make=spoil_plans(put([10**9] * 2, *FEATURES)),
        cause="features",
        names="plans.json",
        rule="S08",
    )
    yield Attack(
        name="plans of the largest network",
        make=spoil_plans(put([4096] * 2, *FEATURES)),
        cause="trained by other plans",
        names="theirs",
        rule="S08",
    )


def spoil_plans(change: Change, file: str = "plans.json") -> Make:
    return spoil_theirs(file, lambda _, path: change_json(path, change))


def replace_plans(text: Callable[[], str]) -> Make:
    return spoil_theirs("plans.json", lambda _, path: path.write_text(text()))


def import_from(name: str) -> Make:
    """Give a model in a folder of that name."""

    def make(place: Place) -> Arguments:
        folder = place.folder / name.replace("/", "_")
        shutil.copytree(place.sound.theirs, folder)
        return ("import", folder, "-o", place.out)

    return make


def stays_inside(place: Place, ended: Any) -> str:
    """Say what lies outside of the folder that was to be written."""
    inside = {path.name for path in place.folder.iterdir()} - {"theirs", OUT}
    return f"{inside} lies outside" if inside or Path("/tmp/evil").exists() else ""
