"""Laws that hold of any input, tried on generated ones: few always, many in the long form."""

import laws_of_images
import laws_of_records
import pytest
from laws import LAWS
from tallies import Tally

FEW, MANY = 20, 1000

assert laws_of_images
assert laws_of_records  # both have filled LAWS


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the waiting for the disk, which would be most of the time."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.mark.fault("G9")
@pytest.mark.parametrize("name", LAWS)
def test_a_law_holds_for_a_few_inputs(name: str, tally: Tally) -> None:
    LAWS[name].hold(FEW, chance=False)
    tally("properties", FEW, FEW)


@pytest.mark.slow
@pytest.mark.fault("G9")
@pytest.mark.parametrize("name", LAWS)
def test_a_law_holds_for_many_inputs(name: str, tally: Tally) -> None:
    LAWS[name].hold(MANY, chance=True)
    tally("properties", MANY, MANY)


def test_there_are_as_many_laws_as_are_promised() -> None:
    assert len(LAWS) >= 40
