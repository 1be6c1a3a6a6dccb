from typing import Any

import pytest

from nnseg import record
from nnseg.errors import DataError, UsageError
from nnseg.learning.recipe import PRESETS, TrainSettings, pays_to_compile
from nnseg.losses.build import LOSSES, dice_ce

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"epochs": INF}, "epochs is inf; it must be at least 1"),
        ({"iterations": -1}, "iterations is -1; it must be at least 1"),
        ({"validation_iterations": 0}, "validation_iterations is 0"),
        ({"lr": 0.0}, "lr is 0.0; it must be positive and at most 1e[+]30"),
        ({"lr": NAN}, "lr is nan"),
        ({"lr": INF}, "lr is inf"),
        ({"lr": 1.1e30}, "lr is 1.1e[+]30"),
        ({"gradient_clip": 0.0}, "gradient_clip is 0.0; it must be positive and finite"),
        ({"gradient_clip": NAN}, "gradient_clip is nan"),
        ({"gradient_clip": INF}, "gradient_clip is inf"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"accumulate": 0}, "accumulate is 0; it must be at least 1"),
        ({"dice_weight": 1.1}, "dice_weight is 1.1; it must be from 0 to 1"),
        ({"dice_weight": NAN}, "dice_weight is nan"),
        ({"loss": "focal", "dice_weight": 0.2}, "takes no dice_weight; .* one of dice_ce, dice_t"),
        ({"focal_gamma": 2.0}, "loss 'dice_ce' takes no gamma; .* one of focal, focal_tversky"),
        (
            {"loss": "focal", "focal_gamma": 0.0},
            "focal_gamma is 0.0; it must be from 1e-06 to 1e[+]06",
        ),
        ({"loss": "focal_tversky", "focal_gamma": 1e300}, "focal_gamma is 1e[+]300"),
        ({"loss": "tversky", "tversky_alpha": -0.1}, "tversky_alpha is -0.1; it must be from 0"),
        ({"loss": "tversky", "tversky_beta": INF}, "tversky_beta is inf"),
        (
            {"loss": "tversky", "tversky_alpha": 0.0, "tversky_beta": 0.0},
            "tversky_alpha and tversky_beta are 0; one must be above 0",
        ),
        ({"loss": "dice", "class_weights": "balanced"}, "counts small classes as much as large"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"momentum": -0.1}, "momentum is -0.1"),
        ({"momentum": NAN}, "momentum is nan"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be from 0 to 1e[+]06"),
        ({"weight_decay": NAN}, "weight_decay is nan"),
        ({"weight_decay": INF}, "weight_decay is inf"),
        ({"weight_decay": 1e300}, "weight_decay is 1e[+]300"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, f"seed is {2**63}; it must be at most {2**63 - 1}"),
        ({"budget_seconds": 9.0}, "budget of 9.0 s is too short or has no end; give at least 10 s"),
        ({"budget_seconds": NAN}, "budget of nan s"),
        ({"budget_seconds": INF}, "budget of inf s"),
        ({"loss": "hinge"}, "no loss is named 'hinge'; known: ce, dice"),
        ({"augmentation": "wild"}, "augmentation is 'wild'; it must be full or mild"),
        ({"schedule": "step"}, "no schedule is named 'step'; known: cosine, cosine_restarts, ex"),
        ({"optimizer": "lion"}, "no optimizer is named 'lion'; known: adam, adamw, sgd"),
        ({"ema": 1.0}, "ema is 1.0; it must be at least 0 and below 1"),
        ({"patience": 0.0}, "patience is 0.0; it must be above 0 and at most 1"),
        ({"patience": 1.1}, "patience is 1.1"),
        ({"ema": NAN}, "ema is nan"),
        ({"patience": NAN}, "patience is nan"),
        ({"class_weights": (1.0, -1.0)}, "balanced, or numbers from 0 to 1e[+]06, one of them at"),
        ({"class_weights": (0.0, 0.0)}, "one of them at least 1e-06"),
        ({"class_weights": (1e-300, 0.0)}, "one of them at least 1e-06"),  # 0 in float32
        ({"class_weights": (1.0, INF)}, r"class_weights is \(1.0, inf\); it must be"),
        ({"class_weights": (NAN, 1.0)}, "class_weights is"),
        ({"class_weights": (1.0, 1e300)}, "class_weights is"),
        ({"class_weights": ()}, "class_weights is"),
        ({"class_weights": [1.0, INF]}, "class_weights is"),
        ({"class_weights": "even"}, "class_weights is even; it must be balanced, or numbers"),
        ({"elastic": 0.0}, "elastic is 0.0; it must be above 0 and at most 12.8 voxels"),
        ({"elastic": 12.9}, "or patches would fold"),
        ({"elastic": NAN}, "elastic is nan"),
        ({"mixup": 0.0}, "mixup is 0.0; it must be from 1e-06 to 1e[+]06"),
        ({"mixup": INF}, "mixup is inf"),
        ({"mixup": NAN}, "mixup is nan"),
        ({"mixup": 1e300}, "mixup is 1e[+]300"),
        ({"mixup": 1e-300}, "mixup is 1e-300"),
        ({"swap_labels": (("left", "right"), ("left", "top"))}, "has 'left' twice"),
        ({"swap_labels": (("left", "left"),)}, "has 'left' twice"),
    ],
)
def test_a_setting_that_cannot_be_meant_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        TrainSettings(**changes)


