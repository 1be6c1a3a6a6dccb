"""The house rules that a machine can hold: rooms, torch, names, faces and the environment."""

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PACKAGE = CHECKOUT / "nnseg"
FACE = "nnseg"  # nnseg/__init__.py: re-exports the verbs of pipeline and the records

# Rooms from left to right; an import leads to a room further right, or stays in its own.
ROOMS = (
    ("__main__",),
    ("cli",),
    ("console",),
    (FACE,),
    ("verbs.demo", "verbs.running", "verbs.elsewhere"),
    ("verbs.scheduling",),
    ("pipeline",),
    ("verbs.suspecting", "verbs.info", "verbs.verifying", "verbs.reporting"),
    ("verbs.training",),
    ("verbs.choosing", "verbs.surveying", "verbs.gathering", "verbs.sources"),
    ("verbs.validating", "verbs.fold_task"),
    ("verbs.prepare", "verbs.cascade"),
    ("verbs.measuring",),
    ("verbs.planned_fold",),
    ("verbs.outlook",),
    ("verbs.comparing",),
    ("verbs.postprocessing", "verbs.ensembling", "verbs.probability_folders"),
    ("verbs.applying",),
    (
        "verbs.planning",
        "verbs.porting",
        "verbs.predicting",
        "verbs.visit",
        "verbs.scoring",
        "verbs.pretrained",
        "verbs.reporter",
        "verbs.agenda",
        "verbs.claims",
        "verbs.other_results",
    ),
    ("report", "proof", "predicted_folder", "exchange", "fsck", "intake", "trackers", "diagnosis"),
    ("model_card",),
    ("components",),
    ("splits", "doctor"),
    ("phantom",),
    ("predictor",),  # the stages: each may know those that come before it in the story
    ("choose", "ranking"),
    ("postprocess",),
    ("ensemble", "scores.confidence"),
    ("scores.certainty",),
    ("averaging",),
    ("scores.summary_json", "scores.tables"),
    ("suspects.label_errors",),
    ("suspects.corrections",),
    ("scores.comparison", "scores.metrics"),
    ("evaluate", "scores.statistics", "scores.uncertainty"),
    ("scores.detection", "scores.intervals"),
    ("inference",),
    ("predict",),
    ("restore",),
    ("train",),
    ("learning.step",),
    ("learning.state",),
    ("learning.task",),
    ("learning.resume",),
    ("learning.course",),
    ("learning.recipe",),
    ("learning.optimize",),
    ("learning.batches",),
    ("estimate", "probabilities"),
    ("preprocess",),
    ("plan",),
    ("decisions",),
    ("fit", "target_spacing"),
    ("topology",),
    ("fingerprint",),
    ("store", "checkpoint", "runlog", "parallel", "workers", "lock", "jobs", "validated"),
    ("image", "model", "networks", "losses"),
    ("dataset", "labels", "volume", "folders"),
    ("record", "plain_records"),
    (
        "commit",
        "registry",
        "axes",
        "frame",
    ),  # commit is below record, which writes whole files through it
    ("errors",),
    ("verbs", "learning", "scores", "suspects"),
)
# Folders whose files are rooms of their own; the folders themselves have an empty __init__.py.
PARTED = ("verbs", "learning", "scores", "suspects")
STORES = {"nnseg.store", "nnseg.checkpoint"}  # they keep records of stages, never do their work
DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "base"}
RECORD = re.compile(r"[A-Z]\w*[a-z]\w*")  # a class's name; functions and constants look otherwise
TORCH = {"torch", "torchvision", "batchgenerators", "acvl_utils", "safetensors.torch"}
# What is known of networks before one is built.
UNBUILT = tuple(
    f"nnseg.model.{name}" for name in ("architecture", "backbone_records", "counts", "kind")
)
COMMAND_LINE = {"nnseg.cli.arguments", "nnseg.cli.main"}  # they alone read and set the environment
ENVIRONMENT = {"environ", "environb", "getenv", "putenv"}


def sources() -> dict[str, Path]:
    """Every module of the package, by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(CHECKOUT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = sources()
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in MODULES.items()}


def room_of(module: str) -> int:
    """The room's place from the left; KeyError if the module has none."""
    parts = module.split(".")[1:]
    inside = bool(parts) and parts[0] in PARTED
    room = FACE if module == FACE else ".".join(parts[: 2 if inside else 1])
    for place, names in enumerate(ROOMS):
        if room in names:
            return place
    raise KeyError(module)


