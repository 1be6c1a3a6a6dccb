"""Files found by patterns, and the case that each is of."""

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from nnseg.errors import DataError, MachineError, MissingError, UsageError
from nnseg.intake.patterns import find_files

Touch = Callable[..., None]


@pytest.fixture
def touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Touch:
    """Make empty files in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def make(*names: str) -> None:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return make


def ids(*patterns: str) -> list[list[str]]:
    return [sorted(files) for files in find_files(patterns).files]


@pytest.mark.parametrize(
    ("names", "pattern", "case_ids"),
    [
        (["s/p1_t1.nii.gz", "s/p2_t1.nii.gz"], "s/*_t1.nii.gz", ["p1", "p2"]),
        (["s/p1.nii.gz", "s/p2.nrrd"], "s/*", ["p1", "p2"]),
        (["s/p1.nii.gz", "s/p2.nii"], "s/*.nii*", ["p1", "p2"]),
        (["s/p1.v2.nii", "s/p2.nii"], "s/*.*", ["p1_v2", "p2"]),
        (["p1/t1.nii", "p2/t1.nii"], "*/t1.nii", ["p1", "p2"]),
        (["p1/p1_t1.nii", "p2/p2_t1.nii"], "*/*_t1.nii", ["p1", "p2"]),
        (["p1/p1_t1.nii", "p2/q2_t1.nii"], "*/*_t1.nii", ["p1_p1", "p2_q2"]),
        (["a/b/p1.nii", "p2.nii"], "**/*.nii", ["a_b_p1", "p2"]),
        (["p1.nii", "p2.nii", "p3.nii"], "p[12].nii", ["1", "2"]),
        (["p1.nii", "p^.nii", "pa.nii"], "p[!1^].nii", ["a"]),
        (["p]x.nii", "p^y.nii", "paz.nii"], "p[]^]*.nii", ["x", "y"]),
        (["p1x.nii", "p2y.nii"], "p??.nii", ["1_x", "2_y"]),
        (["scan 1 (new).nii", "scan 2.nii"], "*.nii", ["scan_1_new", "scan_2"]),
        (["P1.NII.GZ", "-p2-.nii"], "*", ["P1", "p2"]),
        (["p1.nii", ".p2.nii", "._p1.nii"], "*.nii", ["p1"]),
    ],
)
def test_what_a_pattern_leaves_open_names_the_case(
    touch: Touch, names: list[str], pattern: str, case_ids: list[str]
) -> None:
    touch(*names)
    assert ids(pattern) == [case_ids]
    assert ids(str(Path.cwd() / pattern)) == [case_ids]


def test_names_that_are_composed_otherwise_are_of_one_case(touch: Touch) -> None:
    touch(unicodedata.normalize("NFD", "scans/Größe.nii"), "masks/Größe.nii")
    assert ids("scans/*.nii", "masks/*.nii") == [["Größe"], ["Größe"]]


def test_two_files_of_one_case_are_refused_by_name(touch: Touch) -> None:
    touch("a/p 1.nii", "a/p_1.nii")
    with pytest.raises(
        DataError, match=re.escape("a/p 1.nii and a/p_1.nii would both be case p_1")
    ):
        ids("a/*.nii")
    touch("b/p1.nii", "b/p1.nii.gz")
    with pytest.raises(DataError, match=r"b/p1.nii and b/p1.nii.gz would both"):
        ids("b/*")


def test_a_file_that_several_patterns_match_is_of_the_most_exact(touch: Touch) -> None:
    touch("p1.nii", "p1_seg.nii", "p2.nii", "p2_seg.nii")
    assert ids("*.nii", "*_seg.nii") == [["p1", "p2"], ["p1", "p2"]]
    assert ids("*_seg.nii", "*.nii") == [["p1", "p2"], ["p1", "p2"]]
    with pytest.raises(UsageError, match=r"p1.nii is matched by '\*.nii' and 'p\*.ni\?'; make"):
        ids("*.nii", "p*.ni?")


def test_a_pattern_must_be_open_somewhere_and_match_something(touch: Touch) -> None:
    touch("a/p1.nii", "a/notes.txt")
    with pytest.raises(UsageError, match=r"'a/p1.nii' has no wildcard; .* quote the pattern"):
        ids("a/p1.nii")
    with pytest.raises(MissingError, match=r"'b/\*.nii' matches no image file; correct"):
        ids("b/*.nii")
    with pytest.raises(MissingError, match=r"no image file; it matches a/notes.txt among others"):
        ids("a/*.txt")
    with pytest.raises(DataError, match="leave nothing to name its case by"):
        ids("a/p1*.nii")


def test_what_cannot_be_read_is_listed_but_not_what_belongs_to_a_file(touch: Touch) -> None:
    touch("p1.tif", "p1.json", "p2.hdr", "p2.img", "notes.txt")
    found = find_files(["*"])
    assert sorted(found.files[0]) == ["p1", "p2"]
    assert [path.name for path in found.strange] == ["notes.txt"]


@pytest.mark.parametrize("loops", [["scans/loop"], ["scans/loop", "scans/in/again", "scans/b"]])
def test_links_in_a_circle_add_no_case_and_come_to_an_end(
    touch: Touch, loops: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    touch("scans/p1.nii", "scans/p2.nii", "scans/in/p3.nii")
    for loop in loops:
        Path(loop).symlink_to(Path("scans").resolve())
    for pattern in ("scans/**/*.nii", "sc*/**/*.nii", "**/**/*.nii", "scans/**"):
        found = find_files([pattern])
        assert sorted(path.name for path in found.files[0].values()) == [
            "p1.nii",
            "p2.nii",
            "p3.nii",
        ]
    assert "loop: links to a folder that it lies in, and is passed over" in caplog.text


def test_folders_that_link_to_each_other_are_each_walked_once(touch: Touch) -> None:
    touch("x/p1.nii", "y/p2.nii")
    Path("x/far").symlink_to(Path("y").resolve())
    Path("y/far").symlink_to(Path("x").resolve())
    assert ids("x/**/*.nii") == [["far_p2", "p1"]]


def test_links_to_other_folders_are_followed(touch: Touch) -> None:
    touch("elsewhere/p1.nii", "scans/p2.nii")
    Path("scans/far").symlink_to(Path("elsewhere").resolve())
    assert ids("scans/**/*.nii") == [["far_p1", "p2"]]


def test_one_file_under_two_names_is_no_two_cases(touch: Touch) -> None:
    touch("scans/p1.nii")
    Path("scans/p2.nii").symlink_to("p1.nii")
    with pytest.raises(
        DataError, match=r"p1\.nii and scans/p2\.nii, which .* are one file; narrow"
    ):
        find_files(["scans/*.nii"])


def test_a_range_that_runs_backwards_is_refused(touch: Touch) -> None:
    touch("scans/c0.nii.gz", "scans/cb.nii.gz")
    with pytest.raises(
        UsageError, match=r"bad character range b-a.*; write the ranges in \[ \] up"
    ):
        find_files(["scans/c[0-2b-a].nii.gz"])


def test_a_folder_that_cannot_be_listed_is_named(
    touch: Touch, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch("scans/p1.nii")

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(MachineError, match=r"scans: cannot be listed \(Permission denied\)"):
        find_files(["scans/**/*.nii"])
