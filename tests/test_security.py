"""What the package never does: run what a file holds, build commands of text, call the network."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from nnseg.phantom import write_dataset

CHECKOUT = Path(__file__).parents[1]
PACKAGE = CHECKOUT / "nnseg"
TREES = {
    str(path.relative_to(CHECKOUT)): ast.parse(path.read_text("utf-8"))
    for path in sorted(PACKAGE.rglob("*.py"))
}

# Modules that make objects of bytes, run text, or find code by a name; nothing of them is used.
MODULES = {
    *("pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
    *("jsonpickle", "pydoc", "runpy", "imp", "code", "codeop", "commands", "pty", "telnetlib"),
    *("ftplib", "smtplib", "xmlrpc", "requests", "httpx", "aiohttp", "urllib", "http"),
}
# The same of single functions, whether they are called or handed on.
FUNCTIONS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.startfile"),
    *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__"),
    *("subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "ruamel.yaml.load"),
    *("numpy.DataSource", "numpy.fromregex", "numpy.lib.format.open_memmap"),
    *("pandas.read_pickle", "pandas.eval", "pandas.DataFrame.eval", "pandas.DataFrame.query"),
    *("torch.hub.load", "torch.hub.load_state_dict_from_url", "torch.hub.download_url_to_file"),
    *("torch.jit.load", "torch.export.load", "torch.package.PackageImporter"),
    *("torch.serialization.load", "torch.serialization.add_safe_globals"),
    *("shutil.unpack_archive", "tarfile.open", "tarfile.TarFile", "tempfile.mktemp"),
    *("importlib.util.spec_from_file_location", "importlib.machinery.SourceFileLoader"),
    *("blosc2.unpack", "blosc2.unpack_array", "blosc2.load_array", "blosc2.lazyexpr"),
    *("socket.socket", "socket.create_connection", "socket.socketpair"),
}
METHODS = {"extractall", "read_pickle", "to_pickle"}  # of whatever object
EXEC = re.compile(r"os\.(exec|spawn|posix_spawn)\w*")
FLAGS = {"shell": False, "allow_pickle": False, "weights_only": True, "trust_remote_code": False}
HASHED = re.compile(r"([a-z0-9][a-z0-9.-]*)==(\S+) --hash=sha256:([0-9a-f]{64})")


def names_in(tree: ast.AST) -> dict[str, str]:
    """What the names that a module imports, at any depth, stand for: `np` is `numpy`."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                found[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def dotted(node: ast.AST, names: dict[str, str]) -> str:
    """The full name of an expression such as `np.load`; "" of what has none."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute) and (before := dotted(node.value, names)):
        return f"{before}.{node.attr}"
    return ""


def forbidden(tree: ast.AST) -> list[str]:
    """What a module has that the package never has, with its lines."""
    names = names_in(tree)
    found = [f"{name} is imported" for name in names.values() if name.split(".")[0] in MODULES]
    found += [f"{name} is imported" for name in names.values() if name in FUNCTIONS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name):
            name = dotted(node, names)
            method = node.attr if isinstance(node, ast.Attribute) else ""
            if name in FUNCTIONS or method in METHODS or EXEC.fullmatch(name):
                found.append(f"line {node.lineno}: {name or method}")
        if isinstance(node, ast.Call):
            found += (f"line {node.lineno}: {what}" for what in wrong_call(node, names))
            if dotted(node.func, names) in ("importlib.import_module", "import_module"):
                found += not_ours(node, tree)
    return found


def wrong_call(node: ast.Call, names: dict[str, str]) -> Iterator[str]:
    """What is wrong with a call: its flags, or flags that it lacks, or a command of text."""
    name = dotted(node.func, names)
    flags = {keyword.arg: keyword.value for keyword in node.keywords}
    for flag, wanted in FLAGS.items():
        value = flags.get(flag)
        if value is not None and not (isinstance(value, ast.Constant) and value.value is wanted):
            yield f"{name} with {flag}"
    if name == "torch.load" and ("weights_only" not in flags or None in flags):
        yield "torch.load without weights_only"
    if (
        name == "getattr"
        and len(node.args) > 1
        and dotted(node.args[0], names) in ("os", "builtins")
    ):
        yield "a function of the system by its name"
    text = node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.BinOp)
    if name.startswith("subprocess.") and text:
        yield f"{name} of a text"


def not_ours(node: ast.Call, tree: ast.AST) -> Iterator[str]:
    """Why a module to import is none that the source itself names; nothing if it is one.

    It is a literal, or an entry of a table of literals behind `nnseg.`, or a parameter for which
    every call in the module gives a literal.
    """
    given = node.args[0]
    if isinstance(given, ast.Constant):
        return
    if isinstance(given, ast.JoinedStr):
        first, *rest = given.values
        ours = isinstance(first, ast.Constant) and str(first.value).startswith("nnseg.")
        if ours and all(is_entry(part) for part in rest):
            return
    if isinstance(given, ast.Name):
        for function in (one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef)):
            places = [argument.arg for argument in function.args.args]
            if given.id in places and node in ast.walk(function):
                place = places.index(given.id)
                calls = [
                    call
                    for call in ast.walk(tree)
                    if isinstance(call, ast.Call) and dotted(call.func, {}) == function.name
                ]
                if all(isinstance(call.args[place], ast.Constant) for call in calls):
                    return
    yield f"line {node.lineno}: imports what is named elsewhere"


def is_entry(part: ast.expr) -> bool:
    """Whether a part of a text is an entry of a table of constants."""
    if not isinstance(part, ast.FormattedValue):
        return False
    value = part.value
    while isinstance(value, ast.Subscript):
        if isinstance(value.value, ast.Name):
            return value.value.id.lstrip("_").isupper()
        value = value.value
    return False


@pytest.mark.fault("S02")
@pytest.mark.parametrize("file", TREES)
def test_no_file_runs_what_another_holds_or_calls_the_network(file: str) -> None:
    assert forbidden(TREES[file]) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import dump",
        "import cloudpickle as json",
        "def f():\n    import marshal",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load\nload(path)",
        "import torch as t\nt.load(path, **how)",
        "torch.load(path, weights_only=True, **how)",
        "try:\n    torch.load(p, weights_only=True)\nexcept Exception:\n    torch.load(p)",
        "eval(text)",
        "list(map(eval, texts))",
        "run = exec",
        "compile(text, '', 'exec')",
        "import builtins\nbuiltins.eval(text)",
        "from os import system",
        "os.system(command)",
        "import os as o\nrun = o.popen",
        "os.execvp(name, arguments)",
        "getattr(os, name)(command)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=flag)",
        "subprocess.run(f'cp {a} {b}')",
        "from subprocess import run\nrun('cp ' + a)",
        "yaml.load(text)",
        "zipfile.ZipFile(path).extractall(folder)",
        "shutil.unpack_archive(path)",
        "np.load(path, allow_pickle=True)",
        "import_module(name)",
        "import_module(f'{TABLE[name]}')",
        "import_module(f'nnseg.{name}')",
        "def f(name):\n    import_module(name)\nf('a')\nf(text)",
        "from importlib import import_module as load\nload(name)",
        "__import__(name)",
        "from pydoc import locate",
        "from urllib.request import urlopen",
        "import socket\nsocket.create_connection(where)",
        "torch.hub.load(a, b)",
        "torch.jit.load(path)",
        "blosc2.unpack_array(data)",
    ],
)
def test_what_must_not_be_is_found(source: str) -> None:
    assert forbidden(ast.parse(source))


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=False)",
        "network.eval()",
        "import re\nre.compile('a')",
        "torch.compile(network)",
        "subprocess.run([compiler, source], check=True)",
        "import_module('onnx.checker')",
        "import_module(f'nnseg.{HOMES[name]}')",
        "def f(name):\n    import_module(name)\nf('a')\nf('b')",
        "import os\nos.environ.get('A')",
    ],
)
def test_what_only_looks_so_passes(source: str) -> None:
    assert forbidden(ast.parse(source)) == []


# ---------------------------------------------------------------- no network

GUARD = """
import json, socket, sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto",
                 "urllib.Request"):
        where = arguments[1] if event in ("socket.connect", "socket.sendto") else arguments[0]
        if not (isinstance(where, str) and where.startswith("/")):  # a socket of this machine
            print("NETWORK", event, where)
            raise SystemExit(99)

