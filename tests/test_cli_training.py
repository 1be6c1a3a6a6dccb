"""The options of `nnseg train` and the settings that they become."""

import dataclasses

import pytest

from nnseg.cli.main import build_parser
from nnseg.cli.training import CHOSEN, _settings
from nnseg.errors import UsageError
from nnseg.learning.recipe import TrainSettings

OTHERWISE = {"gradient_clip", "swap_labels", "pretrained", "budget_seconds"}  # not by their names


def settings_of(*options: str) -> tuple[TrainSettings, frozenset[str]]:
    return _settings(build_parser().parse_args(["train", "4", "2d", "0", *options]))


def test_every_setting_has_an_option() -> None:
    assert {field.name for field in dataclasses.fields(TrainSettings)} == {*CHOSEN} | OTHERWISE


def test_options_of_the_loss_and_the_step_become_settings_that_were_given() -> None:
    options = "--loss focal_tversky --tversky-alpha 0.2 --tversky-beta 0.8 --focal-gamma 2"
    settings, given = settings_of(*options.split(), "--accumulate", "3", "--optimizer", "adam")
    assert (settings.tversky_alpha, settings.tversky_beta, settings.focal_gamma) == (0.2, 0.8, 2)
    assert (settings.loss, settings.accumulate, settings.optimizer) == ("focal_tversky", 3, "adam")
    names = {"loss", "accumulate", "optimizer", "tversky_alpha", "tversky_beta", "focal_gamma"}
    assert given == names


@pytest.mark.parametrize(
    ("text", "weights"), [("1,2.5", (1.0, 2.5)), ("3", (3.0,)), ("balanced", "balanced")]
)
def test_class_weights_are_numbers_or_balanced(text: str, weights: object) -> None:
    settings, given = settings_of("--class-weights", text, "--dice-weight", "0")
    assert (settings.class_weights, settings.dice_weight) == (weights, 0)
    assert given == {"class_weights", "dice_weight"}


def test_class_weights_that_are_neither_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings_of("--class-weights", "even")
    assert "invalid list of numbers, or balanced value: 'even'" in capsys.readouterr().err


def test_an_option_that_the_loss_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match="the loss 'dice_ce' takes no gamma; leave it out"):
        settings_of("--focal-gamma", "3")
