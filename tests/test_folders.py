from pathlib import Path
from typing import Any

import pytest

from nnseg.errors import MachineError, MissingError, UsageError
from nnseg.folders import (
    Folders,
    checkpoint_file,
    find_dataset,
    is_folder_name,
    map_file,
    trained_folds,
)

HIPPO, ACDC = "Dataset004_Hippocampus", "Dataset027_ACDC"


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Roots in which 004 is raw, 027 preprocessed only, and 1004 trained only."""
    result = Folders.of_root(tmp_path)
    (result.raw / HIPPO).mkdir(parents=True)
    (result.preprocessed / ACDC).mkdir(parents=True)
    (result.results / "Dataset1004_Large").mkdir(parents=True)
    (result.raw / "Dataset7_ShortNumber").mkdir()
    (result.raw / "Dataset030_File").touch()
    return result


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("4", HIPPO),
        ("004", HIPPO),
        (HIPPO, HIPPO),
        ("27", ACDC),
        (ACDC, ACDC),
        ("1004", "Dataset1004_Large"),
    ],
)
def test_a_dataset_is_found_by_number_or_name_in_any_root(
    folders: Folders, name: str, found: str
) -> None:
    assert find_dataset(folders, name) == (folders, found)


@pytest.mark.parametrize("name", ["7", "30", "5", "Hippocampus", "Dataset004", "²", "", "-4"])
def test_a_dataset_that_is_not_there_is_answered_with_those_that_are(
    folders: Folders, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(
        MissingError, match=f"no dataset {name} in .*raw; found: {HIPPO}, {ACDC}, Dataset1004_Large"
    ):
        find_dataset(folders, name)


def test_without_any_dataset_the_message_says_none(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"found: none\. Put it there as DatasetNNN_Name"):
        find_dataset(Folders.of_root(tmp_path), "4")


def test_a_number_of_two_datasets_is_not_guessed(folders: Folders) -> None:
    (folders.results / "Dataset004_Heart").mkdir()
    with pytest.raises(
        UsageError, match=f"dataset 4 may be Dataset004_Heart or {HIPPO}; give the whole name"
    ):
        find_dataset(folders, "4")
    assert find_dataset(folders, HIPPO) == (folders, HIPPO)


def test_a_path_makes_the_folder_around_it_the_raw_root(folders: Folders, tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "any-name"
    mine.mkdir(parents=True)
    found, dataset = find_dataset(folders, str(mine))
    assert dataset == "any-name"
    assert found.raw_folder(dataset) == mine.resolve()
    assert (found.preprocessed, found.results) == (folders.preprocessed, folders.results)


def test_a_relative_path_is_taken_from_the_current_folder(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_dataset(folders, "./mine")[0].raw == tmp_path.resolve()
    monkeypatch.chdir(tmp_path / "mine")
    assert find_dataset(folders, ".")[1] == "mine"


def test_a_folder_that_happens_to_have_the_name_does_not_hide_a_dataset(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "4").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert find_dataset(folders, "4") == (folders, HIPPO)
    assert find_dataset(folders, "./4") == (
        Folders(
            raw=(tmp_path / "here").resolve(),
            preprocessed=folders.preprocessed,
            results=folders.results,
        ),
        "4",
    )


def test_a_number_longer_than_any_is_no_dataset(folders: Folders) -> None:
    with pytest.raises(MissingError, match="no dataset 44"):
        find_dataset(folders, "4" * 5000)  # more digits than int() takes


def test_a_path_to_a_folder_whose_name_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "any;name").mkdir()
    with pytest.raises(UsageError, match="'any;name' cannot name a dataset; it must begin with"):
        find_dataset(Folders.of_root(tmp_path), str(tmp_path / "any;name"))


@pytest.mark.parametrize("name", ["2d", "3d_fullres", "nnUNetPlans_1.5GB", "a-b", "0"])
def test_names_of_letters_digits_and_signs_within_can_name_a_folder(name: str) -> None:
    assert is_folder_name(name)


LEADING_OUT = ["", ".", "..", "../x", "x/y", "x\\y", "/x", "a..b", ".x", "-x", "a ", "2d\n", "C:x"]


@pytest.mark.parametrize("name", [*LEADING_OUT, "a.", "a\0"])
def test_a_name_that_may_mean_another_place_somewhere_can_not(name: str) -> None:
    assert not is_folder_name(name)


@pytest.mark.parametrize("name", LEADING_OUT)
def test_no_path_is_made_of_a_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    folders = Folders.of_root(tmp_path)
    of_dataset = (
        folders.raw_folder,
        folders.spec_file,
        folders.images,
        folders.labels,
        folders.user_splits_file,
        folders.fingerprint_file,
        folders.splits_file,
    )
    for path_of in of_dataset:
        with pytest.raises(UsageError, match="cannot name a dataset"):
            path_of(name)
    for dataset, plan, kind in ((name, "mine", "dataset"), (HIPPO, name, "plan")):
        with pytest.raises(UsageError, match=f"cannot name a {kind}"):
            folders.plan_file(dataset, plan)
    good = (HIPPO, "mine", "2d")
    for place, kind in enumerate(("dataset", "plan", "configuration")):
        names = (*good[:place], name, *good[place + 1 :])
        for path_of in (folders.store, folders.model):
            with pytest.raises(UsageError, match=f"cannot name a {kind}"):
                path_of(*names)
        with pytest.raises(UsageError, match=f"cannot name a {kind}"):
            folders.fold(*names, "0", 0)
    with pytest.raises(UsageError, match="cannot name a fold"):
        folders.fold(*good, name, 0)


def test_a_path_that_is_not_there_is_not_taken_for_a_name(folders: Folders) -> None:
    with pytest.raises(MissingError, match=r"nowhere/Dataset004_X: there is no such folder"):
        find_dataset(folders, "nowhere/Dataset004_X")


def test_a_seed_and_a_plan_and_a_fold_have_folders_of_their_own(tmp_path: Path) -> None:
    folders = Folders.of_root(tmp_path)
    model = tmp_path / "results" / HIPPO / "nnseg" / "2d"
    assert folders.model(HIPPO, "nnseg", "2d") == model
    assert folders.fold(HIPPO, "nnseg", "2d", "0", 0) == model / "fold_0"
    assert folders.fold(HIPPO, "nnseg", "2d", "all", 3) == model / "fold_all_seed3"


def test_paths_are_where_the_file_formats_say(tmp_path: Path) -> None:
    folders = Folders.of_root(tmp_path)
    raw, preprocessed = tmp_path / "raw" / HIPPO, tmp_path / "preprocessed" / HIPPO
    assert folders.spec_file(HIPPO) == raw / "dataset.json"
    assert folders.images(HIPPO) == raw / "imagesTr"
    assert folders.labels(HIPPO) == raw / "labelsTr"
    assert folders.user_splits_file(HIPPO) == raw / "splits_final.json"
    assert folders.fingerprint_file(HIPPO) == preprocessed / "fingerprint.json"
    assert folders.splits_file(HIPPO) == preprocessed / "splits_final.json"
    assert folders.plan_file(HIPPO, "mine") == preprocessed / "plans" / "mine.json"
    assert folders.store(HIPPO, "mine", "2d") == preprocessed / "mine" / "2d"


# ---------------------------------------------------------------- trained folds


def trained(model: Path, *names: str, kind: str = "final") -> Path:
    for name in names:
        (model / name).mkdir(parents=True, exist_ok=True)
        checkpoint_file(model / name, kind).write_text("{}")
    return model


def test_without_a_choice_all_numbered_folds_count(tmp_path: Path) -> None:
    names = ("fold_0", "fold_3", "fold_0_seed1", "fold_all", "fold_1.old1")
    trained(tmp_path, *names)
    (tmp_path / "fold_2").mkdir()  # never trained
    trained(tmp_path, "fold_4", kind="best")  # not finished
    assert trained_folds(tmp_path) == (tmp_path / "fold_0", tmp_path / "fold_3")
    assert trained_folds(tmp_path, kind="best") == (tmp_path / "fold_4",)


def test_a_model_trained_on_all_cases_counts_where_there_are_no_folds(tmp_path: Path) -> None:
    assert trained_folds(trained(tmp_path, "fold_all")) == (tmp_path / "fold_all",)


def test_the_folder_of_one_fold_is_a_model(tmp_path: Path) -> None:
    fold = trained(tmp_path, "fold_2") / "fold_2"
    assert trained_folds(fold) == (fold,)


def test_chosen_folds_come_once_and_as_chosen(tmp_path: Path) -> None:
    trained(tmp_path, "fold_0", "fold_1", "fold_all", "fold_0_seed1")
    assert [f.name for f in trained_folds(tmp_path, ("0_seed1", "all", "1", "1"))] == [
        "fold_0_seed1",
        "fold_all",
        "fold_1",
    ]


def test_folds_that_are_not_trained_are_named_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"fold 0 is not trained \(trained: none\)"):
        trained_folds(tmp_path)
    trained(tmp_path, "fold_1")
    with pytest.raises(MissingError, match=r"fold 0, 2 is not trained \(trained: 1\)"):
        trained_folds(tmp_path, ("0", "1", "2"))
    with pytest.raises(MissingError, match="is not trained"):
        trained_folds(tmp_path, ("../fold_1",))


@pytest.mark.parametrize("name", ["4", "./raw"])
@pytest.mark.parametrize("method", ["is_dir", "iterdir"])
def test_a_root_that_cannot_be_listed_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, method: str
) -> None:
    folders = Folders.of_root(tmp_path)
    folders.raw.mkdir()
    monkeypatch.chdir(tmp_path)

    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, method, refuse)
    if (name, method) == ("./raw", "iterdir"):  # a path needs no list
        assert find_dataset(folders, name)[1] == "raw"
        return
    with pytest.raises(MachineError, match=r"raw: cannot be listed \(Permission denied\)"):
        find_dataset(folders, name)


def test_links_in_a_circle_are_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((MachineError, MissingError), match="a: "):
        find_dataset(Folders.of_root(tmp_path), "./a")


@pytest.mark.parametrize(
    ("label_map", "entropy"),
    [
        ("a.v2.nii.gz", "a.v2_entropy.nii.gz"),
        ("a.NII.GZ", "a_entropy.NII.GZ"),
        ("a.tif", "a_entropy.tif"),
        ("a.png", "a_entropy.nii.gz"),  # a picture holds integers
        ("a.BMP", "a_entropy.nii.gz"),
    ],
)
def test_a_map_is_called_after_its_label_map_and_ends_in_what_holds_it(
    tmp_path: Path, label_map: str, entropy: str
) -> None:
    assert map_file(tmp_path / label_map, "entropy") == tmp_path / entropy