def uses_torch(module: str) -> bool:
    """Whether `module` is of the half that may import torch."""
    if module.startswith(UNBUILT):
        return False
    halves = ("nnseg.model.", "nnseg.networks.", "nnseg.losses.", "nnseg.components.")
    return module.startswith(halves) or module in {
        "nnseg.components",
        "nnseg.checkpoint",
        "nnseg.train",
        "nnseg.learning.step",
        "nnseg.learning.state",
        "nnseg.learning.task",
        "nnseg.learning.resume",
        "nnseg.learning.course",
        "nnseg.learning.recipe",
        "nnseg.learning.optimize",
        "nnseg.learning.batches",
        "nnseg.predict",
        "nnseg.inference",
        "nnseg.ensemble",
        "nnseg.predictor",
        "nnseg.verbs.pretrained",
        "nnseg.exchange.nnunet_model",
        "nnseg.exchange.nnunet_folder",
        "nnseg.exchange.model_zip",
        "nnseg.exchange.chosen",
        "nnseg.exchange.onnx",
    }


def imports(tree: ast.AST) -> Iterator[str]:
    """Every dotted name that is imported, at any depth: `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from (f"{prefix}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and dotted(node.func).split(".")[-1] in {
            "import_module",
            "__import__",
        }:
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value


def inner_imports(tree: ast.AST) -> Iterator[str]:
    """The modules of nnseg that are imported; FACE where a name of nnseg/__init__.py is."""
    for name in imports(tree):
        if name.split(".")[0] == FACE and name != "nnseg.__version__":
            while name not in MODULES:
                name = name.rpartition(".")[0]
            yield name


def dotted(node: ast.AST) -> str:
    """`a.b.c` of such an expression; what cannot be named so is left out."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def wrong_directions(module: str, tree: ast.AST) -> list[str]:
    """The imports of `module` that lead leftwards."""
    here = room_of(module)
    kept = records_imported(tree) if module in STORES else set()
    return [name for name in inner_imports(tree) if room_of(name) < here and name not in kept]


def records_imported(tree: ast.AST) -> set[str]:
    """The stages of which a file that keeps records imports classes and nothing else."""
    stages = {f"nnseg.{name}" for name in ("fingerprint", "plan", "preprocess")}
    names: dict[str, list[str]] = {}
    for name in imports(tree):
        stage = ".".join(name.split(".")[:2])
        if stage in stages:
            names.setdefault(stage, []).append(name.removeprefix(f"{stage}."))
    return {stage for stage, found in names.items() if all(RECORD.fullmatch(n) for n in found)}


def torch_imports(tree: ast.AST) -> list[str]:
    """The imports that bring torch with them."""
    return [
        name
        for name in imports(tree)
        if any(name == root or name.startswith(f"{root}.") for root in TORCH)
    ]


def environment(module: str, tree: ast.AST) -> list[str]:
    """Where a module reads or sets the environment, which only the command line may."""
    if module in COMMAND_LINE:
        return []
    found = [name for name in imports(tree) if name in {f"os.{part}" for part in ENVIRONMENT}]
    return found + [
        f"line {node.lineno}: {dotted(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in ENVIRONMENT
    ]


def defines_something(tree: ast.Module, lazy_table: bool) -> list[str]:
    """What an `__init__.py` holds besides imports, `__all__`, `__version__` and its docstring.

    `lazy_table` also allows what a lazy import needs: a table of literals, `__getattr__` and
    `__dir__`, and imports for the type checker.
    """
    found = []
    for node in tree.body:
        names = [dotted(target) for target in getattr(node, "targets", [])]
        if isinstance(node, ast.AnnAssign):
            names = [dotted(node.target)]
        allowed = (
            isinstance(node, ast.Import | ast.ImportFrom)
            or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            or bool(names and set(names) <= {"__all__", "__version__"})
        )
        if lazy_table:
            allowed |= isinstance(node, ast.FunctionDef) and node.name in {"__getattr__", "__dir__"}
            allowed |= bool(names) and isinstance(getattr(node, "value", None), ast.Dict)
            allowed |= isinstance(node, ast.If) and dotted(node.test).endswith("TYPE_CHECKING")
        if not allowed:
            found.append(ast.unparse(node).splitlines()[0])
    return found


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_room(module: str) -> None:
    assert room_of(module) >= 0


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_rightwards_only(module: str) -> None:
    assert wrong_directions(module, TREES[module]) == []


