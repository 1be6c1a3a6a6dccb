import numpy as np
import pytest

from nnseg.errors import DataError, PlanError
from nnseg.image.intensity import Intensity
from nnseg.image.normalize import HONOURS_MASK, NORMALIZERS, normalizer_for_channel

INTENSITY = Intensity(
    mean=10.0,
    median=11.0,
    std=4.0,
    min=-50.0,
    max=90.0,
    percentile_00_5=-2.0,
    percentile_99_5=30.0,
)
IMAGE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)


def scaled(name: str, image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
    """What a normalizer makes of a copy of `image`."""
    channel = np.array(image, dtype=np.float32)
    assert NORMALIZERS[name](channel, INTENSITY, mask) is None  # type: ignore[func-returns-value]
    return channel


def test_zscore_brings_the_channel_to_mean_0_and_deviation_1() -> None:
    assert scaled("zscore", IMAGE) == pytest.approx(
        (IMAGE - 11.5) / np.sqrt((24**2 - 1) / 12), abs=1e-6
    )


def test_zscore_within_a_mask_measures_there_and_leaves_the_rest() -> None:
    mask = (IMAGE == 4) | (IMAGE == 8)
    found = scaled("zscore", IMAGE, mask)
    assert found[mask].tolist() == [-1, 1]
    assert np.array_equal(found[~mask], IMAGE[~mask])


@pytest.mark.parametrize("mask", [None, np.ones((2, 3, 4), dtype=np.bool_)])
def test_zscore_of_a_constant_channel_is_0(mask: np.ndarray | None) -> None:
    assert not scaled("zscore", np.full((2, 3, 4), 7), mask).any()


def test_zscore_within_an_empty_mask_leaves_all() -> None:
    found = scaled("zscore", IMAGE, np.zeros((2, 3, 4), dtype=np.bool_))
    assert np.array_equal(found, IMAGE)


def test_ct_clips_to_the_percentiles_and_scales_by_the_dataset() -> None:
    image = np.array([[[-1000, -2, 10, 14, 30, 3000]]], dtype=np.float32)
    assert scaled("ct", image).ravel().tolist() == [-3, -3, 0, 1, 5, 5]


def test_none_changes_nothing() -> None:
    assert np.array_equal(scaled("none", IMAGE), IMAGE)


def test_rescale_maps_the_range_to_0_to_1() -> None:
    assert scaled("rescale_to_0_1", IMAGE - 100) == pytest.approx(IMAGE / 23)


def test_rescale_of_a_constant_channel_is_0() -> None:
    assert not scaled("rescale_to_0_1", np.full((2, 3, 4), 7)).any()


def test_rgb_maps_255_to_1() -> None:
    image = np.array([[[0, 51, 255]]], dtype=np.float32)
    assert scaled("rgb_to_0_1", image).ravel() == pytest.approx([0, 0.2, 1])


@pytest.mark.parametrize("value", [-1, 256])
def test_rgb_refuses_what_is_no_8_bit_colour(value: float) -> None:
    image = np.array([[[0, value]]], dtype=np.float32)
    with pytest.raises(DataError, match=str(value)):
        NORMALIZERS["rgb_to_0_1"](image, INTENSITY, None)


def test_the_deviation_of_many_values_is_as_numpy_has_it() -> None:
    image = np.random.default_rng(0).normal(300, 70, (3, 400, 700)).astype(np.float32)
    expected = (image - image.mean(dtype=np.float64)) / image.std(dtype=np.float64)
    np.testing.assert_allclose(scaled("zscore", image), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", list(NORMALIZERS))
def test_only_those_that_honour_a_mask_heed_it(name: str) -> None:
    with_mask, without = (scaled(name, IMAGE, mask) for mask in (IMAGE > 3, None))
    assert np.array_equal(with_mask, without) == (name not in HONOURS_MASK)


@pytest.mark.parametrize(
    ("channel", "normalizer"),
    [
        ("CT", "ct"),
        ("ct", "ct"),
        ("noNorm", "none"),
        ("zscore", "zscore"),
        ("Rescale_to_0_1", "rescale_to_0_1"),
        ("RGB_to_0_1", "rgb_to_0_1"),
        ("T1", "zscore"),
        ("CT scan", "zscore"),
    ],
)
def test_a_channel_name_chooses_its_normalizer(channel: str, normalizer: str) -> None:
    assert normalizer_for_channel(channel) == normalizer
    assert normalizer in NORMALIZERS


def test_an_unknown_normalizer_is_an_error_that_names_the_known() -> None:
    with pytest.raises(PlanError, match="zscore"):
        NORMALIZERS["zscor"]