def test_the_defaults_are_the_peers_recipe() -> None:
    settings = TrainSettings()
    assert (settings.epochs, settings.iterations, settings.validation_iterations) == (1000, 250, 50)
    assert settings.weight_decay == 3e-5
    assert (settings.gradient_clip, settings.schedule, settings.loss) == (12, "poly", "dice_ce")
    assert (settings.accumulate, settings.make_loss(None)) == (1, dice_ce)


def test_options_of_a_loss_reach_it() -> None:
    settings = TrainSettings(
        loss="focal_tversky", tversky_alpha=0.1, tversky_beta=0.9, focal_gamma=2.0
    )
    loss: Any = settings.make_loss((1.0, 2.0))
    assert loss.func is LOSSES["focal_tversky"]
    assert loss.keywords == {"alpha": 0.1, "beta": 0.9, "gamma": 2.0, "weights": (1.0, 2.0)}
    balanced = TrainSettings(class_weights="balanced", dice_weight=0.2)
    loss = balanced.make_loss((3.0, 4.0))
    assert loss.keywords == {"dice_weight": 0.2, "entropy_weights": (3.0, 4.0)}


def test_settings_of_before_there_were_these_options_are_read_as_they_were_meant() -> None:
    fields = record.to_json(TrainSettings(seed=4, class_weights=(1.0, 2.0)))
    later = ("accumulate", "dice_weight", "tversky_alpha", "tversky_beta", "focal_gamma")
    assert fields["class_weights"] == [1.0, 2.0]
    old = {name: value for name, value in fields.items() if name not in later}
    assert record.parse(TrainSettings, old, "old") == TrainSettings(
        seed=4, class_weights=(1.0, 2.0)
    )
    new = TrainSettings(class_weights="balanced", accumulate=2, dice_weight=0.2)
    assert record.parse(TrainSettings, record.to_json(new), "new") == new
    with pytest.raises(DataError, match="class_weights"):
        record.parse(TrainSettings, fields | {"class_weights": "even"}, "wrong")


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


def test_the_presets_are_nnunets_recipe_the_datas_own_and_ten_minutes() -> None:
    assert sorted(PRESETS) == ["best", "default", "quick"]
    assert PRESETS["best"] == TrainSettings()
    assert (PRESETS["default"].epochs, PRESETS["default"].patience) == (None, 0.25)
    assert PRESETS["quick"].budget_seconds == 600
