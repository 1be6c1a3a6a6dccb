from pathlib import Path

import pytest

from nnseg.errors import PlanError
from nnseg.probabilities.kinds import probability_files


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(PlanError, match="known: chunks, compact, nifti, npz"):
        probability_files(Path("case"), "npy")


@pytest.mark.parametrize("label_map", ["a.b.nii.gz", "a.b.PNG", "a.b"])
def test_files_bear_the_name_of_the_case(label_map: str) -> None:
    assert probability_files(Path("out") / label_map, "npz") == (Path("out/a.b.npz"),)
