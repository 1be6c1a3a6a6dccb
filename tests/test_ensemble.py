"""Models together: averaged on the file's grid, whatever grid each of them sees."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from tiny import toy_plan
from torch import Tensor, nn

from nnseg import ensemble
from nnseg.axes import Order, Planes, Spacing, permute
from nnseg.ensemble import Member, Prediction, predict_image, prepare_image
from nnseg.errors import DataError
from nnseg.inference import Model
from nnseg.labels import Labels
from nnseg.model.device import Execution
from nnseg.predict import Sweep
from nnseg.preprocess import Placement
from nnseg.restore import body_of, restore_logits
from nnseg.scores.uncertainty import disagreement, entropy

SPACING: Spacing = (2.0, 1.0, 1.5)
ORDER: Order = (1, 0, 2)
PLAIN = Labels(labels={"background": 0, "liver": 1, "kidney": 2})
REGIONS = Labels(labels={"background": 0, "whole": (1, 2), "core": 2}, regions_class_order=(1, 2))
SWAPPED = Labels(labels={"background": 0, "core": 2, "whole": (1, 2)}, regions_class_order=(1, 2))


class Waves(nn.Module):
    """Logits that vary in space and with the image, another way for each seed."""

    def __init__(self, heads: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.scale = 2 * torch.randn(heads, generator=generator)
        self.shift = torch.randn(heads, generator=generator)

    def forward(self, image: Tensor, outputs: int = 1) -> list[Tensor]:
        x = image[:, :1]
        return [x * self.scale.view(1, -1, 1, 1, 1) + self.shift.view(1, -1, 1, 1, 1) * x.square()]


def model_of(labels: Labels, spacing: Spacing | None = None, seeds: Sequence[int] = (11,)) -> Model:
    """A model whose networks are waves, which sees images at a spacing."""
    plan = toy_plan(labels)
    configuration = dataclasses.replace(
        plan.configuration("3d_fullres"),
        patch_size=(6, 12, 8),
        spacing=spacing or permute(SPACING, ORDER),
    )
    return Model(
        plan=dataclasses.replace(plan, order=ORDER),
        configuration=configuration,
        networks=tuple(Waves(labels.heads, seed) for seed in seeds),
        mirror_axes=(),
        execution=Execution(device="cpu"),
        weights_sha256=("",) * len(seeds),
    )


def image() -> NDArray[np.float32]:
    """A body of smooth noise in an empty image."""
    rng = np.random.default_rng(0)
    whole = np.zeros((1, 14, 22, 18), np.float32)
    smooth = gaussian_filter(rng.normal(size=(12, 18, 16)), 1.5)
    whole[0, 1:13, 2:20, 1:17] = 5 + smooth / smooth.std()
    return whole


def predicted(members: Sequence[Member], **wanted: Any) -> Prediction:
    """What the members find in `image` together."""
    return predict_image(members, prepare_image(members, image(), SPACING), **wanted)


def logits_on_the_grid(model: Model) -> tuple[Planes, Placement]:
    """All logits of a model on the file's grid, within the body's box."""
    seen, placement = model.prepare(image(), SPACING)
    runs = restore_logits(model.logits(seen), placement, model.configuration, 3)
    return np.concatenate(list(runs)), placement


def boxed(array: NDArray[Any], placement: Placement) -> NDArray[Any]:
    """The body's box of an array, after looking that nothing is outside of it."""
    inside = body_of(array, placement)
    assert np.count_nonzero(array) == np.count_nonzero(inside)
    return inside


