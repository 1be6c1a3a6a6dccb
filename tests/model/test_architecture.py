import dataclasses
from typing import Any

import pytest

from nnseg import record
from nnseg.errors import DataError, PlanError
from nnseg.model.architecture import (
    Architecture,
    NetworkOptions,
    count_elements,
    level_shapes,
)

STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 1))
KERNELS = ((1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3))


def network(kind: str, **changes: Any) -> Architecture:
    plain = Architecture(
        network="plain",
        dimensions=3,
        features=(32, 64, 64, 64),
        kernel_sizes=KERNELS,
        strides=STRIDES,
        encoder_blocks=(2, 2, 2, 2),
        decoder_blocks=(2, 2, 2),
    )
    if kind == "resenc":
        changes = {
            "network": "resenc",
            "encoder_blocks": (1, 3, 4, 6),
            "decoder_blocks": (1, 1, 1),
            **changes,
        }
    return dataclasses.replace(plain, **changes)


# Counted by dynamic_network_architectures, compute_conv_feature_map_size, for these networks.
@pytest.mark.parametrize(("kind", "elements"), [("plain", 1_184_256), ("resenc", 1_585_152)])
def test_elements_are_counted_as_the_peer_counts_them(kind: str, elements: int) -> None:
    assert count_elements(network(kind), (6, 32, 24), 5) == elements


def test_a_plain_network_counts_its_convolutions_upsamplings_and_outputs() -> None:
    two_levels = network(
        "plain",
        features=(3, 5),
        kernel_sizes=KERNELS[:2],
        strides=STRIDES[:2],
        encoder_blocks=(1, 2),
        decoder_blocks=(4,),
    )
    fine, coarse = 2 * 4 * 6, 2 * 2 * 3
    encoder = 1 * 3 * fine + 2 * 5 * coarse
    decoder = 4 * 3 * fine + 3 * fine
    assert count_elements(two_levels, (2, 4, 6), 7) == encoder + decoder + 7 * fine


@pytest.mark.parametrize(
    ("features", "stride", "skip"),
    [((4, 4), (1, 1, 1), 0), ((4, 5), (1, 1, 1), 1), ((4, 4), (1, 1, 2), 1)],
)
def test_a_residual_block_counts_a_third_convolution_where_it_changes_something(
    features: tuple[int, int], stride: tuple[int, int, int], skip: int
) -> None:
    two_levels = network(
        "resenc",
        features=features,
        kernel_sizes=KERNELS[:2],
        strides=((1, 1, 1), stride),
        encoder_blocks=(1, 3),
        decoder_blocks=(1,),
    )
    fine, coarse = 2 * 4 * 6, 2 * 4 * 6 // stride[2]
    stem_and_first = 3 * features[0] * fine
    second = (2 * 3 + skip) * features[1] * coarse
    decoder = 2 * features[0] * fine
    assert count_elements(two_levels, (2, 4, 6), 0) == stem_and_first + second + decoder


def test_a_network_of_one_level_has_no_outputs_to_count() -> None:
    single = network(
        "plain",
        features=(32,),
        kernel_sizes=KERNELS[:1],
        strides=STRIDES[:1],
        encoder_blocks=(2,),
        decoder_blocks=(),
    )
    assert count_elements(single, (5, 6, 7), 3) == 2 * 32 * 5 * 6 * 7


def test_kernel_sizes_do_not_count() -> None:
    wide = network("plain", kernel_sizes=((3, 3, 3),) * 4)
    assert count_elements(wide, (6, 32, 24), 5) == count_elements(network("plain"), (6, 32, 24), 5)


def test_shapes_shrink_by_each_levels_stride_along_its_axis() -> None:
    assert level_shapes((6, 32, 24), STRIDES) == ((6, 32, 24), (6, 16, 12), (3, 8, 6), (3, 4, 6))


def test_the_divisor_is_the_product_of_the_strides() -> None:
    assert network("plain").divisor == (2, 8, 4)


def test_an_unknown_network_has_no_memory_count() -> None:
    with pytest.raises(PlanError, match="'mamba'; known: plain, resenc"):
        count_elements(network("plain", network="mamba"), (6, 32, 24), 5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kernel_sizes", KERNELS[:3]),
        ("strides", STRIDES[:3]),
        ("encoder_blocks", (2, 2, 2)),
        ("decoder_blocks", (2, 2, 2, 2)),
    ],
)
def test_every_field_has_an_entry_for_each_level(field: str, value: Any) -> None:
    with pytest.raises(PlanError, match=f"{field} has .* entries; 4 levels need"):
        network("plain", **{field: value})


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [
        ("features", 0, 1),
        ("features", 4097, 4096),
        ("encoder_blocks", 0, 1),
        ("encoder_blocks", 65, 64),
        ("decoder_blocks", 0, 1),
        ("decoder_blocks", 65, 64),
        ("strides", (1, 0, 2), (1, 1, 2)),
        ("strides", (-2, 1, 1), (2, 1, 1)),
        ("kernel_sizes", (3, 3, 2), (3, 3, 1)),
        ("kernel_sizes", (9, 3, 3), (7, 3, 3)),
        ("kernel_sizes", (3, -1, 3), (3, 5, 3)),
    ],
)
def test_sizes_that_no_network_has_are_refused_by_the_name_of_their_field(
    field: str, bad: Any, good: Any
) -> None:
    rest = getattr(network("plain"), field)[1:]
    network("plain", **{field: (good, *rest)})
    with pytest.raises(PlanError, match=f"{field} is .*; each must be"):
        network("plain", **{field: (bad, *rest)})


@pytest.mark.parametrize(("levels", "fits"), [(0, False), (1, True), (12, True), (13, False)])
def test_a_network_has_1_to_12_levels(levels: int, fits: bool) -> None:
    fields: dict[str, Any] = {
        "features": (8,) * levels,
        "kernel_sizes": ((3, 3, 3),) * levels,
        "strides": ((1, 1, 1),) * levels,
        "encoder_blocks": (1,) * levels,
        "decoder_blocks": (1,) * (levels - 1),
    }
    if fits:
        assert network("plain", **fields).levels == levels
    else:
        with pytest.raises(PlanError, match=r"features has .* levels; it must have 1 to 12"):
            network("plain", **fields)


def test_an_architecture_from_before_there_were_options_has_none() -> None:
    data = record.to_json(network("plain"))
    del data["options"]
    assert record.parse(Architecture, data, "here") == network("plain")


def test_options_are_written_and_read() -> None:
    chosen = network("plain", options=NetworkOptions(upsampling="shuffled", dropout=0.25))
    data = record.to_json(chosen)
    assert data["options"] == {
        "upsampling": "shuffled",
        "norm": None,
        "dropout": 0.25,
        "backbone": None,
    }
    assert record.parse(Architecture, data, "here") == chosen
    assert chosen.called == "plain (upsampling shuffled, dropout 0.25)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"upsampling": "nearest"}, "options.upsampling"),
        ({"norm": "group"}, "options.norm"),
        ({"dropout": 1.0}, "dropout is 1; it must be 0 or more, and less than 1"),
        ({"depth": 3}, "options.depth"),
    ],
)
def test_options_that_there_are_not_are_refused(options: dict[str, Any], words: str) -> None:
    data = record.to_json(network("plain")) | {"options": options}
    with pytest.raises(DataError, match=words):
        record.parse(Architecture, data, "here")
