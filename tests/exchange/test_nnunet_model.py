"""Checkpoints of nnU-Net's are read, whatever else is in the file, and nothing in them runs."""

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnseg.dataset import DatasetSpec, spec_to_json
from nnseg.errors import DataError, MachineError, MissingError, UsageError
from nnseg.exchange.nnunet_model import changes_nothing, read_checkpoint
from nnseg.exchange.nnunet_weights import to_nnunet
from nnseg.exchange.nnunet_writing import plans_to_json
from nnseg.fingerprint import Fingerprint
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.networks.build import build_network
from nnseg.plan import Plan, make_plan
from nnseg.verbs.pretrained import read_pretrained, start_from

SPEC = DatasetSpec(
    channels=("T1", "FLAIR"),
    labels=Labels(labels={"background": 0, "edema": 1, "core": 2}),
    num_training=20,
    file_ending=".nii.gz",
)


@pytest.fixture(scope="module")
def plan() -> Plan:
    intensity = Intensity(
        mean=3, median=3, std=2, min=0, max=9, percentile_00_5=1, percentile_99_5=8
    )
    measured = Fingerprint(
        spacings=((1.5, 1.0, 0.75),),
        shapes=((12, 14, 18),),
        intensities=(intensity,) * 2,
        median_relative_size=1.0,
    )
    return make_plan(SPEC, measured, dataset="Dataset900_Test")


def content(plan: Plan, configuration: str = "3d_fullres") -> dict[str, Any]:
    """What nnU-Net writes."""
    architecture = plan.configuration(configuration).architecture
    torch.manual_seed(3)
    network = build_network(architecture, len(plan.channels), plan.labels.heads)
    return {
        "network_weights": to_nnunet(network.state_dict(), architecture),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
        "logging": {"ema_fg_dice": [np.float64(0.5)], "lrs": [np.float32(0.1)]},
        "_best_ema": np.float64(0.7),
        "current_epoch": np.int64(1000),
        "init_args": {
            "plans": plans_to_json(plan),
            "configuration": configuration,
            "fold": 3,
            "dataset_json": spec_to_json(SPEC),
            "device": torch.device("cuda"),
        },
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 2) if configuration == "3d_fullres" else (0, 1),
    }


def save(data: Any, folder: Path) -> Path:
    path = folder / "checkpoint_final.pth"
    torch.save(data, path)
    return path


@pytest.mark.parametrize(("configuration", "axes"), [("3d_fullres", (0, 2)), ("2d", (1, 2))])
def test_plan_weights_fold_and_mirrors_are_read(
    plan: Plan, configuration: str, axes: tuple[int, ...], tmp_path: Path
) -> None:
    data = content(plan, configuration)
    found = read_checkpoint(save(data, tmp_path))
    assert (found.configuration_name, found.fold, found.mirror_axes) == (configuration, "3", axes)
    assert found.plan.channels == SPEC.channels
    assert found.plan.labels == SPEC.labels
    given = data["network_weights"]
    assert to_nnunet(
        found.weights, found.plan.configuration(configuration).architecture
    ).keys() == (given.keys())
    network = build_network(plan.configuration(configuration).architecture, 2, 3)
    network.load_state_dict(found.weights)
    first = next(iter(given.values()))
    assert any(
        value.shape == first.shape and torch.equal(value, first) for value in found.weights.values()
    )


