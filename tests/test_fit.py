import dataclasses
import math
from typing import Any

import pytest

from nnseg.axes import Shape, Spacing
from nnseg.errors import PlanError
from nnseg.fit import (
    PLANNERS,
    Fit,
    Target,
    batch_cap,
    batch_size,
    coarser,
    fit_network,
    fit_networks,
)
from nnseg.model.architecture import NO_OPTIONS, NetworkOptions
from nnseg.model.kinds import KINDS, planned_elements
from nnseg.topology import find_topology


def target_of(
    planner: str = "default",
    memory_gb: float | None = None,
    outputs: int = 2,
    network: str | None = None,
    options: NetworkOptions = NO_OPTIONS,
) -> Target:
    rules = PLANNERS[planner]
    return Target(
        planner=rules,
        memory_gb=memory_gb or rules.memory_gb,
        network=network or rules.network,
        options=options,
        channels=1,
        outputs=outputs,
    )


@dataclasses.dataclass(frozen=True)
class Like:
    """What a public dataset is like: spacing, median shape, number of cases and of labels."""

    spacing: Spacing
    shape: Shape
    cases: int
    labels: int

    def fits(
        self,
        planner: str = "default",
        memory_gb: float | None = None,
        network: str | None = None,
        options: NetworkOptions = NO_OPTIONS,
    ) -> dict[str, Fit]:
        target = target_of(planner, memory_gb, self.labels, network, options)
        return fit_networks(self.spacing, self.shape, self.cases, target)


# Approximate statistics of the Medical Segmentation Decathlon and of ACDC.
LIKE = {
    "BrainTumour": Like((1, 1, 1), (138, 169, 138), 484, 4),
    "Heart": Like((1.37, 1.25, 1.25), (115, 320, 232), 20, 2),
    "Liver": Like((1, 0.7676, 0.7676), (482, 512, 512), 131, 3),
    "Hippocampus": Like((1, 1, 1), (36, 50, 35), 260, 3),
    "Prostate": Like((3.6, 0.62, 0.62), (20, 320, 319), 32, 3),
    "Lung": Like((1.24, 0.79, 0.79), (252, 512, 512), 63, 2),
    "Pancreas": Like((2.5, 0.8, 0.8), (96, 512, 512), 281, 3),
    "HepaticVessel": Like((1.5, 0.8, 0.8), (150, 494, 494), 303, 3),
    "Spleen": Like((1.6, 0.79, 0.79), (187, 512, 512), 41, 2),
    "Colon": Like((3, 0.78, 0.78), (150, 512, 512), 126, 2),
    "ACDC": Like((5, 1.5625, 1.5625), (18, 237, 208), 200, 4),
}


@pytest.mark.parametrize(
    ("like", "patch", "batch", "levels", "elements"),
    [
        ("BrainTumour", (128, 128, 128), 2, 6, 454_893_568),
        ("Heart", (80, 192, 160), 2, 6, 528_211_200),
        ("Liver", (128, 128, 128), 2, 6, 452_796_416),
        ("Hippocampus", (40, 56, 40), 9, 4, 19_174_400),
        ("Prostate", (20, 320, 256), 2, 7, 483_315_200),
        ("Lung", (80, 192, 160), 2, 6, 528_211_200),
        ("Pancreas", (40, 224, 224), 2, 6, 539_611_520),
        ("HepaticVessel", (64, 192, 192), 2, 6, 509_442_048),
        ("Spleen", (64, 192, 160), 2, 6, 526_556_160),
        ("Colon", (56, 192, 192), 2, 6, 552_964_608),
        ("ACDC", (20, 256, 224), 4, 6, 310_481_920),
    ],
)
def test_default_3d_networks_are_as_published(
    like: str, patch: Shape, batch: int, levels: int, elements: int
) -> None:
    fit = LIKE[like].fits()["3d_fullres"]
    assert fit.patch_size == patch
    assert fit.batch_size == batch
    assert fit.architecture.levels == levels
    assert fit.elements == elements


@pytest.mark.parametrize(
    ("like", "patch", "batch"),
    [
        ("BrainTumour", (192, 160), 105),
        ("Heart", (320, 256), 40),
        ("Liver", (512, 512), 12),
        ("Hippocampus", (56, 40), 366),
        ("Prostate", (320, 320), 32),
        ("Lung", (512, 512), 12),
        ("Pancreas", (512, 512), 12),
        ("HepaticVessel", (512, 512), 12),
        ("Spleen", (512, 512), 12),
        ("Colon", (512, 512), 12),
        ("ACDC", (256, 224), 56),
    ],
)
def test_default_2d_networks_are_as_published(
    like: str, patch: tuple[int, int], batch: int
) -> None:
    fit = LIKE[like].fits()["2d"]
    assert fit.patch_size == (1, *patch)
    assert fit.batch_size == batch


