from itertools import pairwise

import pytest

from nnseg.errors import PlanError
from nnseg.model.schedule import COOL_DOWNS, SCHEDULES


# nnU-Net v2, PolyLRScheduler with exponent 0.9 over 1000 epochs, at epochs 0, 1, 500 and 999.
@pytest.mark.parametrize(
    ("epoch", "factor"), [(0, 1.0), (1, 0.99909995), (500, 0.53588673), (999, 0.00199526)]
)
def test_poly_falls_as_the_peers_schedule(epoch: int, factor: float) -> None:
    assert SCHEDULES["poly"](epoch / 1000) == pytest.approx(factor, rel=1e-5)


@pytest.mark.parametrize("name", sorted({*SCHEDULES} - {*COOL_DOWNS}))
def test_a_schedule_falls_from_1_to_0_or_a_hundredth(name: str) -> None:
    factors = [SCHEDULES[name](step / 20) for step in range(21)]
    assert factors[0] == 1
    assert factors[-1] == (pytest.approx(0.985**300) if name == "exponential" else 0)
    assert all(after < before for before, after in pairwise(factors))


@pytest.mark.parametrize("epochs", [15, 30, 75, 150, 300, 600, 1500])
def test_a_restart_is_the_first_epoch_after_a_fall_and_falls_double(epochs: int) -> None:
    factors = [SCHEDULES["cosine_restarts"](epoch / epochs) for epoch in range(epochs + 1)]
    starts = [epoch for epoch in range(epochs) if factors[epoch] == pytest.approx(1, abs=1e-9)]
    assert starts == [0, epochs // 15, epochs * 3 // 15, epochs * 7 // 15]
    for start, end in pairwise([*starts, epochs]):
        fall = factors[start:end]
        assert all(after < before for before, after in pairwise(fall))
        for epoch, factor in enumerate(fall):
            assert factor == pytest.approx(SCHEDULES["cosine"](epoch / (end - start)), abs=1e-6)
    assert factors[-1] == 0


def test_exponential_is_its_sources_of_300_epochs_and_ends_alike_of_any_number() -> None:
    exponential = SCHEDULES["exponential"]
    for epoch in (0, 1, 150, 299):
        assert exponential(epoch / 300) == pytest.approx(0.985**epoch)
    assert exponential(20 / 40) == pytest.approx(0.985**150)


def test_the_schedules_with_a_cool_down_of_their_own_exist() -> None:
    assert {*COOL_DOWNS} <= {*SCHEDULES}
    for fall in COOL_DOWNS.values():
        assert (fall(0.0), fall(1.0)) == (1, 0)


def test_cosine_is_flat_at_both_ends_and_half_way_in_the_middle() -> None:
    cosine = SCHEDULES["cosine"]
    assert cosine(0.5) == pytest.approx(0.5)
    assert 1 - cosine(0.01) < 0.001
    assert cosine(0.99) < 0.001


def test_an_unknown_schedule_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match="no schedule is named 'linear'; known: cosine, cosine_re"):
        SCHEDULES["linear"]
