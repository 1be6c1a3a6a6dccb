import dataclasses
import hashlib
import json
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnseg import checkpoint, record
from nnseg.checkpoint import (
    Checkpoint,
    forget_weights,
    load_model,
    load_weights,
    pack,
    save_model,
    save_weights,
)
from nnseg.dataset import DatasetSpec
from nnseg.errors import DataError, MachineError, MissingError, NnsegError, PlanError
from nnseg.fingerprint import Fingerprint
from nnseg.image.intensity import Intensity
from nnseg.labels import Labels
from nnseg.plan import Plan, make_plan

FILE = "checkpoint_final"


def small_plan() -> Plan:
    intensity = Intensity(
        mean=1.0, median=1.5, std=2.0, min=0.0, max=9.0, percentile_00_5=0.5, percentile_99_5=8.0
    )
    measured = Fingerprint(
        spacings=((2.0, 1.0, 1.5),),
        shapes=((16, 32, 24),),
        intensities=(intensity,),
        median_relative_size=1.0,
    )
    spec = DatasetSpec(
        channels=("MR",),
        labels=Labels(
            labels={"background": 0, "whole": (1, 2), "core": 2}, regions_class_order=(1, 2)
        ),
        num_training=3,
        file_ending=".nii.gz",
    )
    return make_plan(spec, measured, dataset="Dataset001_Toy")


def network(value: float) -> nn.Module:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, value)
    nn.init.zeros_(layer.bias)
    return layer


def saved(folder: Path, value: float, epoch: int = 4) -> Checkpoint:
    return save_model(
        folder,
        "final",
        network(value),
        plan=small_plan(),
        configuration_name="3d_fullres",
        fold="0",
        epoch=epoch,
        mirror_axes=(0, 2),
        validation_dice=0.5,
    )


def weight(folder: Path) -> float:
    return float(load_model(folder, "final")[1]["weight"][0, 0])


def test_a_model_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    before = saved(tmp_path, 3.5)
    after, tensors = load_model(tmp_path, "final")
    assert after == before
    assert after.configuration == small_plan().configurations["3d_fullres"]
    assert tensors.keys() == {"weight", "bias"}
    assert tensors["weight"].tolist() == [[3.5] * 3] * 2
    assert tensors["bias"].tolist() == [0, 0]


def test_every_type_and_layout_of_tensor_comes_back(tmp_path: Path) -> None:
    drawn = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    tensors: dict[str, Tensor] = {
        "last": drawn.contiguous(memory_format=torch.channels_last),
        "turned": drawn.transpose(0, 2),
        "half": drawn.to(torch.bfloat16),
        "count": torch.tensor(7),
    }
    file, digest = save_weights(tmp_path, "any", pack(tensors))
    back = load_weights(tmp_path, file, digest)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name


@pytest.mark.parametrize("place", [0, 9, 40, -1])
def test_a_flipped_byte_in_the_weights_is_refused(tmp_path: Path, place: int) -> None:
    path = tmp_path / saved(tmp_path, 1.0).weights_file
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"safetensors: is damaged .*restore the model"):
        load_model(tmp_path, "final")


@pytest.mark.parametrize("left", [0, 20, -1])
def test_weights_that_were_cut_off_are_refused(tmp_path: Path, left: int) -> None:
    path = tmp_path / saved(tmp_path, 1.0).weights_file
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(DataError, match="is damaged"):
        load_model(tmp_path, "final")


def test_weights_that_are_gone_are_named(tmp_path: Path) -> None:
    path = tmp_path / saved(tmp_path, 1.0).weights_file
    path.unlink()
    with pytest.raises(DataError, match=f"{path}: cannot be read"):
        load_model(tmp_path, "final")


def test_a_file_that_holds_no_tensors_is_refused(tmp_path: Path) -> None:
    file, digest = save_weights(tmp_path, "any", b"not tensors at all")
    with pytest.raises(DataError, match="is not a safetensors file"):
        load_weights(tmp_path, file, digest)


def rewrite(folder: Path, **changes: Any) -> None:
    """Change a record as somebody would who knows how it is sealed."""
    path = folder / f"{FILE}.json"
    record.save_sealed(dataclasses.replace(record.load_sealed(Checkpoint, path), **changes), path)


