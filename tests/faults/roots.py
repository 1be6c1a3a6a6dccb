"""Roots of data that commands can be let loose on: copies of one that is right."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import SimpleITK
from injection import Injector, Warm
from oracle import Tree, half_files, tree_of
from tiny import draw, prepare

from nnseg.phantom import write_dataset

DATASET = "Dataset001_Tiny"
PLAN = ("plan", "1")
PREPROCESS = ("preprocess", "-d", "1", "-np", "2")
SHORTEST = ("--epochs", "1", "--iterations", "1", "--validation-iterations", "1")


@dataclass(frozen=True, kw_only=True)
class Right:
    """A dataset as undisturbed commands leave it, planned and done; nobody changes it."""

    planned: Path
    done: Path
    tree: Tree  # of done/preprocessed


def make_right(folder: Path, variant: str, injector: Injector) -> Right:
    """Draw the phantoms of a variant of VARIANTS, plan and preprocess them."""
    planned, done = folder / "planned", folder / "done"
    VARIANTS[variant](planned / "raw" / DATASET)
    do(injector, planned, PLAN)
    copy_root(planned, done)
    do(injector, done, PREPROCESS)
    return Right(planned=planned, done=done, tree=tree_of(done / "preprocessed"))


def draw_slices(raw: Path) -> None:
    """Draw cases of two dimensions, which have one configuration."""
    write_dataset(raw, "2d", cases=6)


def draw_linked(raw: Path) -> None:
    """Draw cases of one spacing, for which two configurations keep the same arrays."""
    write_dataset(raw, "mri", cases=3)
    for path in raw.rglob("*.nii.gz"):
        image = SimpleITK.ReadImage(str(path))
        image.SetSpacing((1.0, 1.0, 1.0))
        SimpleITK.WriteImage(image, str(path))


VARIANTS = {"2d": draw_slices, "linked": draw_linked}


def fold_of(fold: str) -> Path:
    """Give where `make_trained` has a fold, below its root."""
    return Path("results") / DATASET / "nnseg" / "2d" / f"fold_{fold}"


def make_trained(root: Path, warm_torch: Warm) -> Path:
    """Draw four phantoms, and train and validate two folds of a tiny network."""
    prepare(draw(root, DATASET, "2d", cases=4), DATASET, "2d", (1, 32, 24))
    for fold in ("0", "1"):
        outcome = warm_torch.run(root, "train", "1", "2d", fold, *SHORTEST, "-device", "cpu")
        assert outcome.code == 0, outcome.said
    return root


def copy_models(source: Path, target: Path) -> Path:
    """Copy results/ and out/ of a root; its data are linked to, for nothing may change them."""
    target.mkdir()
    for name in ("raw", "preprocessed"):
        (target / name).symlink_to((source / name).resolve())
    for name in ("results", "out"):
        if (source / name).exists():
            shutil.copytree(source / name, target / name)
    return target


def do(injector: Injector, root: Path, arguments: tuple[str, ...]) -> Tree:
    """Run a command that must go well, and give the tree that it leaves."""
    outcome = injector.run(root, *arguments)
    assert outcome.code == 0, outcome.said
    assert not half_files(root / "preprocessed")
    return tree_of(root / "preprocessed")


def copy_root(source: Path, target: Path, *, preprocessed: bool = True) -> Path:
    """Copy a root, files that are one by hard links as one; its raw data are linked to."""
    target.mkdir(parents=True)
    (target / "raw").symlink_to((source / "raw").resolve())
    copied: dict[int, str] = {}

    def copy(path: str, new: str) -> None:
        number = Path(path).stat().st_ino
        if number in copied:
            os.link(copied[number], new)
        else:
            shutil.copy2(path, new)
            copied[number] = new

    if preprocessed:
        shutil.copytree(source / "preprocessed", target / "preprocessed", copy_function=copy)
    return target


def own_raw(root: Path) -> Path:
    """Give a root raw data of its own, which may be changed; return the dataset's folder."""
    linked = (root / "raw").resolve()
    (root / "raw").unlink()
    shutil.copytree(linked, root / "raw")
    return root / "raw" / DATASET
