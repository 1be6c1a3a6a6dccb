"""What models are chosen by lacks a fold, or is damaged: it is named, and nothing is chosen."""

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import SimpleITK
from struck import DATASET, Struck, fits_user
from tallies import Tally


def cut(label_map: Path) -> None:
    label_map.write_bytes(label_map.read_bytes()[:-9])


def flip(label_map: Path) -> None:
    data = bytearray(gzip.decompress(label_map.read_bytes()))
    data[-5] ^= 1
    label_map.write_bytes(gzip.compress(bytes(data)))


def crop(label_map: Path) -> None:
    image = SimpleITK.ReadImage(str(label_map))
    SimpleITK.WriteImage(image[1:, :], str(label_map))


def lose(label_map: Path) -> None:
    label_map.unlink()


@pytest.mark.fault("R41")
@pytest.mark.parametrize("harm", [cut, flip, crop, lose])
def test_a_prediction_that_is_not_what_was_validated_is_named_and_nothing_chosen(
    struck: Struck, root: Path, tally: Tally, harm: Callable[[Path], None]
) -> None:
    models = root / "results" / DATASET
    label_map = sorted((models / "nnseg" / "2d" / "fold_0" / "validation").glob("*.nii.gz"))[0]
    harm(label_map)
    refused = struck.run(root, "find-best", "1")
    assert refused.code in (3, 5), refused.said
    assert fits_user(refused)
    assert label_map.name.removesuffix(".nii.gz") in refused.said
    assert f"`nnseg train {DATASET} 2d 0 --val`" in refused.said
    assert not (models / "choice.json").exists()
    tally("choosing", 1, 1)


@pytest.mark.fault("R41")
def test_a_fold_that_is_asked_for_and_missing_is_named_and_no_mean_taken_over_fewer(
    struck: Struck, root: Path, tally: Tally
) -> None:
    models = root / "results" / DATASET
    assert struck.run(root, "find-best", "1").code == 0
    shutil.copy(models / "choice.json", root / "kept.json")
    refused = struck.run(root, "find-best", "1", "-f", "0", "3")
    assert refused.code == 5, refused.said
    assert fits_user(refused)
    assert f"`nnseg train {DATASET} 2d 3" in refused.said
    assert (models / "choice.json").read_bytes() == (root / "kept.json").read_bytes()
    tally("choosing", 1, 1)