class Payload:
    """Pickled, it would make a folder when it is read."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


def test_nothing_in_a_file_runs(plan: Plan, tmp_path: Path) -> None:
    target = tmp_path / "made"
    path = save(content(plan) | {"logging": Payload(target)}, tmp_path)
    with pytest.raises(DataError, match=r"of nnU-Net \(it holds \w+\.mkdir, which is no tensor"):
        read_checkpoint(path)
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network_weights": None}, "no network_weights"),
        ({"init_args": None}, "no init_args"),
        ({"init_args": {"fold": 0}}, "init_args are not those of nnU-Net v2"),
    ],
)
def test_what_is_no_such_checkpoint_is_refused(
    plan: Plan, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    data = content(plan) | change
    data = {key: value for key, value in data.items() if value is not None}
    with pytest.raises(DataError, match=re.escape(words)):
        read_checkpoint(save(data, tmp_path))


@pytest.mark.parametrize(
    "garbage", [b"", b"PK\x03\x04", b"not a checkpoint", b"hello there\n", b"dice 0.9\n"]
)
def test_a_damaged_file_is_refused_by_name(garbage: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(garbage)
    with pytest.raises(DataError, match=r"checkpoint_final\.pth: cannot be read") as raised:
        read_checkpoint(path)
    assert str(raised.value).endswith(
        "(it is damaged, or none); give a .pth file that its training wrote"
    )


def test_weights_of_another_network_are_refused(plan: Plan, tmp_path: Path) -> None:
    data = content(plan)
    data["network_weights"].popitem()
    data["network_weights"]["stranger.weight"] = torch.zeros(1)
    with pytest.raises(DataError, match=r"stranger\.weight|have no"):
        read_checkpoint(save(data, tmp_path))


def test_a_training_can_start_from_it_by_file_or_folder(plan: Plan, tmp_path: Path) -> None:
    path = save(content(plan), tmp_path)
    for source in (path, tmp_path):
        found = read_pretrained(source)
        taken = start_from(found, plan, "3d_fullres", seed=0)
        assert set(taken.kept) == set(found.weights)
    with pytest.raises(MissingError):
        read_pretrained(tmp_path / "nothing.pth")


def with_log(plan: Plan, folder: Path, module: str) -> Path:
    """A checkpoint whose numpy scalars are pickled as a numpy of another time does it."""
    path = save(content(plan), folder)
    here = f"c{np.float64.__reduce__(np.float64(1))[0].__module__}\nscalar\n".encode()
    parts = {}
    with zipfile.ZipFile(path) as packed:
        for info in packed.infolist():
            parts[info.filename] = packed.read(info)
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in parts.items():
            if name.endswith("/data.pkl"):
                assert here in data
                data = data.replace(here, f"c{module}\nscalar\n".encode())
            packed.writestr(name, data)
    return path


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numbers_of_numpy_before_and_after_2_are_read(
    plan: Plan, module: str, tmp_path: Path
) -> None:
    found = read_checkpoint(with_log(plan, tmp_path, module))
    assert (found.epoch, found.validation_dice) == (1000, 0.5)


def test_no_other_function_of_numpys_is_let_through(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds numpy\.f2py\.scalar, which is no tensor"):
        read_checkpoint(with_log(plan, tmp_path, "numpy.f2py"))


@pytest.mark.parametrize(
    "trainer",
    ["nnUNetTrainer", "nnUNetTrainer_250epochs", "nnUNetTrainerDA5", "nnUNetTrainer_1epoch"],
)
def test_trainers_that_change_the_training_only_are_known(trainer: str) -> None:
    assert changes_nothing(trainer)


@pytest.mark.parametrize(
    "trainer", ["nnUNetTrainerBN", "nnUNet_Primus_M_Trainer", "nnUNetTrainerMine", ""]
)
def test_a_trainer_that_may_change_the_network_must_be_vouched_for(
    plan: Plan, trainer: str, tmp_path: Path
) -> None:
    path = save(content(plan) | {"trainer_name": trainer}, tmp_path)
    with pytest.raises(UsageError, match=f"was trained by {trainer}, of which"):
        read_checkpoint(path, trainers=())
    assert read_checkpoint(path, trainers=[trainer]).trainer == trainer
    assert read_checkpoint(path).trainer == trainer


def one_weight(data: dict[str, Any], tensor: Any) -> dict[str, Any]:
    """The content with another tensor in the place of a convolution's."""
    weights = dict(data["network_weights"])
    name = "encoder.stages.0.0.convs.0"
    for place in (name, f"decoder.{name}"):
        for layer in ("conv", "all_modules.0"):
            weights[f"{place}.{layer}.weight"] = tensor(weights[f"{place}.{layer}.weight"])
    return data | {"network_weights": weights}


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (lambda weight: weight[:, :1], "have shape"),
        (lambda weight: torch.full_like(weight, torch.nan), "hold NaN or infinity"),
        (lambda weight: weight.to(torch.int64), "no ordinary floating-point numbers"),
        (lambda weight: weight.to_sparse(), "no ordinary floating-point numbers"),
        (lambda weight: torch.zeros(1).expand(2**30), "larger than the file"),
        (lambda weight: 3, "must be tensors by name"),
    ],
)
def test_weights_that_cannot_be_of_the_network_are_refused(
    plan: Plan, tensor: Any, words: str, tmp_path: Path
) -> None:
    path = save(one_weight(content(plan), tensor), tmp_path)
    with pytest.raises(DataError, match=rf"checkpoint_final\.pth: .*{words}"):
        read_checkpoint(path)


