"""README.md and docs/: their Python runs, their commands exist, their links lead somewhere."""

import doctest
import re
import shlex
from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nnseg

CHECKOUT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(CHECKOUT)): path.read_text("utf-8")
    for path in (
        CHECKOUT / "README.md",
        CHECKOUT / "CHANGELOG.md",
        CHECKOUT / "SECURITY.md",
        *(CHECKOUT / root / "README.md" for root in ("raw", "preprocessed", "results")),
        *sorted((CHECKOUT / "docs").rglob("*.md")),
    )
}
BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`(?P<text>[^`\n]+)`(?!`)")
LINK = re.compile(r"\]\((?P<target>[^)#\s]+)[^)\s]*\)")
VARIABLES = {"nnseg_raw", "nnseg_preprocessed", "nnseg_results"}  # of the environment
FILE_LINE = re.compile(r"^(?P<name>(?:\w+/){0,2}\w+\.py) {2,}\S", re.MULTILINE)
SCRIPTS = re.compile(r'^(?P<name>nnseg\w*) = "nnseg\.cli:(?P<function>\w+)"$', re.MULTILINE)


def blocks(page: str, *kinds: str) -> list[str]:
    """The code blocks of a page that are marked as one of `kinds`."""
    return [match["text"] for match in BLOCK.finditer(page) if match["kind"] in kinds]


def commands(page: str) -> list[list[str]]:
    """Every command line of ours that a page shows, in blocks and in running text, as words."""
    lines = [
        line.removeprefix("$ ")
        for block in blocks(page, "bash", "sh", "console")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += [match["text"] for match in INLINE.finditer(BLOCK.sub("", page))]
    found = []
    for line in lines:
        if re.match(r"nnseg(_\w+)?( |$)|(\./)?scripts/\w", line):
            words = shlex.split(line, comments=True)
            if words[0] not in VARIABLES and words != ["nnseg"]:
                found.append(words)
    return found


def options(words: list[str]) -> list[str]:
    """The words that are options, without brackets of a usage line and without values."""
    plain = [word.strip("[]").split("=")[0] for word in words]
    return [word for word in plain if re.match(r"--?[a-zA-Z]", word)]


def subparsers(parser: ArgumentParser) -> dict[str, Any]:
    """The commands of `nnseg`, each with its parser."""
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            return dict(action.choices)
    raise AssertionError("build_parser() gives a parser without commands")


def wrong_commands(page: str, parser: ArgumentParser, programs: set[str]) -> Iterator[str]:
    """Say of each command of a page what does not exist."""
    known = subparsers(parser)
    for words in commands(page):
        program, *rest = words
        if "scripts/" in program:
            if not (CHECKOUT / program).is_file():
                yield f"there is no {program}"
            continue
        if program not in programs:
            yield f"there is no {program}"
            continue
        if program == "nnseg":
            name = next((word for word in rest if not word.startswith("-")), None)
            if name is not None and name not in known:
                yield f"there is no nnseg {name}"
        else:
            name = program.removeprefix("nnseg_")
        scope = {**parser._option_string_actions}
        if name in known:
            scope |= known[name]._option_string_actions
        elif program != "nnseg":
            continue  # a parser of its own, which its function makes
        for option in options(rest):
            if option not in scope:
                yield f"{program} {name} has no {option}"


def programs() -> dict[str, str]:
    """The console scripts of pyproject.toml and their functions in nnseg.cli."""
    text = (CHECKOUT / "pyproject.toml").read_text("utf-8")
    return {match["name"]: match["function"] for match in SCRIPTS.finditer(text)}


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if blocks(page, "python")])
def test_python_of_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(PAGES[name], "python"):
        if ">>>" not in block:
            exec(compile(block, name, "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(block, names, name, name, 0)
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
        report: list[str] = []
        failed = runner.run(test, out=report.append, clear_globs=False).failed
        assert not failed, "".join(report)
        names.update(test.globs)


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if commands(page)])
def test_commands_of_a_page_exist(name: str) -> None:
    from nnseg import cli

    assert list(wrong_commands(PAGES[name], cli.build_parser(), set(programs()))) == []


def test_every_console_script_has_its_function() -> None:
    from nnseg import cli

    assert {"nnseg", "nnseg_plan_and_preprocess", "nnseg_train", "nnseg_predict"} <= set(programs())
    assert all(callable(getattr(cli, function)) for function in programs().values())


def test_every_command_has_its_lines_in_the_command_page() -> None:
    from nnseg import cli

    shown = {words[1] for words in commands(PAGES["docs/cli.md"]) if len(words) > 1}
    assert set(subparsers(cli.build_parser())) <= shown


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_lead_to_files(name: str) -> None:
    folder = (CHECKOUT / name).parent
    targets = [match["target"] for match in LINK.finditer(BLOCK.sub("", PAGES[name]))]
    inside = [target for target in targets if "://" not in target]
    assert [target for target in inside if not (folder / target).exists()] == []


def test_the_readme_has_one_line_for_each_file_of_the_package() -> None:
    lines = [match["name"] for match in FILE_LINE.finditer(PAGES["README.md"])]
    files = {
        path.relative_to(CHECKOUT / "nnseg").as_posix()
        for path in (CHECKOUT / "nnseg").rglob("*.py")
        if path.name != "__init__.py"
    }
    assert sorted(lines) == sorted(files)


def test_the_changelog_has_this_version() -> None:
    assert f"## [{nnseg.__version__}]" in PAGES["CHANGELOG.md"]


def test_a_wrong_command_is_found() -> None:
    parser = ArgumentParser()
    train = parser.add_subparsers().add_parser("train")
    train.add_argument("--epochs")
    page = (
        "```bash\n$ nnseg train 4 \\\n    --epochs 2  # right\nnnseg train --epoch 2\n```\n"
        "`nnseg trian 4`, `nnseg_train --epoch`, `nnseg_test`, `nnseg_raw`, `./scripts/nothing`"
    )
    assert list(wrong_commands(page, parser, {"nnseg", "nnseg_train"})) == [
        "nnseg train has no --epoch",
        "there is no nnseg trian",
        "nnseg_train train has no --epoch",
        "there is no nnseg_test",
        "there is no ./scripts/nothing",
    ]