def test_imports_make_no_circle() -> None:
    graph = {name: set(inner_imports(tree)) - {name} for name, tree in TREES.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize("module", [name for name in MODULES if not uses_torch(name)])
def test_only_the_training_half_imports_torch(module: str) -> None:
    assert torch_imports(TREES[module]) == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_absolute(module: str) -> None:
    assert [name for name in imports(TREES[module]) if name.startswith(".")] == []


@pytest.mark.parametrize("module", [n for n, p in MODULES.items() if p.name == "__init__.py"])
def test_init_files_only_re_export(module: str) -> None:
    assert defines_something(TREES[module], lazy_table=module == FACE) == []


@pytest.mark.parametrize("module", MODULES)
def test_only_the_command_line_knows_the_environment(module: str) -> None:
    assert environment(module, TREES[module]) == []


def test_no_file_is_a_drawer_and_no_folder_is_deep() -> None:
    for path in MODULES.values():
        assert not DRAWERS & set(path.with_suffix("").parts[len(CHECKOUT.parts) :]), path
        assert len(path.relative_to(PACKAGE).parts) <= 3, path  # two folders and the file


def test_the_torch_free_half_leaves_torch_unloaded() -> None:
    free = [name for name in MODULES if not uses_torch(name) and name != "nnseg.__main__"]
    promised = {"nnseg", "nnseg.plan", "nnseg.doctor.examine", "nnseg.preprocess", "nnseg.evaluate"}
    assert promised <= set(free)
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    if 'torch' in sys.modules:\n"
        "        sys.exit(name + ' loads torch')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *free],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nnseg.errors", "import nnseg.axes"),
        ("nnseg.record", "from nnseg import labels"),
        ("nnseg.image.crop", "def f():\n    from nnseg.plan import Plan"),
        ("nnseg.fingerprint", "from nnseg import plan"),
        ("nnseg.store", "from nnseg.preprocess import preprocess_case"),
        ("nnseg.checkpoint", "from nnseg import plan"),
        ("nnseg.checkpoint", "from nnseg.train import TrainState"),
        ("nnseg.volume", "from nnseg.preprocess import Placement"),
        ("nnseg.plan", "from nnseg import make_plan"),  # a name of the face, not a module
        ("nnseg.pipeline", "import importlib\nimportlib.import_module('nnseg.cli')"),
    ],
)
def test_a_leftward_import_is_found(module: str, source: str) -> None:
    assert len(wrong_directions(module, ast.parse(source))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("nnseg.record", "from nnseg.commit import write_whole"),
        ("nnseg.plan", "from nnseg.fingerprint import Fingerprint"),
        ("nnseg.store", "from nnseg.preprocess import Placement"),
        ("nnseg.image.crop", "from nnseg.image import intensity"),
        ("nnseg.cli", "import numpy\nfrom nnseg import __version__, record"),
    ],
)
def test_a_rightward_import_passes(module: str, source: str) -> None:
    assert wrong_directions(module, ast.parse(source)) == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch.nn.functional as F",
        "def f():\n    from torch import nn",
        "from batchgenerators.utilities import file_and_folder_operations",
        "from acvl_utils import cropping_and_padding",
        "from safetensors.torch import load_file",
    ],
)
def test_an_import_of_torch_is_found(source: str) -> None:
    assert len(torch_imports(ast.parse(source))) == 1
    assert torch_imports(ast.parse("from safetensors.numpy import load_file")) == []


@pytest.mark.parametrize("source", ["os.environ['HOME']", "from os import getenv"])
def test_a_look_at_the_environment_is_found(source: str) -> None:
    assert len(environment("nnseg.store", ast.parse(source))) == 1
    assert environment("nnseg.cli.arguments", ast.parse(source)) == []


@pytest.mark.parametrize(
    ("source", "allowed", "allowed_in_face"),
    [
        ("'''Doc.'''\nfrom nnseg.plan import Plan\n__all__ = ['Plan']", True, True),
        ("_HOMES = {'plan': 'nnseg.pipeline'}\ndef __getattr__(name): ...", False, True),
        ("def plan(): ...", False, False),
        ("import os\nHOME = os.getcwd()", False, False),
    ],
)
def test_a_face_with_work_in_it_is_found(source: str, allowed: bool, allowed_in_face: bool) -> None:
    assert (defines_something(ast.parse(source), lazy_table=False) == []) is allowed
    assert (defines_something(ast.parse(source), lazy_table=True) == []) is allowed_in_face
