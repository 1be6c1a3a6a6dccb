import dataclasses
from pathlib import Path

import pytest

from nnseg import record
from nnseg.errors import UsageError
from nnseg.verbs.agenda import Agenda, Order, Rehearsed, Training, describe, draw_up, wanted

BOTH = {"2d": None, "3d_fullres": None}
ALL = {**BOTH, "3d_lowres": None, "3d_cascade_fullres": "3d_lowres"}


def steps(**seconds: float) -> dict[str, Rehearsed]:
    """Trainings of 1000 epochs whose steps take so long; `_2d` is 2d."""
    return {
        name.lstrip("_"): Rehearsed(
            epochs=1000, iterations=250, step_seconds=step, bytes=2_100_000_000
        )
        for name, step in seconds.items()
    }


SECOND = steps(_2d=1.0, _3d_fullres=1.0)


def order(**options: object) -> Order:
    return Order(**{"plan": "nnseg", "preset": "default", **options})  # type: ignore[arg-type]


def drawn(
    asked: Order, planned: dict[str, str | None] = BOTH, count: int = 5, **more: object
) -> Agenda:
    options = {"rehearsed": SECOND, **more}
    return draw_up("Dataset001_Mine", asked, planned, count, **options)  # type: ignore[arg-type]


def names(agenda: Agenda) -> list[str]:
    return [f"{one.configuration} {one.fold}" for one in agenda.trainings]


@pytest.mark.parametrize("preset", ["default", "best"])
def test_without_a_budget_every_configuration_is_trained_in_every_fold(preset: str) -> None:
    agenda = drawn(order(preset=preset), ALL)
    assert len(agenda.trainings) == 20
    assert set(agenda.configurations) == set(ALL)
    assert agenda.folds == ("0", "1", "2", "3", "4")
    assert all(one.budget_seconds is None for one in agenda.trainings)


def test_whole_folds_come_first_and_a_cascade_last() -> None:
    agenda = drawn(order(), ALL, 2)
    assert names(agenda) == [
        "2d 0",
        "3d_fullres 0",
        "3d_lowres 0",
        "2d 1",
        "3d_fullres 1",
        "3d_lowres 1",
        "3d_cascade_fullres 0",
        "3d_cascade_fullres 1",
    ]


def test_the_quick_preset_has_two_folds_of_ten_minutes() -> None:
    agenda = drawn(order(preset="quick"), ALL)
    assert names(agenda) == ["3d_fullres 0", "2d 0", "3d_fullres 1", "2d 1"]
    assert {one.budget_seconds for one in agenda.trainings} == {600}


@pytest.mark.parametrize(
    ("budget", "count", "folds"),
    [(50_000, 20, 5), (7900, 10, 5), (4500, 10, 5), (4200, 6, 3), (2400, 4, 2), (1200, 2, 2)],
)
def test_a_budget_has_as_many_trainings_as_get_400_steps_each(
    budget: float, count: int, folds: int
) -> None:
    agenda = drawn(order(budget_seconds=budget), ALL, 5)
    assert (len(agenda.trainings), len(agenda.folds)) == (count, folds)
    for one in agenda.trainings:
        assert one.budget_seconds is not None
        assert one.budget_seconds >= 400
    assert sum(one.budget_seconds or 0 for one in agenda.trainings) <= 0.95 * budget


def test_a_slow_network_has_fewer_trainings_of_the_same_budget() -> None:
    quick = drawn(order(budget_seconds=3000))
    slow = drawn(order(budget_seconds=3000), rehearsed=steps(_2d=0.2, _3d_fullres=3.0))
    assert len(quick.folds) > len(slow.folds)
    assert slow.configurations == ("3d_fullres",)


def test_the_smallest_job_is_one_training_however_short_its_budget() -> None:
    agenda = drawn(order(budget_seconds=200))
    assert names(agenda) == ["3d_fullres 0"]
    assert agenda.trainings[0].budget_seconds == 140


def test_what_preparing_took_of_the_budget_is_gone() -> None:
    agenda = drawn(order(budget_seconds=3000), left=1000.0)
    assert sum(one.budget_seconds or 0 for one in agenda.trainings) <= 1000 - 150


def test_a_budget_that_preparing_used_up_is_refused() -> None:
    with pytest.raises(UsageError, match="nothing is left to train"):
        drawn(order(budget_seconds=600), left=50.0)


def test_what_the_user_named_is_trained_with_what_it_builds_on() -> None:
    agenda = drawn(order(configurations=("3d_cascade_fullres",), folds=("1",)), ALL)
    assert names(agenda) == ["3d_lowres 1", "3d_cascade_fullres 1"]


def test_a_configuration_or_fold_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="3d_lowres is not planned"):
        drawn(order(configurations=("3d_lowres",)))
    with pytest.raises(UsageError, match="there is no fold 5"):
        drawn(order(folds=("5",)))


def test_a_plan_without_3d_trains_what_it_has() -> None:
    assert names(drawn(order(budget_seconds=2000), {"2d": None}, 2)) == ["2d 0", "2d 1"]