sys.addaudithook(refuse)
from nnseg.cli import main
for arguments in json.loads(sys.argv[1]):
    code = main(arguments)
    if code:
        raise SystemExit(code)
if "torch" not in sys.modules:
    raise SystemExit("torch was not loaded")
"""


@pytest.mark.fault("S11")
def test_measuring_planning_and_predicting_never_connect(flat: Any, tmp_path: Path) -> None:
    root = ["--root", str(flat.raw.parent)]
    dataset = "Dataset001_Flat"
    commands = [
        ["plan", dataset, "--dry-run", *root],
        ["info", "--json", *root],
        ["predict", "-i", str(flat.test_images(dataset)), "-o", str(tmp_path / "out"),
         "-m", str(flat.results / dataset / "nnseg" / "2d"), "-f", "0", "-device", "cpu"],
        ["verify", str(tmp_path / "out")],
    ]  # fmt: skip
    done = run(GUARD, json.dumps(commands))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3


@pytest.mark.slow
@pytest.mark.fault("S11")
def test_the_whole_job_runs_where_there_is_no_network(tmp_path: Path) -> None:
    alone = next(
        (how for how in (["unshare", "-n"], ["unshare", "-rn"]) if can_run([*how, "true"])), None
    )
    if alone is None:
        pytest.skip("this kernel gives nobody a network namespace of their own: unshare -n fails")
    root, dataset = tmp_path / "root", "Dataset001_Alone"
    write_dataset(root / "raw" / dataset, "2d", cases=5, test_cases=1)
    where = ["--root", str(root)]
    model = root / "results" / dataset / "nnseg" / "2d"
    images, labels = root / "raw" / dataset / "imagesTs", root / "raw" / dataset / "labelsTr"
    validated = model / "fold_0" / "validation"
    for arguments in (
        ["doctor", "1", *where],
        ["plan", "1", "--memory-gb", "1", *where],
        ["preprocess", "-d", "1", "-c", "2d", "-np", "2", *where],
        ["train", "1", "2d", "0", "--epochs", "1", "--iterations", "2", "-device", "cpu", *where],
        ["predict", "-i", images, "-o", root / "out", "-m", model, "-f", "0", "-device", "cpu"],
        ["evaluate", labels, validated, "-o", root / "scores.json", "--chill"],
        ["report", model / "fold_0", "-o", root / "report", *where],
        ["export", model, "--to", "nnunet", "-o", root / "theirs"],
        ["export", model, "--to", "zip", "-o", root / "ours.zip"],
        ["import", root / "theirs", "-o", root / "imported"],
        ["import", root / "ours.zip", "-o", root / "unpacked"],
        ["verify", root / "out"],
        ["fsck", "1", *where],
    ):
        command = [*alone, sys.executable, "-m", "nnseg", *map(str, arguments)]
        done = subprocess.run(
            command, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=600
        )
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    assert list((root / "out").glob("*.nii.gz"))
    assert list((root / "report").glob("*.html"))


def can_run(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def test_the_guard_finds_a_connection() -> None:
    call = (
        "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 1)\nexcept OSError: 0"
    )
    program = GUARD.split("from nnseg.cli")[0] + call
    assert run(program, "[]").returncode == 99


def run(program: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


# ---------------------------------------------------------------- what it runs on


def dependencies() -> set[str]:
    text = (CHECKOUT / "pyproject.toml").read_text("utf-8")
    block = text.partition("\ndependencies = [")[2].partition("\n]")[0]
    found = re.findall(r'^  "([\w.-]+)', block, re.M)
    assert len(found) > 10
    return {plain(name) for name in found}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, tuple[str, str]]:
    """Version and hash of each package of requirements-cpu.txt."""
    lines = (CHECKOUT / "requirements-cpu.txt").read_text("utf-8").splitlines()
    matches = [HASHED.fullmatch(line) for line in lines if not line.startswith("#")]
    assert None not in matches
    return {match[1]: (match[2], match[3]) for match in matches if match}


@pytest.mark.fault("S15")
def test_every_package_is_pinned_by_its_hash_at_the_version_of_the_constraints() -> None:
    text = (CHECKOUT / "constraints-cpu.txt").read_text("utf-8")
    constraints = {
        plain(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", text, re.M)
    }
    pinned = {name: version for name, (version, _) in pins().items()}
    assert pinned.items() <= constraints.items()
    assert dependencies() <= pinned.keys()


@pytest.mark.fault("S15")
def test_whatever_a_pinned_package_needs_is_pinned() -> None:
    found = pins()
    needed: set[str] = set()
    for name, (version, _) in found.items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if installed.version.partition("+")[0] == version:
            needs = (need for need in installed.requires or () if ";" not in need)
            needed |= {plain(re.split(r"[\s<>=!~\[(]", need)[0]) for need in needs}
    assert needed
    assert needed <= found.keys()


@pytest.mark.fault("S15")
def test_the_bill_of_materials_names_the_same_packages_by_the_same_hashes() -> None:
    bill = json.loads((CHECKOUT / "sbom.cdx.json").read_text("utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    listed = {
        one["name"]: (one["version"], one["hashes"][0]["content"]) for one in bill["components"]
    }
    assert listed == pins()
    references = {one["bom-ref"] for one in bill["components"]} | {"nnseg"}
    assert {one["ref"] for one in bill["dependencies"]} == references
    assert {to for one in bill["dependencies"] for to in one["dependsOn"]} <= references
    (ours,) = (one["dependsOn"] for one in bill["dependencies"] if one["ref"] == "nnseg")
    assert {to.partition("@")[0].removeprefix("pkg:pypi/") for to in ours} == dependencies()


@pytest.mark.parametrize("file", ["requirements-cpu.txt", "sbom.cdx.json", "SECURITY.md"])
def test_no_file_says_where_a_package_is_to_come_from(file: str) -> None:
    text = (CHECKOUT / file).read_text("utf-8")
    assert not re.search(r"https?://|--(extra-)?index-url|--find-links|file:/", text)


@pytest.mark.fault("S13", "S15")
def test_the_policy_says_whom_to_tell_and_what_is_promised() -> None:
    text = (CHECKOUT / "SECURITY.md").read_text("utf-8")
    for part in ("## Tell us", "## Supported versions", "## What is promised", "## What is not"):
        assert part in text
    assert re.search(r"\S+@\S+", text)
    assert "loopback" in text
