from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from nnseg.errors import DataError
from nnseg.volume.nifti_header import NIFTI_1, NIFTI_2, affine_of, parse_header

SHAPE = (5, 4, 3)  # x first
HEADERS = {NIFTI_1: nibabel.Nifti1Header, NIFTI_2: nibabel.Nifti2Header}


def header(size: int = NIFTI_1, order: str = "<", seed: int = 0) -> Any:
    """A header of nibabel's whose fields all differ from each other."""
    rng = np.random.default_rng(seed)
    found = HEADERS[size](endianness=order)
    found.set_data_shape(SHAPE)
    found.set_data_dtype(np.int16)
    found["pixdim"] = (rng.choice([-1, 1]), *rng.uniform(0.5, 4, 7))
    found["vox_offset"] = found.single_vox_offset + 32
    found["scl_slope"], found["scl_inter"] = 1, 0
    found["xyzt_units"], found["qform_code"], found["sform_code"] = 10, 1, 2
    for axis, value in zip("bcd", rng.uniform(-0.5, 0.5, 3), strict=True):
        found[f"quatern_{axis}"] = value
    for axis, value in zip("xyz", rng.uniform(-90, 90, 3), strict=True):
        found[f"qoffset_{axis}"] = value
        found[f"srow_{axis}"] = rng.uniform(-9, 9, 4)
    return found


def parsed(found: Any) -> Any:
    return parse_header(found.binaryblock)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("size", [NIFTI_1, NIFTI_2])
def test_every_field_is_what_nibabel_reads(size: int, order: str) -> None:
    theirs = header(size, order)
    ours = parsed(theirs)
    for name in ("datatype", "bitpix", "vox_offset", "scl_slope", "scl_inter", "xyzt_units"):
        assert getattr(ours, name) == theirs[name], name
    assert (ours.qform_code, ours.sform_code) == (1, 2)
    assert ours.dim == tuple(theirs["dim"])
    assert ours.pixdim == tuple(theirs["pixdim"])
    assert ours.quatern == tuple(theirs[f"quatern_{axis}"] for axis in "bcd")
    assert ours.qoffset == tuple(theirs[f"qoffset_{axis}"] for axis in "xyz")
    assert ours.srow == tuple(tuple(theirs[f"srow_{axis}"]) for axis in "xyz")
    assert ours.magic[:3] == theirs["magic"].item()[:3]
    assert (ours.shape, ours.announced, ours.kind) == (SHAPE, 120, np.dtype(f"{order}i2"))
    assert ours.is_flawless


@pytest.mark.parametrize(("qform", "sform"), [(1, 2), (0, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("size", [NIFTI_1, NIFTI_2])
def test_the_matrix_is_the_one_that_nibabel_prefers(size: int, qform: int, sform: int) -> None:
    for seed in range(20):
        theirs = header(size, seed=seed)
        theirs["qform_code"], theirs["sform_code"] = qform, sform
        np.testing.assert_allclose(
            affine_of(Path("a.nii"), parsed(theirs)), theirs.get_best_affine(), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("shape", [(6, 7), (6, 7, 3, 2)])
def test_a_matrix_of_the_spacing_alone_has_the_middle_at_its_origin(shape: tuple[int, ...]) -> None:
    theirs = header()
    theirs["qform_code"] = theirs["sform_code"] = 0
    theirs.set_data_shape(shape)
    theirs["pixdim"][1:5] = (2, 3, 4, 5)
    found = affine_of(Path("a.nii"), parsed(theirs))
    np.testing.assert_array_equal(found, theirs.get_best_affine())
    middle = [(n - 1) / 2 for n in (*shape, 1)[:3]]
    np.testing.assert_array_equal(np.array(found) @ [*middle, 1], [0, 0, 0, 1])


def test_a_half_turn_may_be_rounded_and_a_longer_quaternion_is_refused() -> None:
    theirs = header()
    theirs["sform_code"] = 0
    for axis, value in zip("bcd", (0.6, 0.8, 0), strict=True):
        theirs[f"quatern_{axis}"] = value
    squares = sum(float(theirs[f"quatern_{axis}"]) ** 2 for axis in "bcd")
    assert squares > 1  # in float32
    found = affine_of(Path("a.nii"), parsed(theirs))
    np.testing.assert_allclose(found, theirs.get_best_affine(), rtol=0, atol=1e-12)
    theirs["quatern_b"] = 0.601
    with pytest.raises(
        DataError, match=r"^a\.nii: the header's quatern is \(0\.601, 0\.8, 0\), lo"
    ):
        affine_of(Path("a.nii"), parsed(theirs))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("datatype", 1024),
        ("bitpix", 8),
        ("qform_code", 6),
        ("sform_code", -1),
        ("vox_offset", 353),
        ("scl_slope", 2),
        ("scl_inter", 3),
        ("magic", b"ni1"),
    ],
)
def test_a_header_with_something_to_correct_or_to_scale_is_not_flawless(
    field: str, value: Any
) -> None:
    theirs = header()
    theirs[field] = value
    assert not parsed(theirs).is_flawless


@pytest.mark.parametrize(("place", "value"), [(0, 0), (1, 0), (2, -1), (3, 0)])
def test_spacings_and_lengths_of_nothing_are_not_flawless(place: int, value: float) -> None:
    theirs = header()
    theirs["pixdim"][place] = value
    assert not parsed(theirs).is_flawless
    theirs = header()
    theirs["dim"][place] = value
    assert not parsed(theirs).is_flawless


def test_a_slope_that_is_unset_scales_nothing() -> None:
    for slope in (0, np.nan):
        theirs = header()
        theirs["scl_slope"], theirs["scl_inter"] = slope, 5
        assert parsed(theirs).is_flawless


@pytest.mark.parametrize("size", [NIFTI_1, NIFTI_2])
def test_bytes_that_are_no_header_or_too_few_give_none(size: int) -> None:
    whole = header(size).binaryblock
    assert parse_header(whole) is not None
    assert parse_header(whole[:-1]) is None
    assert parse_header(b"\0" * size) is None
    assert parse_header(b"") is None


def test_line_ends_that_were_changed_on_the_way_are_no_flawless_header() -> None:
    theirs = header(NIFTI_2)
    assert parsed(theirs).is_flawless
    theirs["eol_check"] = (10, 10, 26, 10)
    assert not parsed(theirs).is_flawless