def test_too_few_cases_for_folds_train_on_all_of_them() -> None:
    assert names(drawn(order(), {"2d": None}, 0)) == ["2d all"]


@pytest.mark.parametrize("wrong", [{"preset": "fast"}, {"most_members": 0}, {"budget_seconds": 69}])
def test_an_order_that_cannot_be_meant_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        order(**wrong)


def test_an_agenda_survives_the_disk(tmp_path: Path) -> None:
    agenda = drawn(order(budget_seconds=3000, folds=("0",)))
    record.save(agenda, tmp_path / "agenda.json")
    assert record.load(Agenda, tmp_path / "agenda.json") == agenda


def test_what_is_to_be_trained_is_told_a_line_a_configuration() -> None:
    agenda = drawn(order(budget_seconds=3000))
    text = describe(agenda)
    assert text.splitlines()[0].startswith("  3d_fullres: fold 0, 1, 2, ")
    assert "min each, 1.00 s a step" in text
    assert "all of it" not in text  # which the budget says
    lone = dataclasses.replace(agenda, trainings=(Training(configuration="2d", fold="0"),))
    lone = dataclasses.replace(lone, rehearsed={})
    assert describe(lone).splitlines() == [
        "  2d: fold 0, as long as it gains",
        "  how long that takes is not known of 2d",
    ]


@pytest.mark.parametrize(
    ("trainings", "devices", "seconds"),
    [
        (("2d", ("0",)), 4, 3420),  # three of four devices have nothing to do
        (("2d", ("0", "1", "2", "3")), 4, 3420),
        (("2d", ("0", "1", "2", "3", "4")), 4, 1710),  # two rounds
        (("3d_cascade_fullres", ("0", "1", "2")), 3, 1710),  # a round for each stage
        (("3d_cascade_fullres", ("0", "1", "2", "3")), 3, 855),
    ],
)
def test_a_budget_on_several_devices_is_shared_by_the_rounds_that_they_make(
    trainings: tuple[str, tuple[str, ...]], devices: int, seconds: float
) -> None:
    name, folds = trainings
    asked = order(budget_seconds=3600, configurations=(name,), folds=folds)
    agenda = drawn(asked, ALL, devices=devices)
    assert {one.budget_seconds for one in agenda.trainings} == {seconds}


def test_more_devices_train_more_in_the_same_budget() -> None:
    assert len(drawn(order(budget_seconds=3000)).trainings) == 6
    assert len(drawn(order(budget_seconds=3000), devices=2).trainings) == 10


@pytest.mark.parametrize("left", [60.5, 69.0, 159.0])
def test_a_budget_of_which_too_little_is_left_is_refused_with_what_would_do(left: float) -> None:
    asked = order(budget_seconds=600, configurations=("2d",), folds=("0",))
    slow = steps(_2d=10.0)
    with pytest.raises(
        UsageError, match=r"nothing is left to train.*; give more, at least \d+s"
    ) as e:
        drawn(asked, left=left, rehearsed=slow)
    enough = float(str(e.value).rsplit("at least ")[1].removesuffix("s"))
    asked = dataclasses.replace(asked, budget_seconds=enough)
    agenda = drawn(asked, left=enough - (600 - left), rehearsed=slow)
    assert (agenda.trainings[0].budget_seconds or 0) >= 100  # ten steps


def test_no_training_gets_less_than_ten_seconds() -> None:
    quick = steps(_2d=0.001)
    asked = order(budget_seconds=600, configurations=("2d",), folds=("0",))
    with pytest.raises(UsageError, match="nothing is left to train"):
        drawn(asked, left=69.9, rehearsed=quick)
    assert drawn(asked, left=70.0, rehearsed=quick).trainings[0].budget_seconds == 10


def test_without_a_budget_the_longest_that_it_may_take_is_told() -> None:
    agenda = drawn(order(preset="best"), rehearsed=steps(_2d=0.5, _3d_fullres=1.0))
    text = describe(agenda).splitlines()
    assert text == [
        "  2d: fold 0, 1, 2, 3, 4, at most 182.3 h: 5 folds of 1000 epochs, 0.50 s a step, "
        "2.1 GB of memory",
        "  3d_fullres: fold 0, 1, 2, 3, 4, at most 364.6 h: 5 folds of 1000 epochs, 1.00 s a step, "
        "2.1 GB of memory",
        "  all of it: at most 546.9 h of training",
    ]
    assert "all of it on 5 devices: at most 145.8 h" in describe(agenda, 5)
    two = drawn(order(configurations=("3d_cascade_fullres",), folds=("0",)), ALL)
    rehearsed = steps(_3d_lowres=1.0, _3d_cascade_fullres=1.0)
    two = dataclasses.replace(two, rehearsed=rehearsed)
    assert "on 2 devices: at most 145.8 h" in describe(two, 2)  # one waits for the other


def test_what_may_be_trained_has_what_it_builds_on() -> None:
    assert wanted(order(), ALL) == tuple(ALL)
    asked = order(configurations=("3d_cascade_fullres",))
    assert wanted(asked, ALL) == ("3d_lowres", "3d_cascade_fullres")