def reseal(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Write the file of a record as another version would, which has other fields."""
    path = folder / f"{FILE}.json"
    data = change(json.loads(path.read_text()))
    del data[record.SEAL]
    data[record.SEAL] = hashlib.sha256(json.dumps(data).encode()).hexdigest()
    path.write_text(record.json_text(data))


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/hostname", "deeper/file", ".."])
def test_weights_outside_the_models_folder_are_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "fold_0"
    before = saved(folder, 1.0)
    (tmp_path / "outside.safetensors").write_bytes((folder / before.weights_file).read_bytes())
    reseal(folder, lambda data: data | {"weights_file": name})
    with pytest.raises(DataError, match="must lie in this folder"):
        load_model(folder, "final")


def test_a_pickle_named_as_weights_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    before = saved(tmp_path, 1.0)
    file, digest = save_weights(tmp_path, FILE, pickle.dumps(Trap()))
    path = tmp_path / f"{FILE}.json"
    record.save_sealed(dataclasses.replace(before, weights_file=file, weights_sha256=digest), path)
    with pytest.raises(DataError, match="is not a safetensors file"):
        load_model(tmp_path, "final")
    assert not (tmp_path / "sprung").exists()


def test_no_file_of_a_model_is_a_pickle(tmp_path: Path) -> None:
    saved(tmp_path, 1.0)
    for path in tmp_path.iterdir():
        with pytest.raises((ValueError, IndexError)):
            list(pickletools.genops(path.read_bytes()))


def test_a_kill_between_weights_and_json_leaves_the_model_before(tmp_path: Path) -> None:
    saved(tmp_path, 1.0)
    save_weights(tmp_path, FILE, pack(dict(network(2.0).state_dict())))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    assert weight(tmp_path) == 1.0
    saved(tmp_path, 3.0)
    assert weight(tmp_path) == 3.0
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_a_full_disk_at_the_json_leaves_the_model_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, 1.0)

    def refuse(value: Any, path: Path) -> None:
        raise MachineError(f"{path}: the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.record, "save", refuse)
        with pytest.raises(MachineError):
            saved(tmp_path, 2.0)
    assert weight(tmp_path) == 1.0


def test_a_new_model_replaces_the_weights_of_the_one_before(tmp_path: Path) -> None:
    before, after = saved(tmp_path, 1.0), saved(tmp_path, 2.0)
    assert before.weights_file != after.weights_file
    assert [path.name for path in tmp_path.glob("*.safetensors")] == [after.weights_file]


def test_only_weights_of_the_same_checkpoint_are_forgotten(tmp_path: Path) -> None:
    for name in ("checkpoint_final-1", "checkpoint_final-2", "checkpoint_best-1"):
        (tmp_path / f"{name}.safetensors").touch()
    forget_weights(tmp_path, FILE, keep=["checkpoint_final-2.safetensors"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint_best-1.safetensors",
        "checkpoint_final-2.safetensors",
    ]


def test_the_same_weights_saved_again_stay(tmp_path: Path) -> None:
    assert saved(tmp_path, 1.0, epoch=4).weights_file == saved(tmp_path, 1.0, epoch=5).weights_file
    assert load_model(tmp_path, "final")[0].epoch == 5


def test_a_missing_model_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"checkpoint_best.json does not exist; `nnseg train`"):
        load_model(tmp_path, "best")


@pytest.mark.fault("R22")
def test_another_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    saved(tmp_path, 1.0)
    rewrite(tmp_path, format=2)
    with pytest.raises(DataError, match="has format 2; this version reads 1"):
        load_model(tmp_path, "final")


def test_an_unknown_key_in_the_json_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1.0)
    reseal(tmp_path, lambda data: data | {"surprise": 1})
    with pytest.raises(DataError, match="surprise"):
        load_model(tmp_path, "final")


@pytest.mark.fault("R22")
def test_a_model_from_before_a_field_that_has_a_default_is_read(tmp_path: Path) -> None:
    before = saved(tmp_path, 1.0)
    reseal(tmp_path, lambda data: {k: v for k, v in data.items() if k != "validation_dice"})
    after, _ = load_model(tmp_path, "final")
    assert after.validation_dice is None
    assert after.plan == before.plan


@pytest.mark.fault("R22")
def test_a_model_of_a_later_format_says_so_whatever_else_is_in_it(tmp_path: Path) -> None:
    saved(tmp_path, 1.0)
    reseal(tmp_path, lambda data: data | {"format": 2, "teacher": "x"})
    with pytest.raises(DataError, match="has format 2; this version reads 1; a newer nnseg") as one:
        load_model(tmp_path, "final")
    assert "teacher" not in str(one.value)


@pytest.mark.parametrize("axes", [(3,), (-1,), (0, 0), (7,)])
def test_mirror_axes_are_axes_of_an_image(tmp_path: Path, axes: tuple[int, ...]) -> None:
    saved(tmp_path, 1.0)
    reseal(tmp_path, lambda data: data | {"mirror_axes": list(axes)})
    with pytest.raises(DataError, match=r"mirror_axes is .* different ones of 0, 1 and 2"):
        load_model(tmp_path, "final")


def test_a_model_of_a_configuration_that_its_plan_lacks_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1.0)
    reseal(tmp_path, lambda data: data | {"configuration_name": "4d"})
    with pytest.raises(PlanError, match="has no configuration 4d; it has 2d, 3d_fullres"):
        load_model(tmp_path, "final")


def test_a_record_that_changed_in_any_byte_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, 1.0)
    path = tmp_path / f"{FILE}.json"
    whole = path.read_bytes()
    for place in [*range(0, len(whole), 61), len(whole) - 1]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(NnsegError, match=str(path)):
            load_model(tmp_path, "final")
    for changed in (whole.replace(b"  ", b"   "), whole + b"\n"):  # the same values
        path.write_bytes(changed)
        with pytest.raises(DataError, match=r"json: is damaged .*restore the model"):
            load_model(tmp_path, "final")


def test_a_record_without_its_hash_is_refused(tmp_path: Path) -> None:
    record.save(
        dataclasses.replace(saved(tmp_path, 1.0), record_sha256=""), tmp_path / f"{FILE}.json"
    )
    with pytest.raises(DataError, match="json: is damaged"):
        load_model(tmp_path, "final")


def test_the_hash_of_a_record_is_of_all_its_other_fields(tmp_path: Path) -> None:
    first, second = saved(tmp_path, 1.0), saved(tmp_path, 1.0, epoch=5)
    assert len({first.record_sha256, second.record_sha256}) == 2
    assert saved(tmp_path, 1.0).record_sha256 == first.record_sha256