@pytest.mark.parametrize(
    ("like", "patch", "spacing", "median"),
    [
        ("Liver", (128, 128, 128), (2.5001, 1.9191, 1.9191), (193, 205, 205)),
        ("Lung", (80, 192, 160), None, (132, 267, 267)),
        ("Pancreas", (64, 192, 192), (2.575, 1.3223, 1.3223), None),
        ("HepaticVessel", (64, 192, 192), None, (93, 308, 308)),
        # nnU-Net 2.8.1 itself, run on the numbers of Spleen
        ("Spleen", (64, 192, 192), (2.7239, 1.3853, 1.3853), (110, 292, 292)),
        ("Colon", (96, 160, 160), None, (146, 252, 252)),
    ],
)
def test_lowres_networks_are_as_published(
    like: str, patch: Shape, spacing: Spacing | None, median: Shape | None
) -> None:
    fit = LIKE[like].fits()["3d_lowres"]
    assert fit.patch_size == patch
    assert spacing is None or fit.spacing == pytest.approx(spacing, abs=6e-5)
    assert median is None or fit.median_shape == median


@pytest.mark.parametrize("like", ["BrainTumour", "Heart", "Hippocampus", "Prostate", "ACDC"])
def test_images_that_a_patch_covers_well_have_no_lowres_network(like: str) -> None:
    assert list(LIKE[like].fits()) == ["2d", "3d_fullres"]


def test_a_lowres_network_of_a_published_plan_is_met() -> None:
    lung = Like((1.2450, 0.7852, 0.7852), (252, 512, 512), 63, 2).fits()["3d_lowres"]
    assert lung.patch_size == (80, 192, 160)
    assert lung.spacing == pytest.approx((2.3855, 1.5044, 1.5044), abs=6e-4)


@pytest.mark.parametrize(
    ("like", "strides", "kernels"),
    [
        ("Heart", "111 222 222 222 222 122", "333 333 333 333 333 333"),
        ("Prostate", "111 122 122 222 222 122 122", "133 133 333 333 333 333 333"),
        ("Pancreas", "111 122 222 222 222 122", "133 333 333 333 333 333"),
        ("ACDC", "111 122 222 222 122 122", "133 333 333 333 333 333"),
    ],
)
def test_strides_and_kernels_are_as_published(like: str, strides: str, kernels: str) -> None:
    network = LIKE[like].fits()["3d_fullres"].architecture
    assert " ".join("".join(map(str, stride)) for stride in network.strides) == strides
    assert " ".join("".join(map(str, kernel)) for kernel in network.kernel_sizes) == kernels


RESENC_PLANNERS = ("resenc_m", "resenc_l", "resenc_xl")
RESENC: dict[
    str, Any
] = {  # 3D patch and batch, 2D batch, with M, L and XL; the 2D patch is one for all
    "BrainTumour": [
        ((128, 128, 128), 2, 107),
        ((160, 192, 160), 3, 301),
        ((160, 192, 160), 5, 444),
        (192, 160),
    ],
    "Heart": [
        ((80, 192, 160), 2, 40),
        ((112, 288, 224), 2, 113),
        ((128, 320, 256), 3, 166),
        (320, 256),
    ],
    "Liver": [
        ((128, 128, 128), 2, 12),
        ((192, 192, 192), 2, 35),
        ((224, 256, 224), 2, 52),
        (512, 512),
    ],
    "Hippocampus": [
        ((40, 56, 40), 58, 1618),
        ((40, 56, 40), 178, 4554),
        ((40, 56, 40), 183, 6711),
        (56, 40),
    ],
    "Prostate": [
        ((20, 256, 256), 2, 32),
        ((20, 320, 320), 5, 90),
        ((20, 320, 320), 8, 133),
        (320, 320),
    ],
    "Lung": [
        ((80, 192, 160), 2, 13),
        ((112, 256, 256), 2, 35),
        ((128, 320, 320), 2, 52),
        (512, 512),
    ],
    "Pancreas": [
        ((40, 224, 192), 2, 12),
        ((56, 320, 256), 2, 35),
        ((64, 384, 384), 2, 52),
        (512, 512),
    ],
    "Colon": [
        ((56, 192, 160), 2, 13),
        ((80, 256, 256), 2, 35),
        ((80, 320, 320), 2, 52),
        (512, 512),
    ],
    "ACDC": [
        ((20, 256, 224), 3, 57),
        ((20, 256, 224), 10, 161),
        ((20, 256, 224), 17, 238),
        (256, 224),
    ],
}