def test_weights_in_half_precision_become_float32(plan: Plan, tmp_path: Path) -> None:
    data = content(plan)
    halves = {name: tensor.half() for name, tensor in data["network_weights"].items()}
    found = read_checkpoint(save(data | {"network_weights": halves}, tmp_path))
    assert {tensor.dtype for tensor in found.weights.values()} == {torch.float32}


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, "meta"])
def test_weights_that_have_no_values_here_are_refused(
    plan: Plan, kind: Any, tmp_path: Path
) -> None:
    path = save(one_weight(content(plan), lambda weight: weight.to(kind)), tmp_path)
    with pytest.raises(DataError, match="no ordinary floating-point numbers"):
        read_checkpoint(path)


@pytest.mark.parametrize("axes", [(3,), (-1,), "012", (0.0,)])
def test_mirrors_that_are_no_axes_of_a_patch_are_refused(
    plan: Plan, axes: Any, tmp_path: Path
) -> None:
    path = save(content(plan) | {"inference_allowed_mirroring_axes": axes}, tmp_path)
    with pytest.raises(DataError, match="must be axes of a patch, 0 to 2"):
        read_checkpoint(path)


def test_mirrors_may_be_numbers_of_numpys(plan: Plan, tmp_path: Path) -> None:
    change = {"inference_allowed_mirroring_axes": (np.int64(0), np.int64(2))}
    assert read_checkpoint(save(content(plan) | change, tmp_path)).mirror_axes == (0, 2)


def with_plans(plan: Plan, **keys: Any) -> dict[str, Any]:
    """The content with more keys in its plans."""
    data = content(plan)
    data["init_args"] |= {"plans": data["init_args"]["plans"] | keys}
    return data


def nested(depth: int, width: int) -> list[Any]:
    """Lists in lists, each `width` times the one within it, which a pickle holds once."""
    value: list[Any] = ["x" * 10]
    for _ in range(depth):
        value = [value] * width
    return value


@pytest.mark.parametrize("key", ["plans", "dataset_json", "configuration", "fold"])
def test_a_small_file_that_unfolds_to_a_large_one_is_refused_at_once(
    plan: Plan, key: str, tmp_path: Path
) -> None:
    data = content(plan)
    data["init_args"][key] = {"configurations": nested(40, 2)}
    path = save(data, tmp_path)
    with pytest.raises(DataError, match=f"{key}: holds more than 1000000 values"):
        read_checkpoint(path)
    data["init_args"][key] = ["x" * 10**5] * 2000
    with pytest.raises(DataError, match=f"{key}: holds more than 1000000 values"):
        read_checkpoint(save(data, tmp_path))
    change = {"inference_allowed_mirroring_axes": nested(40, 2)}
    with pytest.raises(DataError, match="mirroring_axes: holds more than"):
        read_checkpoint(save(content(plan) | change, tmp_path))


def test_plans_hold_what_json_can_hold(plan: Plan, tmp_path: Path) -> None:
    ring: list[Any] = []
    ring.append(ring)
    for strange, words in (
        (ring, "deeper than 64 levels, or holds itself"),
        (nested(70, 1), "deeper than 64 levels, or holds itself"),
        (torch.zeros(2), "holds a Tensor"),
        (10**400, "holds an integer of 1329 bits"),
        ({1: 2}, "has a key that is a int"),
    ):
        with pytest.raises(DataError, match=rf"checkpoint_final\.pth: plans: .*{words}"):
            read_checkpoint(save(with_plans(plan, x=strange), tmp_path))
    deep = with_plans(plan, x=nested(60, 1))
    assert read_checkpoint(save(deep, tmp_path)).configuration_name == "3d_fullres"


