"""Preprocessed cases, judged one by one."""

import dataclasses
import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from nnseg import store
from nnseg.commit import sha256
from nnseg.dataset import Case
from nnseg.doctor.findings import Finding, Notes
from nnseg.fsck import audit as audit_module
from nnseg.fsck.audit import CaseFolder, RawCases, Remake, audit
from nnseg.fsck.proofs import Look
from nnseg.lock import locked
from nnseg.preprocess import Placement, Preprocessed

IDS = ("a", "b", "c")
SHAPE = (3, 20, 31)
PLACEMENT = Placement(
    order=(0, 1, 2),
    shape=SHAPE,
    spacing=(3.0, 0.9, 0.8),
    box=((0, 3), (0, 20), (0, 31)),
    shape_resampled=SHAPE,
)


@dataclasses.dataclass(frozen=True)
class Scene:
    """A folder of three preprocessed cases, and the raw files that they were made from."""

    folder: Path
    raw: dict[str, Case]

    def judge(
        self, data_hash: str | None = "plan", *, raw: bool = True
    ) -> tuple[list[Finding], Remake | None]:
        """Audit the folder; give what is found and what can be made anew."""
        look = Look(Notes(self.folder.parent))
        cases = CaseFolder(
            dataset="Dataset001_Flat",
            plan="nnseg",
            configuration="2d",
            folder=self.folder,
            data_hash=data_hash,
        )
        remake = audit(look, cases, RawCases(self.raw if raw else None), 2, None)
        return look.notes.findings, remake

    def files(self) -> list[Path]:
        """Every file of the cases, records included."""
        return sorted(path for path in self.folder.iterdir() if path.suffix in (".json", ".b2nd"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("built")
    rng = np.random.default_rng(3)
    for case_id in IDS:
        files = raw_case(top, case_id).files
        for path in files:
            path.write_bytes(rng.bytes(50))
        mask = np.ones(SHAPE, dtype=np.bool_)
        mask[0, :5] = False
        store.save_case(
            top / "2d",
            case_id,
            Preprocessed(
                image=rng.normal(size=(2, *SHAPE)).astype(np.float32),
                segmentation=rng.integers(0, 3, SHAPE).astype(np.uint8),
                mask=mask,
                placement=PLACEMENT,
            ),
            {"core": np.array([0, 31, 1859], dtype=np.int64)},
            made_from=store.origin([sha256(path) for path in files], "plan"),
            arrays_from="arrays",
            data_hash="plan",
        )
    return top


def raw_case(top: Path, case_id: str) -> Case:
    images = tuple(top / f"{case_id}_{channel:04d}.nii.gz" for channel in range(2))
    return Case(case_id=case_id, images=images, label=top / f"{case_id}.nii.gz")


@pytest.fixture
def scene(built: Path, tmp_path: Path) -> Scene:
    top = Path(shutil.copytree(built, tmp_path / "top"))
    return Scene(top / "2d", {case_id: raw_case(top, case_id) for case_id in IDS})


def told(findings: list[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.severity, finding.rule, finding.file) for finding in findings]


def test_whole_cases_give_no_finding(scene: Scene) -> None:
    assert scene.judge() == ([], None)


def flip(path: Path, rng: np.random.Generator) -> None:
    """Change one byte to another."""
    data = bytearray(path.read_bytes())
    place = int(rng.integers(len(data)))
    data[place] = (data[place] + int(rng.integers(1, 256))) % 256
    path.write_bytes(data)


def cut(path: Path, rng: np.random.Generator) -> None:
    """Cut off some bytes at the end, all of them at times."""
    os.truncate(path, int(rng.integers(path.stat().st_size)))


@pytest.mark.parametrize("damage", [flip, cut])
def test_20_flips_and_20_cuts_at_random_places_are_all_found(
    scene: Scene, damage: Callable[[Path, np.random.Generator], None]
) -> None:
    rng = np.random.default_rng(20)
    for path in rng.choice(np.array(scene.files(), dtype=object), 20):
        whole = path.read_bytes()
        damage(path, rng)
        findings, remake = scene.judge()
        case_id = path.name.split(".")[0]
        assert told(findings) == [("error", "case_damaged", f"2d/{path.name}")]
        assert findings[0].case_id == case_id
        assert findings[0].remedy == "`nnseg fsck Dataset001_Flat --redo` makes the case anew"
        assert remake == Remake(plan="nnseg", configuration="2d", damaged=(case_id,))
        path.write_bytes(whole)


def test_a_record_that_says_the_same_in_other_bytes_is_damaged(scene: Scene) -> None:
    path = scene.folder / "b.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b" ", 1))
    assert store.find_case(scene.folder, "b") is None
    (finding,), _ = scene.judge()
    assert (finding.rule, finding.file) == ("case_damaged", "2d/b.json")


def test_a_missing_array_is_named_and_a_missing_case_is_counted(scene: Scene) -> None:
    (scene.folder / "a.mask.b2nd").unlink()
    for path in scene.folder.glob("b.*"):
        path.unlink()
    findings, remake = scene.judge()
    assert told(findings) == [
        ("error", "missing", "2d"),
        ("error", "case_damaged", "2d/a.mask.b2nd"),
    ]
    assert "lacks case b" in findings[0].found
    assert "does not exist" in findings[1].found
    assert remake == Remake(plan="nnseg", configuration="2d", damaged=("a",))


def test_a_case_whose_record_is_lost_is_missing_and_its_arrays_are_left_over(scene: Scene) -> None:
    (scene.folder / "c.json").unlink()
    findings, remake = scene.judge()
    names = ("image", "locations", "mask", "segmentation")
    leftovers = [("warning", "leftover", f"2d/c.{name}.b2nd") for name in names]
    assert told(findings) == [("error", "missing", "2d"), *leftovers]
    assert remake == Remake(plan="nnseg", configuration="2d", damaged=())


def test_what_is_of_no_case_of_the_dataset_is_left_over(scene: Scene) -> None:
    del scene.raw["a"]
    shutil.copy(scene.folder / "b.mask.b2nd", scene.folder / "z.mask.b2nd")
    (scene.folder / "notes.json").write_text("{}")
    (scene.folder / "notes.txt").write_text("")
    for name in ("a.json", "a.mask.b2nd"):  # unfinished, which is not for this to tell
        (scene.folder / f".part-1-{name}").write_text("")
    findings, remake = scene.judge()
    assert told(findings) == [
        ("warning", "leftover", "2d/a.json"),
        ("warning", "leftover", "2d/z.mask.b2nd"),
    ]
    assert remake is not None


def test_cases_of_another_plan_are_told_once_and_those_of_changed_raw_files_each(
    scene: Scene,
) -> None:
    findings, remake = scene.judge("another plan")
    assert told(findings) == [("error", "other_plan", "2d")]
    assert "3 cases, such as a, b, c" in findings[0].found
    assert remake == Remake(plan="nnseg", configuration="2d", damaged=())
    scene.raw["b"].images[1].write_bytes(b"another image")
    findings, remake = scene.judge()
    assert told(findings) == [("error", "other_raw", "2d/b.json")]
    assert remake == Remake(plan="nnseg", configuration="2d", damaged=())
    scene.raw["b"].images[1].unlink()
    (finding,), _ = scene.judge()
    assert "b_0001.nii.gz (No such file or directory)" in finding.found


def test_what_cannot_be_made_anew_is_named_with_another_remedy(scene: Scene) -> None:
    flip(scene.folder / "a.image.b2nd", np.random.default_rng(0))
    findings, remake = scene.judge(raw=False)
    assert told(findings) == [("error", "case_damaged", "2d/a.image.b2nd")]
    assert "without its raw files it cannot be made anew" in findings[0].remedy
    assert remake is None
    findings, remake = scene.judge(None)
    assert told(findings) == [
        ("warning", "no_plan", "2d"),
        ("error", "case_damaged", "2d/a.image.b2nd"),
    ]
    assert "without its plan it cannot be made anew" in findings[1].remedy
    assert remake is None


def test_arrays_that_two_folders_share_are_damaged_in_both(scene: Scene) -> None:
    other = scene.folder.with_name("3d")
    other.mkdir()
    for path in scene.files():
        os.link(path, other / path.name)
    flip(scene.folder / "a.image.b2nd", np.random.default_rng(0))
    for folder in (scene.folder, other):
        findings, _ = dataclasses.replace(scene, folder=folder).judge()
        assert told(findings) == [("error", "case_damaged", f"{folder.name}/a.image.b2nd")]


def test_a_folder_that_a_run_begins_to_use_meanwhile_is_not_judged(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scene.folder / "a.json").unlink()
    with ExitStack() as held:

        def begin(*arguments: object) -> dict[str, object]:
            held.enter_context(locked(scene.folder, "nnseg preprocess"))
            return {case_id: audit_module._Verdict(state="missing") for case_id in IDS}

        monkeypatch.setattr(audit_module, "for_each", begin)
        findings, remake = scene.judge()
    assert told(findings) == [("warning", "in_use", "2d")]
    assert remake is None


def test_a_folder_that_cannot_be_read_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    findings, remake = scene.judge()
    assert told(findings) == [("error", "unreadable", "2d")]
    assert findings[0].found == "cannot be read (Permission denied)"
    assert remake is None


def test_a_folder_that_a_run_is_using_is_not_judged(scene: Scene) -> None:
    (scene.folder / "a.json").unlink()
    with locked(scene.folder, "nnseg preprocess"):
        findings, remake = scene.judge()
    assert told(findings) == [("warning", "in_use", "2d")]
    assert f"`nnseg preprocess`, process {os.getpid()}" in findings[0].found
    assert remake is None