@pytest.mark.parametrize("like", RESENC)
@pytest.mark.parametrize("planner", RESENC_PLANNERS)
def test_residual_networks_are_as_published(like: str, planner: str) -> None:
    patch, batch, batch_2d = RESENC[like][RESENC_PLANNERS.index(planner)]
    fits = LIKE[like].fits(planner)
    fullres, flat = fits["3d_fullres"], fits["2d"]
    assert (fullres.patch_size, fullres.batch_size) == (patch, batch)
    assert (flat.patch_size, flat.batch_size) == ((1, *RESENC[like][-1]), batch_2d)
    assert fullres.architecture.encoder_blocks[:5] == (1, 3, 4, 6, 6)[: fullres.architecture.levels]
    assert set(fullres.architecture.decoder_blocks) == {1}


def test_a_larger_memory_target_gives_the_reported_patch() -> None:
    fullres = Like((2, 1, 1), (206, 380, 330), 20, 2).fits("resenc_m", 80)["3d_fullres"]
    assert (fullres.patch_size, fullres.batch_size) == ((192, 320, 256), 2)
    assert fullres.architecture.levels == 7
    assert fullres.architecture.kernel_sizes == ((1, 3, 3), *((3, 3, 3),) * 6)
    assert fullres.architecture.strides[1] == (1, 2, 2)


@pytest.mark.parametrize(("cases", "cap"), [(10, 2), (30, 4), (31, 5)])  # 1.5, 4.5 and 4.65
def test_a_batch_holds_at_most_a_share_of_the_dataset_half_to_even(cases: int, cap: int) -> None:
    assert batch_cap((2, 3, 4), cases * 72.0, 0.05) == cap


def test_a_batch_is_at_least_2() -> None:
    assert batch_size(100, 10.0, 2, 9) == 2
    assert batch_size(100, 1000.0, 2, 1) == 2


def test_the_5_percent_cap_is_off_for_m_l_and_xl() -> None:
    tiny = Like((1, 1, 1), (36, 50, 35), 100, 2)
    capped, free = tiny.fits("resenc")["3d_fullres"], tiny.fits("resenc_m")["3d_fullres"]
    assert (capped.batch_size, free.batch_size) == (4, 58)


def test_a_residual_2d_patch_must_fit_in_twelves_a_plain_one_in_twos() -> None:
    spacing, median = (None, 1.0, 1.0), (1.0, 512.0, 512.0)
    plain = fit_network(spacing, median, 1e9, target_of("default", 2))
    residual = fit_network(spacing, median, 1e9, target_of("resenc_m", 2))
    assert plain.patch_size == (1, 512, 512)
    assert 2 < plain.batch_size < 12
    assert math.prod(residual.patch_size) < 512**2
    assert residual.batch_size >= 12


def test_a_shrinking_that_goes_in_a_circle_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    circle = find_topology((1.0, 1.0, 1.0), (40, 56, 48))
    monkeypatch.setattr("nnseg.fit.shrink", lambda *_: circle)
    with pytest.raises(PlanError, match="too little for any 3D patch: 40 x 56 x 48 voxels"):
        fit_network((1.0, 1.0, 1.0), (138, 169, 138), 1e9, target_of(memory_gb=0.01))


@pytest.mark.parametrize("memory_gb", [1e-6, 1e-9])
@pytest.mark.parametrize("like", ["Prostate", "Hippocampus"])
@pytest.mark.parametrize("planner", ["default", "resenc_m"])
def test_a_memory_target_too_small_ends_with_advice(
    memory_gb: float, like: str, planner: str
) -> None:
    with pytest.raises(PlanError, match=r"too little for any 2D patch: .* voxels need about"):
        LIKE[like].fits(planner, memory_gb)


@pytest.mark.parametrize("like", ["Prostate", "Hippocampus"])
def test_a_small_memory_target_gives_small_patches(like: str) -> None:
    for fit in LIKE[like].fits(memory_gb=0.01).values():
        assert 1 <= math.prod(fit.patch_size) < 20_000


def test_coarser_spacing_lets_fine_axes_catch_up_first() -> None:
    assert coarser((2.0, 1.0, 0.9)) == pytest.approx((2.0, 1.0, 0.927))
    assert coarser((2.0, 1.0, 1.0)) == pytest.approx((2.06, 1.03, 1.03))


def test_a_lowres_network_that_would_save_less_than_half_is_dropped() -> None:
    # at 2 GB the patch shows 17 % of the image, and a quarter at 1.4 times fewer voxels
    fits = Like((2.5, 2.0, 2.0), (75, 201, 217), 20, 10).fits(memory_gb=2)
    fullres = fits["3d_fullres"]
    assert math.prod(fullres.patch_size) / math.prod(fullres.median_shape) < 0.25
    assert "3d_lowres" not in fits


