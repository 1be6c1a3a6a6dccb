import dataclasses
import math
from typing import Any

import pytest

from nnseg.errors import UsageError
from nnseg.learning.course import (
    Course,
    Turn,
    budget_batch,
    cool_down,
    extend,
    fit_batch,
    fit_budget,
    learning_rate,
    plan_course,
    plan_steps,
    refit_budget,
)
from nnseg.learning.recipe import TrainSettings
from nnseg.model.schedule import SCHEDULES


def test_the_pace_is_the_peers_where_nothing_is_chosen() -> None:
    course = plan_course(TrainSettings())
    assert (course.lr, course.momentum, course.augmentation) == (0.01, 0.99, "full")


@pytest.mark.parametrize(
    ("changes", "step_seconds", "expected"),
    [
        ({"budget_seconds": 5000.0}, 1.001, (0.1, 0.9, "full")),
        ({"budget_seconds": 1500.0}, 1.001, (0.1, 0.9, "mild")),
        ({"budget_seconds": 1500.0}, 1.0, (0.1, 0.9, "full")),
        ({"budget_seconds": 5000.0}, 1.0, (0.01, 0.99, "full")),
        ({"budget_seconds": 5000.0}, None, (0.01, 0.99, "full")),  # nothing is measured yet
        ({}, 1e9, (0.01, 0.99, "full")),  # only a budget chooses for itself
        ({"budget_seconds": 60.0, "lr": 0.02}, 1.0, (0.02, 0.9, "mild")),
        ({"budget_seconds": 60.0, "momentum": 0.5}, 1.0, (0.1, 0.5, "mild")),
        ({"budget_seconds": 60.0, "augmentation": "full"}, 1.0, (0.1, 0.9, "full")),
        ({"augmentation": "mild"}, None, (0.01, 0.99, "mild")),
    ],
)
def test_a_short_budget_learns_in_its_own_way_unless_the_user_chose(
    changes: dict[str, Any], step_seconds: float | None, expected: tuple[float, float, str]
) -> None:
    course = plan_course(TrainSettings(**changes), step_seconds)
    assert (course.lr, course.momentum, course.augmentation) == expected


@pytest.mark.parametrize(
    ("budget", "step_passes", "expected"),
    [
        (4000.0, 0.0099, "mild"),
        (4000.0, 0.0101, "full"),  # it sees its data often enough to learn them by heart
        (1600.0, 0.024, "mild"),
        (1600.0, 0.026, "full"),
        (1400.0, 9.0, "mild"),  # too short to learn anything by heart
        (5000.0, 0.001, "full"),  # no short training
    ],
)
def test_the_augmentation_is_mild_where_data_are_seen_a_few_times_only(
    budget: float, step_passes: float, expected: str
) -> None:
    settings = TrainSettings(budget_seconds=budget)
    assert plan_course(settings, 1.0, step_passes=step_passes).augmentation == expected


# ---------------------------------------------------------------- budgets


@pytest.mark.parametrize(
    ("settings", "batch_size", "expected"),
    [
        ({"budget_seconds": 1200.0}, 300, 120),
        ({"budget_seconds": 100.0}, 300, 12),
        ({"budget_seconds": 3000.0}, 300, None),  # it holds enough steps as it is
        ({"budget_seconds": 100.0}, 64, 6),
        ({"budget_seconds": 2000.0}, 9, None),  # as many steps as its batch is worth
        ({"budget_seconds": 100.0, "batch_size": 300}, 300, None),  # the user chose it
        ({"budget_seconds": 100.0, "accumulate": 2}, 300, None),  # so here: large ones
        ({}, 300, None),
    ],
)
def test_a_budget_of_few_steps_makes_large_batches_smaller(
    settings: dict[str, Any], batch_size: int, expected: int | None
) -> None:
    assert budget_batch(TrainSettings(**settings), 1.0, batch_size) == expected