def test_an_epoch_beyond_all_numbers_is_refused(plan: Plan, tmp_path: Path) -> None:
    path = save(content(plan) | {"current_epoch": 10**400}, tmp_path)
    with pytest.raises(DataError, match="trainer_name or current_epoch"):
        read_checkpoint(path)


def test_what_nnunet_needs_of_dataset_json_is_enough(plan: Plan, tmp_path: Path) -> None:
    data = content(plan)
    spec = data["init_args"]["dataset_json"]
    del spec["numTraining"]
    spec["labels"] = {"background": "0", "edema": ["1", "2"], "core": "2"}
    spec["regions_class_order"] = [1, 2]
    data["init_args"]["dataset_json"] = spec
    with pytest.raises(DataError, match="have shape"):  # of a network with one output more
        read_checkpoint(save(data, tmp_path))
    spec["labels"], spec["regions_class_order"] = {"background": "0", "a": "1", "b": "2"}, None
    assert list(read_checkpoint(save(data, tmp_path)).plan.labels.labels.values()) == [0, 1, 2]
    spec["labels"]["b"] = "two"
    with pytest.raises(DataError, match="labels"):
        read_checkpoint(save(data, tmp_path))


class Pickled:
    """Pickled, it calls a function of numpy's on what it was given."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("kind", ["V536870912", "O", "M8[s]", "S9", "c16", "f8,f8"])
def test_only_plain_numbers_of_numpys_are_made(plan: Plan, kind: str, tmp_path: Path) -> None:
    path = save(content(plan) | {"logging": Pickled(np.dtype, kind, False, True)}, tmp_path)
    with pytest.raises(DataError, match=r"it holds numpy\.dtype\('.*, which is no tensor"):
        read_checkpoint(path)


def test_an_unfolding_kind_of_number_is_refused_at_once(plan: Plan, tmp_path: Path) -> None:
    made = Pickled(np.dtype, nested(40, 2))
    with pytest.raises(DataError, match=r"it holds numpy\.dtype\(list\), which is no tensor"):
        read_checkpoint(save(content(plan) | {"logging": made}, tmp_path))


def test_no_torch_is_asked_for_whose_reader_of_weights_runs_code() -> None:
    """CVE-2025-32434 is mended in 2.6.0, CVE-2026-24747 in 2.10.0."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    found = re.search(r'"torch>=(\d+)\.(\d+)', text)
    assert found is not None
    assert tuple(map(int, found.groups())) >= (2, 10)


@pytest.mark.parametrize("kind", [">f8", "<f4", "f2"])
def test_numbers_come_back_whatever_their_bytes(plan: Plan, kind: str, tmp_path: Path) -> None:
    scalar = np.float64(1).__reduce__()[0]
    number = np.array([0.25], kind)
    made = Pickled(scalar, np.dtype(kind), number.tobytes())
    path = save(content(plan) | {"logging": {"ema_fg_dice": [made]}}, tmp_path)
    assert read_checkpoint(path).validation_dice == 0.25


def test_a_lack_of_memory_is_not_called_damage(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(content(plan), tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MachineError, match=r"final\.pth: takes more memory than there is"):
        read_checkpoint(path)


def test_a_checkpoint_that_unpacks_to_more_than_its_size_is_refused(
    plan: Plan, tmp_path: Path
) -> None:
    path = save(content(plan), tmp_path)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("archive/data/999", bytes(2**22))
    with pytest.raises(DataError, match="unpacks to more than its size"):
        read_checkpoint(path)


def test_reading_leaves_the_random_numbers_of_others_alone(plan: Plan, tmp_path: Path) -> None:
    path = save(content(plan), tmp_path)
    before = torch.random.get_rng_state()
    read_checkpoint(path)
    assert torch.equal(torch.random.get_rng_state(), before)