def test_a_lowres_batch_is_capped_by_the_lowres_voxels() -> None:
    fits = LIKE["Liver"].fits()
    lowres, share = fits["3d_lowres"], 0.05 * LIKE["Liver"].cases
    assert lowres.batch_cap == pytest.approx(share / 0.25, rel=0.05)  # a patch shows a quarter
    assert fits["3d_fullres"].batch_cap > 10 * lowres.batch_cap


def test_a_lowres_image_keeps_a_slice() -> None:
    fits = fit_networks((1.0, 1.0, 1.0), (2.0, 2000.0, 2100.0), 20, target_of(memory_gb=0.05))
    assert fits["3d_lowres"].median_shape[0] == 1


@pytest.mark.parametrize("network", KINDS)
@pytest.mark.parametrize("like", ["Hippocampus", "ACDC", "Liver"])
def test_every_network_fits_the_memory_of_its_planner(network: str, like: str) -> None:
    kind, fits = KINDS[network], LIKE[like].fits(network=network)
    assert {fit.architecture.dimensions for fit in fits.values()} == set(kind.dimensions)
    for fit in fits.values():
        architecture, patch = fit.architecture, fit.patch_size
        assert architecture.network == network
        assert kind.levels[0] <= architecture.levels <= kind.levels[1]
        assert fit.elements == planned_elements(architecture, patch, 1, LIKE[like].labels)
        reference = 2 if architecture.dimensions == 3 else 12
        assert fit.elements * (fit.batch_size - 0.5) <= fit.elements_allowed * reference
        assert all(edge % d == 0 for edge, d in zip(patch, architecture.divisor, strict=True))


def test_a_network_that_keeps_more_gets_a_smaller_patch() -> None:
    plain = LIKE["ACDC"].fits()["3d_fullres"]
    nested = LIKE["ACDC"].fits(network="unetpp")["3d_fullres"]
    assert math.prod(nested.patch_size) < math.prod(plain.patch_size)
    assert nested.elements_allowed == plain.elements_allowed


@pytest.mark.parametrize("shape", [(160, 16, 16), (300, 20, 24), (60, 12, 300), (4, 200, 16)])
@pytest.mark.parametrize("network", [name for name in KINDS if 3 in KINDS[name].dimensions])
def test_long_and_flat_images_get_patches_near_their_own_size(network: str, shape: Shape) -> None:
    fit = Like((1.0, 1.0, 1.0), shape, 40, 3).fits(network=network)["3d_fullres"]
    fixed = 2 ** (KINDS[network].levels[0] - 1)  # what a least depth takes is the network's own
    for edge, most in zip(fit.patch_size, shape, strict=True):
        assert edge <= max(1.5 * most, 2 * fixed)


@pytest.mark.parametrize("network", ["plain", "fcn", "unet3plus", "encoder_unet"])
def test_more_labels_leave_a_network_less_room(network: str) -> None:
    few, many = (Like((1, 1, 1), (138, 169, 138), 484, labels) for labels in (3, 105))
    before, after = few.fits(network=network), many.fits(network=network)
    for name, fit in before.items():
        fewer = math.prod(after[name].patch_size) * after[name].batch_size
        assert fewer < 0.9 * math.prod(fit.patch_size) * fit.batch_size


def test_a_backbone_of_timms_is_fitted_in_2d_only() -> None:
    options = NetworkOptions(backbone="timm:regnety_016")
    fits = LIKE["Hippocampus"].fits(network="encoder_unet", options=options)
    assert list(fits) == ["2d"]


def test_blocks_of_deeper_levels_repeat_the_last() -> None:
    architecture = LIKE["Liver"].fits("resenc_l")["3d_fullres"].architecture
    assert architecture.encoder_blocks == (1, 3, 4, 6, 6, 6)[: architecture.levels]
    medium = LIKE["ACDC"].fits(network="mednext_m")["3d_fullres"].architecture
    assert medium.encoder_blocks == (3, 4, 4, 4, 4)
    assert medium.decoder_blocks == (3, 4, 4, 4)


def test_options_are_part_of_what_is_planned() -> None:
    options = NetworkOptions(norm="batch", upsampling="shuffled")
    fits = LIKE["ACDC"].fits(network="unetpp", options=options)
    assert {fit.architecture.options for fit in fits.values()} == {options}


@pytest.mark.parametrize(
    ("network", "options", "words"),
    [
        ("plain", NetworkOptions(norm="batch"), "network plain has no option norm"),
        ("unetpp", NetworkOptions(backbone="resnet18d"), "it takes upsampling, norm, dropout"),
        ("unetpq", NO_OPTIONS, "no network is named 'unetpq'; known: .*unetpp"),
    ],
)
def test_what_a_network_does_not_take_is_refused(
    network: str, options: NetworkOptions, words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        target_of(network=network, options=options)
