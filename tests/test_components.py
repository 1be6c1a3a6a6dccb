"""Every component keeps the rules of its kind, and one that does not is told which it breaks."""

import ast
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnseg
from nnseg.components import COMPONENTS, check_component
from nnseg.components.training import TRANSFORMS
from nnseg.errors import NnsegError, PlanError
from nnseg.image.normalize import HONOURS_MASK, NORMALIZERS
from nnseg.losses.build import LOSSES
from nnseg.model.draws import Draw

QUICK_NETWORKS = ("plain", "fcn")
ONE_OF_MANY = {"backbone": "resnet18d", "norm": "batch", "upsampling": "transposed"}
QUICK_RESAMPLERS = ("image_3_0", "image_1_1", "image_0_0", "segmentation_1_0", "segmentation_0_0")

# Registries of what is no component: nothing that a rule about arrays or files could be held to.
OTHER_TABLES = {
    "KINDS of nnseg.model.kinds": "what is known of networks, which are checked themselves",
    "ENCODER_ELEMENTS of nnseg.model.architecture": "counts of nnU-Net's networks",
    "BACKBONE_RECORDS of nnseg.model.counts.encoders": "what is known of backbones",
    "EXPORTERS of nnseg.verbs.porting": "whole commands, with their own tests",
    "METRICS of nnseg.scores.metrics": "names of fields of a score",
    "TRACKERS of nnseg.trackers": "clients of programs elsewhere",
    "PHANTOMS of nnseg.phantom.dataset": "example data",
    "PRESETS of nnseg.predictor": "numbers",
    "PRESETS of nnseg.learning.recipe": "numbers",
    "COMPONENTS of nnseg.components.check": "this table",
}


def is_slow(kind: str, name: str) -> bool:
    if kind == "network":
        return name not in QUICK_NETWORKS
    if kind == "resampler":
        return name not in QUICK_RESAMPLERS
    return kind in ONE_OF_MANY and name != ONE_OF_MANY[kind]


def every() -> list[Any]:
    """Each component of each kind."""
    return [
        pytest.param(
            kind, name, id=f"{kind}-{name}", marks=[pytest.mark.slow] if is_slow(kind, name) else []
        )
        for kind, found in COMPONENTS.items()
        for name in found.names
    ]


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the waiting for the disk, which would be most of the time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.mark.parametrize(("kind", "name"), every())
def test_a_component_keeps_the_rules_of_its_kind(kind: str, name: str) -> None:
    assert check_component(kind, name) >= 4


def registries() -> Iterator[str]:
    """Every table of named entries in the package, as NAME of MODULE."""
    package = Path(nnseg.__file__).parent
    for path in sorted(package.rglob("*.py")):
        module = ".".join(("nnseg", *path.relative_to(package).with_suffix("").parts))
        for node in ast.parse(path.read_text("utf-8")).body:
            targets = getattr(node, "targets", [getattr(node, "target", None)])
            value = getattr(node, "value", None)
            if isinstance(value, ast.Call) and ast.unparse(value.func).startswith("Registry["):
                yield f"{ast.unparse(targets[0])} of {module}"


def test_every_table_of_names_is_checked_or_has_a_reason_not_to_be() -> None:
    checked = [found.names for found in COMPONENTS.values()]
    missing = []
    for table in registries():
        name, _, module = table.partition(" of ")
        found = getattr(__import__(module, fromlist=[name]), name)
        is_theirs = module.startswith("nnseg.exchange.")  # names of others, read into ours
        if table not in OTHER_TABLES and not is_theirs and not any(found is c for c in checked):
            missing.append(table)
    assert missing == []


def test_every_parameter_that_is_drawn_belongs_to_a_transform_that_is_checked() -> None:
    changed = {name for transform in TRANSFORMS.values() for name in transform}
    assert changed == {field.name for field in fields(Draw)} - {"noise_seed"}


def broken(kind: str, name: str) -> str:
    with pytest.raises(PlanError) as told:
        check_component(kind, name)
    return str(told.value)


@pytest.fixture
def registered() -> Iterator[list[str]]:
    """Takes back what a test adds to NORMALIZERS and LOSSES."""
    names: list[str] = []
    yield names
    for name in names:
        for table in (NORMALIZERS, LOSSES):
            table._entries.pop(name, None)