@pytest.mark.parametrize("labels", [PLAIN, REGIONS], ids=["labels", "regions"])
def test_probabilities_of_models_on_different_grids_are_averaged_on_the_files(
    monkeypatch: pytest.MonkeyPatch, labels: Labels
) -> None:
    monkeypatch.setattr(ensemble, "SLAB_BYTES", 5000)
    models = [model_of(labels), model_of(labels, (1.2, 1.7, 1.1), seeds=(9,))]
    found = predicted([Member(model=models[0]), Member(model=models[1], weight=3.0)])
    likely = []
    for model in models:
        logits, placement = logits_on_the_grid(model)
        likely.append(labels.probabilities(logits))
    mean = 0.25 * likely[0] + 0.75 * likely[1]
    wanted = labels.segment(mean - 0.5 if labels.has_regions else mean)
    assert len(np.unique(wanted)) == 3
    np.testing.assert_array_equal(boxed(found.segmentation, placement), wanted)
    assert found.segmentation.shape == (14, 22, 18)
    assert found.segmentation.dtype == np.uint8


@pytest.mark.parametrize("labels", [PLAIN, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("spacing", [None, (1.2, 1.7, 1.1)])
def test_one_model_finds_the_same_whatever_is_told_besides(
    labels: Labels, spacing: Spacing | None
) -> None:
    member = Member(model=model_of(labels, spacing, seeds=(11, 9)))
    alone = predicted([member])
    told = predicted([member], maps=("entropy", "disagreement"))
    np.testing.assert_array_equal(alone.segmentation, told.segmentation)
    assert alone.maps == {}
    assert set(told.maps) == {"entropy", "disagreement"}
    assert alone.expected_dice.keys() == told.expected_dice.keys() == labels.foreground.keys()
    tolerance = 1e-6 if spacing is None else 0.05  # one is of the network's grid, one of the file's
    for name, expected in alone.expected_dice.items():
        assert expected is not None
        assert expected == pytest.approx(told.expected_dice[name], abs=tolerance)


@pytest.mark.parametrize("labels", [PLAIN, REGIONS], ids=["labels", "regions"])
def test_maps_are_those_of_the_mean_probabilities(labels: Labels) -> None:
    models = [model_of(labels, (1.2, 1.7, 1.1), seeds=(seed,)) for seed in (11, 9)]
    members = [Member(model=model) for model in models]
    found = predicted(members, maps=("entropy", "disagreement"))
    likely = []
    for model in models:
        logits, placement = logits_on_the_grid(model)
        likely.append(labels.probabilities(logits))
    mean = (likely[0] + likely[1]) / 2
    squares = ((likely[0] ** 2).sum(-1) + (likely[1] ** 2).sum(-1)) / 2
    wanted = {
        "entropy": entropy(mean, labels.has_regions),
        "disagreement": disagreement(squares, mean, labels.has_regions),
    }
    for name, values in wanted.items():
        seen = found.maps[name]  # type: ignore[index]
        assert seen.dtype == np.float32
        np.testing.assert_allclose(boxed(seen, placement), values, atol=1e-5)
        assert 0.05 < values.max() <= 1


def test_folds_of_one_model_disagree_as_much_as_models_of_one_fold() -> None:
    folds = Member(model=model_of(PLAIN, seeds=(11, 9)))
    models = [Member(model=model_of(PLAIN, seeds=(seed,))) for seed in (11, 9)]
    one = predicted([folds], maps=("disagreement",)).maps["disagreement"]
    other = predicted(models, maps=("disagreement",)).maps["disagreement"]
    correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
    assert correlation > 0.9  # means of logits and of probabilities are not quite the same
    sure = Member(model=model_of(PLAIN, seeds=(9, 9)))
    none = predicted([sure], maps=("disagreement",)).maps["disagreement"]
    assert none.max() < 1e-5


def test_probabilities_are_handed_on_plane_by_plane() -> None:
    member = Member(model=model_of(PLAIN, (1.2, 1.7, 1.1)))
    taken: list[Planes] = []
    begun: list[Placement] = []

    def begin(placement: Placement) -> Any:
        begun.append(placement)
        return taken.append

    predicted([member], probabilities=begin)
    logits, placement = logits_on_the_grid(member.model)
    assert begun == [placement]
    np.testing.assert_allclose(np.concatenate(taken), PLAIN.probabilities(logits), atol=1e-6)


@pytest.mark.parametrize("labels", [PLAIN, REGIONS], ids=["labels", "regions"])
def test_a_temperature_changes_probabilities_and_no_label_of_one_model(labels: Labels) -> None:
    cold = Member(model=model_of(labels), temperature=3.0)
    taken: list[Planes] = []
    found = predicted([cold], probabilities=lambda _: taken.append)
    logits, _ = logits_on_the_grid(cold.model)
    np.testing.assert_allclose(np.concatenate(taken), labels.probabilities(logits / 3), atol=1e-6)
    plain = predicted([Member(model=cold.model)])
    np.testing.assert_array_equal(found.segmentation, plain.segmentation)
    quick = predicted([cold])
    assert quick.expected_dice == pytest.approx(found.expected_dice, abs=1e-6)
    assert quick.expected_dice != pytest.approx(plain.expected_dice, abs=0.02)


def test_the_expected_dice_is_high_where_a_model_is_sure() -> None:
    model = model_of(PLAIN)
    sure = dataclasses.replace(model, networks=(Waves(3, 11),))
    for network in sure.networks:
        network.scale *= 100  # type: ignore[operator]
    low = predicted([Member(model=model)]).expected_dice
    high = predicted([Member(model=sure)]).expected_dice
    shared = [name for name in low if low[name] is not None and high[name] is not None]
    assert shared
    for name in shared:
        assert float(high[name] or 0) > float(low[name] or 1)
        assert float(high[name] or 0) > 0.98


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"channels": ("CT",)}, "channels"),
        ({"labels": REGIONS}, "labels"),
        ({"labels": SWAPPED}, "labels"),
        ({"order": (0, 1, 2)}, "order"),
    ],
)
def test_models_that_do_not_fit_each_other_are_refused(change: dict[str, Any], what: str) -> None:
    model = model_of(REGIONS if change.get("labels") is SWAPPED else PLAIN)
    other = dataclasses.replace(model, plan=dataclasses.replace(model.plan, **change))
    with pytest.raises(DataError, match=f"has the {what} .*; models that predict together must"):
        predicted([Member(model=model), Member(model=other)])


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    model = model_of(PLAIN)
    with pytest.raises(DataError, match="it must be over 0"):
        predicted([Member(model=model, weight=weight)])


