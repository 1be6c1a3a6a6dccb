"""What the records of a fold say of its network, whatever version wrote them."""

import json
from pathlib import Path
from typing import Any

import pytest

from nnseg import record
from nnseg.dataset import Fold
from nnseg.errors import DataError, MissingError
from nnseg.folders import checkpoint_file, summary_file, validated_file, validation_folder
from nnseg.validated import (
    Validated,
    hash_of_split,
    is_known,
    is_validated,
    learnt_by,
    load_validated,
    read_validated,
    replaced_maps,
    retrain,
    why_not_held_out,
)

SPLIT = Fold(train=("a", "b", "c"), val=("d",))
OF_THEN = hash_of_split(SPLIT)


def keep(fold: Path, kind: str, **fields: Any) -> None:
    checkpoint_file(fold, kind).write_text(json.dumps(fields))


def test_cases_are_held_out_by_name_whatever_the_folds_are_today(tmp_path: Path) -> None:
    keep(tmp_path, "latest", split_hash="of then", train_cases=["a", "b"])
    assert learnt_by(tmp_path).cases == {"a", "b"}
    assert why_not_held_out(tmp_path, ["c", "d"], None) is None  # others may have joined
    assert why_not_held_out(tmp_path, ["b", "c"], SPLIT) == "its network was trained on case b"


def test_without_names_the_fold_must_be_that_of_then(tmp_path: Path) -> None:
    keep(tmp_path, "latest", split_hash=OF_THEN)
    assert is_known(tmp_path)
    assert why_not_held_out(tmp_path, ["d"], SPLIT) is None
    other = Fold(train=("a", "b"), val=("c", "d"))
    for split in (other, None):
        said = why_not_held_out(tmp_path, ["d"], split)
        assert said == "its network was trained on another split of the cases than today's"


@pytest.mark.parametrize("latest", [None, "{", "[1]", "{}"])
def test_the_checkpoint_before_says_it_where_the_latest_is_lost(
    tmp_path: Path, latest: str | None
) -> None:
    keep(tmp_path, "previous", split_hash=OF_THEN, train_cases=["a"])
    if latest is not None:
        checkpoint_file(tmp_path, "latest").write_text(latest)
    assert learnt_by(tmp_path).cases == {"a"}


def test_the_proof_says_it_where_both_are_lost_but_not_of_other_weights(tmp_path: Path) -> None:
    assert not is_known(tmp_path)
    assert why_not_held_out(tmp_path, ["a"], SPLIT) is None
    proof = Validated(weights_sha256="w", trained_on=("a",))
    record.save(proof, validated_file(tmp_path))
    keep(tmp_path, "final", weights_sha256="w")
    assert learnt_by(tmp_path).cases == {"a"}
    keep(tmp_path, "final", weights_sha256="others")
    assert not is_known(tmp_path)


def test_the_scores_must_be_those_that_were_written(tmp_path: Path) -> None:
    keep(tmp_path, "final", weights_sha256="w")
    file = summary_file(validation_folder(tmp_path))
    older = Validated(weights_sha256="w")
    record.save(older, validated_file(tmp_path))
    assert not is_validated(tmp_path)
    file.write_text("{}")
    assert is_validated(tmp_path)
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    record.save(Validated(weights_sha256="w", summary_sha256=digest), validated_file(tmp_path))
    assert is_validated(tmp_path)
    file.write_text("{ }")
    assert not is_validated(tmp_path)


def test_the_file_of_an_older_version_can_be_read(tmp_path: Path) -> None:
    validated_file(tmp_path).parent.mkdir()
    validated_file(tmp_path).write_text('{"weights_sha256": "w"}')
    assert read_validated(tmp_path) == Validated(weights_sha256="w")


def test_a_changed_byte_of_the_proof_is_found_before_it_is_used(tmp_path: Path) -> None:
    proof = Validated(weights_sha256="w", cases=("a", "b"), trained_on=("c",))
    path = validated_file(tmp_path)
    keep(tmp_path, "final", weights_sha256="w")
    sealed = record.save_sealed(proof, path)
    summary_file(validation_folder(tmp_path)).write_text("{}")
    assert read_validated(tmp_path) == sealed
    assert is_validated(tmp_path)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DataError, match=r"validated\.json"):
            load_validated(path)
        assert read_validated(tmp_path) is None
        assert not is_validated(tmp_path)
    path.unlink()
    with pytest.raises(MissingError, match="`train` writes it"):
        load_validated(path, "train")


@pytest.mark.parametrize("name", ["../x", "..", "", "a/b", "a\0b"])
def test_a_proof_names_cases_and_no_other_files(name: str) -> None:
    with pytest.raises(DataError, match="is no name of a case"):
        Validated(weights_sha256="", cases=(name,))


@pytest.mark.parametrize("name", ["../x.nii.gz", "..", "", "a/b", "a\0b.nii.gz"])
def test_a_proof_names_label_maps_beside_it_only(name: str) -> None:
    with pytest.raises(DataError, match="is no name of a file"):
        Validated(weights_sha256="", maps_sha256={name: "0"})


def test_replaced_label_maps_are_told_where_a_hash_was_kept(tmp_path: Path) -> None:
    out = validation_folder(tmp_path)
    maps = {name: out / f"{name}.nii.gz" for name in ("a", "b", "gone")}
    known = {"a.nii.gz": "0" * 64, "gone.nii.gz": "0" * 64}
    record.save(Validated(weights_sha256="w", maps_sha256=known), validated_file(tmp_path))
    for name in ("a", "b"):
        maps[name].write_bytes(b"x")
    assert replaced_maps(tmp_path, maps) == ["a"]
    record.save(Validated(weights_sha256="w"), validated_file(tmp_path))  # as older ones are
    assert replaced_maps(tmp_path, maps) == []


def test_the_command_that_trains_anew_names_plan_and_seed() -> None:
    assert "`nnseg train D 2d 1 -p resenc --seed 7 --overwrite`" in retrain(
        "D", "resenc", "2d", "1", 7
    )