@pytest.mark.parametrize(("ranks", "batch"), [(1, 2), (2, 2), (3, 3), (9, None)])
def test_a_budget_leaves_each_process_a_patch_of_the_batch(ranks: int, batch: int | None) -> None:
    settings = TrainSettings(budget_seconds=60.0)
    assert budget_batch(settings, 50.0, 9, ranks) == batch
    assert fit_batch(300, 10, 128) == 128


def test_without_a_budget_the_course_is_that_of_the_settings() -> None:
    course = plan_course(TrainSettings(epochs=3, iterations=4, validation_iterations=5))
    assert (course.epochs, course.iterations, course.validation_iterations) == (3, 4, 5)
    assert (course.steps, course.lr, course.momentum) == (12, 0.01, 0.99)


def fit(settings: TrainSettings, step_seconds: float, left: float) -> Course:
    return fit_budget(plan_course(settings, step_seconds), settings, step_seconds, left)


@pytest.mark.parametrize(
    ("budget", "spent", "step", "epochs", "iterations", "validation"),
    [
        # 1000 / (0.25 * 1.05) = 3809 steps: 40 epochs of 95
        (1060, 60, 0.25, 40, 95, 13),
        # 20 000 / 1.05 = 19047: epochs are never longer than the settings say
        (20_000, 0, 1.0, 76, 250, 35),
        # 100 / 1.05 = 95: never shorter than 10 steps, but for the last crumbs
        (100, 0, 1.0, 9, 10, 2),
        (10, 0, 2.0, 1, 4, 2),
    ],
)
def test_a_budget_is_cut_into_epochs_that_fit_it(
    budget: float, spent: float, step: float, epochs: int, iterations: int, validation: int
) -> None:
    course = fit(TrainSettings(budget_seconds=budget), step, budget - spent)
    assert (course.epochs, course.iterations) == (epochs, iterations)
    assert course.validation_iterations == validation
    assert course.steps * step * 1.05 <= max(budget - spent, step * 1.05)


@pytest.mark.parametrize("spent", [9.0, 30.0])
def test_a_budget_that_leaves_no_step_is_refused_with_what_would_do(spent: float) -> None:
    settings = TrainSettings(budget_seconds=10.0)
    with pytest.raises(UsageError, match=f"give at least {spent + 20:.0f}s"):
        fit(settings, 2.0, 10.0 - spent)


def test_a_budget_gives_no_more_epochs_and_iterations_than_asked_for() -> None:
    course = fit(TrainSettings(epochs=3, iterations=7, budget_seconds=1000), 0.1, 1000.0)
    assert (course.epochs, course.iterations) == (3, 7)


@pytest.mark.parametrize(
    ("seconds", "left", "epochs"),
    [
        (10.0, 150.0, 5 + 15),
        (10.0, 119.0, 5 + 11),
        (10.0, -5.0, 5),  # nothing is left: this epoch was the last one
        (1.0, 195.0, 30),  # never more than asked for
    ],
)
def test_epochs_are_planned_anew_by_the_pace_of_the_last_ones(
    seconds: float, left: float, epochs: int
) -> None:
    settings = TrainSettings(epochs=30, budget_seconds=200)
    course = fit(settings, 0.5, 200.0)
    again = refit_budget(course, settings, 5, seconds, left)
    assert again == dataclasses.replace(course, epochs=epochs)


def test_a_budget_that_goes_on_counts_the_share_of_the_epoch_under_way() -> None:
    settings = TrainSettings(epochs=30, budget_seconds=200)
    course = fit(settings, 0.5, 200.0)
    assert refit_budget(course, settings, 5.5, 10.0, 4.9).epochs == 5  # it cannot be finished
    assert refit_budget(course, settings, 5.5, 10.0, 5.1).epochs == 6


@pytest.mark.parametrize(("done", "left"), [(0.1, -5.0), (0.9, 0.0), (0.5, 4.0), (0.5, 5.0)])
def test_a_budget_that_is_used_up_in_the_first_epoch_still_has_that_one(
    done: float, left: float
) -> None:
    settings = TrainSettings(epochs=30, budget_seconds=200)
    assert refit_budget(fit(settings, 0.5, 200.0), settings, done, 10.0, left).epochs == 1


