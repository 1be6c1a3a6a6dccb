"""The format alone; test_writer.py has what holds for every kind."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from boxed import HALF_STEP, LABELS, ORDERS, REGIONS, SHAPE, in_image, names, placed, save

from nnseg.axes import Order
from nnseg.labels import Labels
from nnseg.volume import read_array, simple_geometry


@pytest.mark.parametrize("labels", [LABELS, REGIONS])
@pytest.mark.parametrize("order", ORDERS)
def test_a_nifti_file_holds_the_rounded_image(tmp_path: Path, order: Order, labels: Labels) -> None:
    placement = placed(order)
    found, files = save(tmp_path, "nifti", placement, labels)
    assert names(tmp_path) == ["case_probabilities.nii.gz"] == [path.name for path in files]
    image = nibabel.load(files[0])
    assert image.shape == (13, 11, 7, labels.heads)
    array = image.get_fdata().transpose(3, 2, 1, 0)
    np.testing.assert_allclose(array, in_image(found, placement, labels), rtol=0, atol=HALF_STEP)
    assert array.min() == 0
    assert array.max() == 1


def test_a_nifti_file_lies_on_the_grid_of_the_image(tmp_path: Path) -> None:
    affine = np.array([[0, -0.8, 0.1, 5], [0.7, 0, 0, -9], [0, 0.1, 3, 2], [0, 0, 0, 1.0]])
    source = nibabel.Nifti1Image(np.zeros(SHAPE[::-1], np.int16), affine)
    source.set_qform(np.diag([0.7, 0.8, 3, 1]), code=2)
    source.set_sform(affine, code=1)
    source.header.set_xyzt_units("mm", "sec")
    nibabel.save(source, tmp_path / "image.nii.gz")
    _, geometry = read_array(tmp_path / "image.nii.gz")
    _, files = save(tmp_path, "nifti", placed(), geometry=geometry)
    header = nibabel.load(files[0]).header
    for field in ("qform_code", "sform_code", "srow_x", "srow_y", "srow_z", "xyzt_units"):
        np.testing.assert_array_equal(header[field], source.header[field])
    for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        np.testing.assert_array_equal(header[field], source.header[field])
    np.testing.assert_array_equal(header["pixdim"][:5], [*source.header["pixdim"][:4], 1])
    assert header.get_data_dtype() == np.uint16
    assert (header["cal_min"], header["cal_max"]) == (0, 1)


def test_a_nifti_file_names_its_heads_and_is_read_by_others(tmp_path: Path) -> None:
    found, files = save(tmp_path, "nifti", placed())
    header = nibabel.load(files[0]).header
    (comment,) = header.extensions
    text = comment.get_content()
    text = text.decode() if isinstance(text, bytes) else text
    assert json.loads(text.rstrip("\0")) == {"heads": ["background", "core", "edema"]}
    image = sitk.ReadImage(str(files[0]))
    assert image.GetSize() == (13, 11, 7, 3)
    array = sitk.GetArrayFromImage(image)
    np.testing.assert_allclose(array, in_image(found, placed(), LABELS), rtol=0, atol=2e-4)


def test_a_side_too_long_for_nifti_1_makes_nifti_2(tmp_path: Path) -> None:
    shape, box = (1, 2, 32768), ((0, 1), (0, 2), (5, 9))
    geometry = simple_geometry(shape, (3.0, 0.8, 0.7))
    placement = placed((1, 0, 2), box, shape)
    found, files = save(tmp_path, "nifti", placement, geometry=geometry)
    image = nibabel.load(files[0])
    assert isinstance(image, nibabel.Nifti2Image)
    expected = in_image(found, placement, LABELS)
    np.testing.assert_allclose(image.get_fdata().T, expected, rtol=0, atol=HALF_STEP)
