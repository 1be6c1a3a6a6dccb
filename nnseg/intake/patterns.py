"""Files found by patterns such as `scans/*_t1.nii.gz`, and the case that each is of.

What a pattern leaves open names the case: the texts that its wildcards stand for, joined by _.
"""

import glob
import logging
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnseg.errors import DataError, MachineError, MissingError, UsageError
from nnseg.volume import side_files, split_ending

logger = logging.getLogger(__name__)

_ANY_DEPTH = "**"
_WILDCARD = re.compile(r"\*\*/|\*+|\?|\[!?\]?[^\]]*\]")
_SPECIAL, _ESCAPED = re.compile(r"([\\^\[\]&~|])"), r"\\\1"  # within [ ] of an expression
_NOT_IN_AN_ID = re.compile(r"[^\w-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The files of each pattern, by case, and what else the patterns match.

    Of the patterns that match a file, the one with the most fixed text has it: `*_seg.nii.gz`
    takes its files out of `*.nii.gz`.
    """

    files: tuple[dict[str, Path], ...]  # for each pattern: case id to file
    strange: tuple[Path, ...]  # of no format that we read


def find_files(patterns: Sequence[str]) -> Found:
    """Find the files of some patterns, and name the case of each.

    The id of a case is what the wildcards of its pattern stand for, without the file's ending. A
    wildcard that stands for the same as the one before it in every file counts once. In an id,
    whatever is no letter, digit, _ or - becomes _.

    Args:
        patterns: With at least one of * ? [...], ** for any depth of folders. Links are followed,
            but not to a folder that they lie in.

    Raises:
        UsageError: A pattern has no wildcard or a range that runs backwards, or two have the same
            right to a file.
        MissingError: A pattern matches no file of a format that we read.
        DataError: Two files of a pattern are of one case, a file is of none, or one file has two
            names that a pattern matches.
    """
    matched = [_matches(pattern) for pattern in patterns]
    owners: dict[Path, int] = {}
    for number, paths in enumerate(matched):
        for path in paths:
            rival = owners.setdefault(path, number)
            if rival != number:
                first, second = _fixed(patterns[rival]), _fixed(patterns[number])
                if first == second:
                    raise UsageError(
                        f"{path} is matched by {patterns[rival]!r} and {patterns[number]!r}; make "
                        "one of them more exact"
                    )
                owners[path] = rival if first > second else number
    files = []
    for number, (pattern, paths) in enumerate(zip(patterns, matched, strict=True)):
        own = [path for path in paths if owners[path] == number]
        readable = [path for path in own if split_ending(path.name)[1]]
        if not readable:
            some = f"; it matches {own[0]} among others" if own else ""
            raise MissingError(f"{pattern!r} matches no image file{some}; correct the pattern")
        files.append(_by_case(pattern, readable))
    images = [path for path in owners if split_ending(path.name)[1]]
    strange = owners.keys() - images - {side for path in images for side in side_files(path)}
    return Found(files=tuple(files), strange=tuple(sorted(strange)))


def _matches(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern):
        raise UsageError(
            f"{pattern!r} has no wildcard; put * where the case is named, and quote the pattern "
            "('scans/*.nii.gz'), so that the shell leaves it as it is"
        )
    found = sorted({path for path in _expand(pattern) if path.is_file()})
    first: dict[Path, Path] = {}
    for path in found:
        other = first.setdefault(path.resolve(), path)
        if other != path:
            raise DataError(
                f"{other} and {path}, which {pattern!r} matches, are one file; narrow the pattern, "
                "or remove the link"
            )
    return found


def _expand(pattern: str) -> Iterator[Path]:
    """Give what a pattern matches, files and folders, some of it more than once."""
    parts = Path(pattern).parts
    if _ANY_DEPTH not in parts:
        # Path.glob takes no pattern from the root on, and finds hidden files
        yield from (Path(name) for name in glob.glob(pattern))  # noqa: PTH207
        return
    place = parts.index(_ANY_DEPTH)
    start, rest = Path(*parts[:place]), parts[place + 1 :] or ("*",)
    for top in _expand(str(start)) if glob.has_magic(str(start)) else (start,):
        for folder in _folders(top, frozenset()):
            yield from _expand(str(Path(glob.escape(str(folder)), *rest)))


def _folders(folder: Path, around: frozenset[Path]) -> Iterator[Path]:
    """Give a folder, if it is one, and those below it but for hidden ones, links followed.

    Python's own walk goes round in a circle of links until a path is too long for the system, and
    with two such links it takes for ever.
    """
    if not folder.is_dir():
        return
    real, here = folder.resolve(), folder.parent.resolve()
    if real in around or (folder.is_symlink() and real in (here, *here.parents)):
        logger.warning("%s: links to a folder that it lies in, and is passed over", folder)
        return
    yield folder
    try:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError as error:
        raise MachineError(
            f"{folder}: cannot be listed ({error.strerror}); check its rights, or narrow the "
            "pattern"
        ) from None
    for path in inside:
        if not path.name.startswith("."):
            yield from _folders(path, around | {real})


def _fixed(pattern: str) -> int:
    """Count the characters of a pattern that are not open."""
    return len(_WILDCARD.sub("", pattern))


def _by_case(pattern: str, paths: Sequence[Path]) -> dict[str, Path]:
    parts = {path: _open_parts(pattern, path) for path in paths}
    count = len(next(iter(parts.values())))
    kept = [
        i
        for i in range(count)
        if i == 0 or any(texts[i] != texts[i - 1] for texts in parts.values())
    ]
    found: dict[str, Path] = {}
    for path, texts in parts.items():
        case_id = _clean("_".join(texts[i] for i in kept if texts[i]))
        if not case_id:
            raise DataError(
                f"{path}: the wildcards of {pattern!r} leave nothing to name its case by; write * "
                "where names of cases differ"
            )
        if case_id in found:
            raise DataError(
                f"{found[case_id]} and {path} would both be case {case_id}; narrow the pattern "
                f"{pattern!r}, or rename one of them"
            )
        found[case_id] = path
    return found


def _open_parts(pattern: str, path: Path) -> tuple[str, ...]:
    """Give what each wildcard stands for in a path, up to the file's ending."""
    text = path.as_posix()
    try:
        match = re.fullmatch(_expression(Path(pattern).as_posix()), text, re.S | re.I)
    except re.error as error:
        raise UsageError(
            f"{pattern!r}: {error}; write the ranges in [ ] upwards, such as [0-9]"
        ) from None
    assert match is not None, "glob found it by this pattern"
    end = len(text) - len(split_ending(path.name)[1])
    spans = (match.span(number) for number in range(1, len(match.groups()) + 1))
    return tuple(text[start : min(stop, end)].strip("/") for start, stop in spans)


def _expression(pattern: str) -> str:
    """Translate a pattern to a regular expression with a group for each wildcard.

    >>> re.fullmatch(_expression("a/**/*_t[12].nii"), "a/b/c/x_y_t2.nii").groups()
    ('b/c/', 'x_y', '2')
    """
    parts, place = [], 0
    for wildcard in _WILDCARD.finditer(pattern):
        parts.append(re.escape(pattern[place : wildcard.start()]))
        parts.append(_group(wildcard[0]))
        place = wildcard.end()
    return "".join((*parts, re.escape(pattern[place:])))


def _group(wildcard: str) -> str:
    if wildcard == "**/":
        return "((?:[^/]+/)*)"
    if wildcard[0] == "*":
        return "(.*)" if len(wildcard) > 1 else "([^/]*)"
    if wildcard == "?":
        return "([^/])"
    inside = wildcard[1:-1]
    negated = inside.startswith("!")
    return f"([{'^' * negated}{_SPECIAL.sub(_ESCAPED, inside[negated:])}])"


def _clean(text: str) -> str:
    """Give a text as an id: composed letters, digits, _ and -, neither of which at an end."""
    return _NOT_IN_AN_ID.sub("_", unicodedata.normalize("NFC", text)).strip("_-")