def gives_back(channel: Any, intensity: Any, mask: Any) -> Any:
    return channel * 2


def divides_by_zero(channel: Any, intensity: Any, mask: Any) -> None:
    channel /= channel.std()


def hides_nan(channel: Any, intensity: Any, mask: Any) -> None:
    np.nan_to_num(channel, copy=False)


def draws(channel: Any, intensity: Any, mask: Any) -> None:
    channel += np.random.default_rng().random(channel.shape, np.float32)


def changes_its_mask(channel: Any, intensity: Any, mask: Any) -> None:
    if mask is not None:
        mask[:] = True


def looks_at_its_mask(channel: Any, intensity: Any, mask: Any) -> None:
    if mask is not None:
        channel[~mask] = 5


def walks_through_memory(channel: Any, intensity: Any, mask: Any) -> None:
    channel.reshape(-1)[:] = 1  # of a view this is a copy


@pytest.mark.parametrize(
    ("normalizer", "rule"),
    [
        (gives_back, "give nothing"),
        (divides_by_zero, "finite values for constant"),
        (hides_nan, "refuse NaN, or leave it"),
        (draws, "the same twice"),
        (changes_its_mask, "leave the mask"),
        (looks_at_its_mask, "not look at the mask"),
        (walks_through_memory, "to a view what it does to a copy"),
    ],
)
def test_a_normalizer_that_breaks_a_rule_is_told_which(
    registered: list[str], normalizer: Any, rule: str
) -> None:
    NORMALIZERS.register("broken", normalizer)
    registered.append("broken")
    told = broken("normalizer", "broken")
    assert told.startswith("the normalizer 'broken' breaks ")
    assert told.endswith("; mend it")
    assert rule in told


def test_a_component_that_fails_is_told_with_what_it_fails_of(registered: list[str]) -> None:
    def fails(channel: Any, intensity: Any, mask: Any) -> None:
        raise KeyError("nothing works")

    NORMALIZERS.register("fails", fails)
    registered.append("fails")
    assert "it fails with KeyError after 0 rules: 'nothing works'" in broken("normalizer", "fails")


def needs_a_voxel(channel: Any, intensity: Any, mask: Any) -> None:
    channel -= channel.ravel()[0] - channel.ravel()[0]


def trips_over_nan(channel: Any, intensity: Any, mask: Any) -> None:
    if np.isnan(channel).any():
        raise KeyError("nan")


@pytest.mark.parametrize(
    ("normalizer", "error"), [(needs_a_voxel, "IndexError"), (trips_over_nan, "KeyError")]
)
def test_an_error_that_nobody_has_thought_of_is_no_refusal(
    registered: list[str], normalizer: Any, error: str
) -> None:
    NORMALIZERS.register("trips", normalizer)
    registered.append("trips")
    assert f"it fails with {error}" in broken("normalizer", "trips")


def refuses_nan_and_nothing(channel: Any, intensity: Any, mask: Any) -> None:
    if channel.size == 0 or np.isnan(channel).any():
        raise ValueError("nothing to scale")


def test_what_is_refused_in_words_breaks_no_rule(registered: list[str]) -> None:
    NORMALIZERS.register("careful", refuses_nan_and_nothing)
    registered.append("careful")
    assert check_component("normalizer", "careful") >= 4


def test_a_loss_that_hides_nan_is_told(registered: list[str]) -> None:
    def hides(*arguments: Any) -> Any:
        return LOSSES["dice_ce"](*arguments).nan_to_num()

    LOSSES.register("hides", hides)
    registered.append("hides")
    assert "with labels it must be NaN where a logit is" in broken("loss", "hides")


def test_an_unknown_kind_or_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match=r"no kind of component is named 'x'; known: .*normalizer"):
        check_component("x", "zscore")
    with pytest.raises(PlanError, match=r"no normalizer is named 'x'; known: ct, .*zscore"):
        check_component("normalizer", "x")
    with pytest.raises(NnsegError, match="no format ends in"):
        check_component("file_format", ".x")


def test_those_that_honour_a_mask_are_normalizers() -> None:
    assert set(NORMALIZERS) >= HONOURS_MASK
