import dataclasses
from typing import Any

import pytest

from nnseg.errors import UsageError
from nnseg.recipe import (
    Course,
    TrainSettings,
    changed_settings,
    fit_budget,
    pays_to_compile,
    plan_course,
    refit_budget,
)

# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 0}, "epochs is 0; it must be positive"),
        ({"iterations": -1}, "iterations is -1; it must be positive"),
        ({"validation_iterations": 0}, "validation_iterations is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"gradient_clip": 0.0}, "gradient_clip is 0.0"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"seed": -1}, "seed is -1"),
        ({"budget_seconds": 9.0}, "budget of 9.0 s is too short"),
        ({"loss": "hinge"}, "no loss is named 'hinge'; known: ce, dice, dice_ce"),
        ({"augmentation": "wild"}, "augmentation is 'wild'; it must be full or mild"),
        ({"schedule": "step"}, "no schedule is named 'step'; known: cosine, poly"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        TrainSettings(**changes)


def test_the_defaults_are_the_peers_recipe() -> None:
    settings = TrainSettings()
    assert (settings.epochs, settings.iterations, settings.validation_iterations) == (1000, 250, 50)
    course = plan_course(settings)
    assert (course.lr, course.momentum, course.augmentation) == (0.01, 0.99, "full")
    assert settings.weight_decay == 3e-5
    assert (settings.gradient_clip, settings.schedule, settings.loss) == (12, "poly", "dice_ce")


@pytest.mark.parametrize(
    ("changes", "step_seconds", "expected"),
    [
        ({"budget_seconds": 5000.0}, 1.001, (0.1, 0.9, "mild")),
        ({"budget_seconds": 5000.0}, 1.0, (0.01, 0.99, "full")),
        ({"budget_seconds": 5000.0}, None, (0.01, 0.99, "full")),  # nothing is measured yet
        ({}, 1e9, (0.01, 0.99, "full")),  # only a budget chooses for itself
        ({"budget_seconds": 60.0, "lr": 0.02}, 1.0, (0.02, 0.99, "mild")),
        ({"budget_seconds": 60.0, "momentum": 0.5}, 1.0, (0.01, 0.5, "mild")),
        ({"budget_seconds": 60.0, "augmentation": "full"}, 1.0, (0.1, 0.9, "full")),
        ({"augmentation": "mild"}, None, (0.01, 0.99, "mild")),
    ],
)
def test_a_short_budget_learns_in_its_own_way_unless_the_user_chose(
    changes: dict[str, Any], step_seconds: float | None, expected: tuple[float, float, str]
) -> None:
    course = plan_course(TrainSettings(**changes), step_seconds)
    assert (course.lr, course.momentum, course.augmentation) == expected


def test_settings_that_differ_are_named_with_both_values() -> None:
    old = TrainSettings(epochs=2)
    new = dataclasses.replace(old, lr=0.02, epochs=9)
    assert changed_settings(old, new) == ["epochs is now 9, was 2", "lr is now 0.02, was None"]
    assert changed_settings(old, old) == []


@pytest.mark.parametrize(
    ("changes", "wish", "pays"),
    [
        ({}, None, True),
        ({"epochs": 2, "iterations": 10}, None, False),  # too few steps
        ({"budget_seconds": 599.0}, None, False),
        ({"budget_seconds": 600.0}, None, True),
        ({}, False, False),
        ({"epochs": 1, "iterations": 1}, True, True),  # the user knows
    ],
)
def test_long_trainings_are_compiled_and_the_user_has_the_last_word(
    changes: dict[str, Any], wish: bool | None, pays: bool
) -> None:
    assert pays_to_compile(TrainSettings(**changes), wish) is pays


# ---------------------------------------------------------------- budgets


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