def test_a_cool_down_is_cut_by_a_budget_and_never_stretched() -> None:
    settings = TrainSettings(budget_seconds=200)
    course = dataclasses.replace(
        fit(settings, 0.5, 200.0), epochs=12, turn=Turn(epoch=10, lr=0.01, reason="plateau")
    )
    assert refit_budget(course, settings, 10, 1.0, 100.0) == course
    assert refit_budget(course, settings, 10, 1.0, 1.5).epochs == 11


# ---------------------------------------------------------------- what data are worth


def test_open_epochs_are_as_many_as_the_data_are_worth() -> None:
    settings = TrainSettings(epochs=None, iterations=100)
    assert plan_course(settings, steps=12_501).epochs == 126
    assert (settings.most_epochs, settings.steps) == (2500, 250_000)
    assert plan_course(settings, steps=10**9).epochs == 2500
    assert plan_course(TrainSettings(epochs=7), steps=12_501).epochs == 7


def test_a_budget_does_not_ask_what_the_data_are_worth() -> None:
    settings = TrainSettings(epochs=None, budget_seconds=3600.0)
    assert plan_course(settings, 1.0, 12_500).epochs == 1000


@pytest.mark.parametrize(
    ("shapes", "batch", "steps"),
    [
        # 600 passes over 100 cases of 2 * 3 * 1.5 patches, 9 in a batch
        ([(8, 15, 9)] * 100, 9, 60_000),
        ([(8, 15, 9)] * 100, 18, 30_000),
        ([(1, 2, 3)] * 400, 8, 30_000),  # a case is worth a patch at least
        ([(8, 15, 9)], 2, 12_500),
        ([(80, 150, 90)] * 100, 2, 250_000),
    ],
)
def test_data_are_worth_six_hundred_passes_within_bounds(
    shapes: list[tuple[int, int, int]], batch: int, steps: int
) -> None:
    assert plan_steps(shapes, (4, 5, 6), batch) == steps


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_the_adams_have_a_pace_of_their_own(name: str) -> None:
    adamw = TrainSettings(optimizer=name)
    assert (plan_course(adamw).lr, plan_course(adamw).momentum) == (0.001, 0.9)
    short = plan_course(dataclasses.replace(adamw, budget_seconds=60.0), 1.0)
    assert (short.lr, short.momentum) == (0.002, 0.9)


# ---------------------------------------------------------------- the end of a course moves


def rates(course: Course, start: int = 0, schedule: str = "poly") -> list[float]:
    return [learning_rate(course, schedule, epoch) for epoch in range(start, course.epochs)]


def test_the_rate_follows_the_schedule_to_its_end() -> None:
    course = plan_course(TrainSettings(epochs=4, lr=0.02))
    assert rates(course) == pytest.approx([0.02 * (1 - e / 4) ** 0.9 for e in range(4)])


PATIENT = TrainSettings(epochs=40, patience=0.1)  # four epochs