def test_tiles_of_models_together_are_one_count() -> None:
    models = [model_of(PLAIN), model_of(PLAIN, (1.2, 1.7, 1.1), seeds=(9,))]
    told: list[tuple[int, int]] = []
    sweep = Sweep(on_tile=lambda done, tiles: told.append((done, tiles)))
    predicted([Member(model=model) for model in models], sweep=sweep)
    done = [count for count, _ in told]
    assert done == sorted(done)
    assert {tiles for _, tiles in told} == {done[-1]}
    alone: list[int] = []
    for model in models:
        sweep = Sweep(on_tile=lambda done, tiles: alone.append(tiles if done == tiles else 0))
        predicted([Member(model=model)], sweep=sweep)
    assert done[-1] == sum(alone)


def test_models_on_different_grids_come_in_slabs_of_one_depth(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    depths = []
    real = ensemble.restore_logits

    def watched(*args: Any) -> Any:
        depths.append(args[-1])
        return real(*args)

    monkeypatch.setattr(ensemble, "restore_logits", watched)
    monkeypatch.setattr(ensemble, "SLAB_BYTES", 4 * 3 * 12 * 16 * 6)  # six planes of the file
    coarse, fine = model_of(PLAIN, (2.0, 4.0, 3.0)), model_of(PLAIN, (1.0, 0.5, 0.75), seeds=(9,))
    members = [Member(model=coarse), Member(model=fine)]
    predicted(members[:1], maps=("entropy",))
    predicted(members)
    assert depths[0] > depths[1] == depths[2] >= 1