@pytest.mark.parametrize(
    ("averages", "ends"),
    [
        ([0.5, 0.5, 0.5, 0.5], False),  # the first of four is the gain itself
        ([0.5, 0.5, 0.5, 0.5, 0.5], True),
        ([0.5, 0.5, 0.5, 0.5, 0.501], False),  # a gain
        ([0.5, 0.5, 0.5, 0.5, 0.5009], True),  # none
        ([0.5, 0.5004, 0.5008, 0.5012, 0.5012], False),  # slow, but a gain since the first
        ([0.5, 0.4, 0.45, 0.48, 0.49], True),  # below what it was
        ([0.5, None, None, None, None], True),
        ([None] * 9, False),  # there was nothing to be scored
        ([0.0] * 9, False),  # it has not begun to learn
    ],
)
def test_a_training_cools_down_when_it_gains_nothing(
    averages: list[float | None], ends: bool
) -> None:
    course = plan_course(PATIENT)
    turned = cool_down(course, PATIENT, averages)
    assert (turned != course) is ends
    done = len(averages)
    if ends:  # a fifth of what is done, rounded up
        assert turned.epochs == done + 1
        assert turned.turn == Turn(
            epoch=done, lr=learning_rate(course, "poly", done), reason="plateau"
        )


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
def test_the_rate_falls_on_from_where_it_is_to_nothing_in_a_cool_down(schedule: str) -> None:
    settings = TrainSettings(epochs=100, patience=0.2, schedule=schedule)
    course = plan_course(settings)
    turned = cool_down(course, settings, [0.5] * 21)
    assert turned.epochs == 21 + 5
    after = rates(turned, 21, schedule)
    assert after[0] == learning_rate(course, schedule, 21)
    assert after == sorted(after, reverse=True)
    assert after[-1] < 0.3 * after[0]


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("done", [3, 10])
def test_a_later_end_stretches_each_schedule_exactly_as_if_it_had_been_planned(
    schedule: str, done: int
) -> None:
    settings = TrainSettings(epochs=10, schedule=schedule)
    longer = extend(plan_course(settings), settings, done, 30)
    planned = plan_course(dataclasses.replace(settings, epochs=30))
    assert longer.extended
    assert rates(longer, done, schedule) == rates(planned, done, schedule)


def test_restarts_cool_down_from_where_they_are_without_another_restart() -> None:
    settings = TrainSettings(epochs=150, patience=0.1, schedule="cosine_restarts")
    course = plan_course(settings)
    turned = cool_down(course, settings, [0.5] * 40)  # 10 epochs after the third restart
    after = rates(turned, 40, "cosine_restarts")
    assert after[0] == pytest.approx(0.01 * 0.5 * (1 + math.cos(math.pi * 10 / 40)))
    assert after == sorted(after, reverse=True)


def test_a_course_turns_once_and_its_end_never_moves_away() -> None:
    turned = cool_down(plan_course(PATIENT), PATIENT, [0.5] * 5)
    assert cool_down(turned, PATIENT, [0.5] * 6) == turned
    near_its_end = plan_course(PATIENT)
    assert cool_down(near_its_end, PATIENT, [0.5] * 38) == near_its_end


def test_without_patience_no_training_ends_early() -> None:
    course = plan_course(TrainSettings())
    assert cool_down(course, TrainSettings(), [0.5] * 999) == course


def test_an_extended_cosine_goes_on_where_a_longer_one_would_be() -> None:
    settings = TrainSettings(epochs=10, schedule="cosine")
    after = rates(extend(plan_course(settings), settings, 10, 30), 10, "cosine")
    assert after[0] == pytest.approx(0.01 * 0.75)  # cosine of a third of the way
    assert after == sorted(after, reverse=True)
    assert after[-1] < 0.01 * after[0]


def test_an_extension_undoes_a_cool_down_and_is_left_alone_by_plateaus() -> None:
    turned = cool_down(plan_course(PATIENT), PATIENT, [0.5] * 5)
    longer = extend(turned, PATIENT, 6, 40)
    assert rates(longer, 6) == pytest.approx(rates(plan_course(PATIENT), 6))
    assert cool_down(longer, PATIENT, [0.5] * 9) == longer


def test_the_same_extension_again_changes_nothing() -> None:
    settings = TrainSettings(epochs=10)
    longer = extend(plan_course(settings), settings, 10, 25)
    for done in (10, 17, 25):
        assert extend(longer, settings, done, 25) == longer
    assert extend(plan_course(settings), settings, 4, 10) == plan_course(settings)


@pytest.mark.parametrize(("done", "epochs"), [(3, 9), (10, 10), (10, 4)])
def test_an_end_that_is_not_later_is_refused(done: int, epochs: int) -> None:
    settings = TrainSettings(epochs=10)
    with pytest.raises(UsageError, match=f"ends after epoch 10; --extend-to {epochs} must be la"):
        extend(plan_course(settings), settings, done, epochs)
