"""Commands on a small dataset, to each of which something befalls while it runs."""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from endings import IDLE
from injection import NONE, RANKS_IDLE, Fault, Forks, Outcome
from oracle import Tree, tree_of

DATASET = "Dataset001_Flat"  # the phantoms of `flat`: six cases and three scans, fold 0 trained
CPU = ("-device", "cpu", "--precision", "fp32")
PREPROCESS = ("preprocess", "-d", "1", "-np", "2")
STEPS = ("--iterations", "3", "--validation-iterations", "1", "--batch-size", "2")
TRAIN = ("train", "1", "2d", "1", "--epochs", "4", *STEPS, *CPU, "--no-validation")

Befalls = Sequence[Sequence[object]]


class Struck(Forks):
    """The process that runs them in forks of itself; see struck_forks.py."""

    def __init__(self, library: Path, scratch: Path, root: Path) -> None:
        """Rehearse a training, a prediction and a preprocessing on `root`, which is ours."""
        super().__init__(library, scratch, "struck_forks.py")
        for command in (TRAIN, predict(root, root / "out"), PREPROCESS):
            self.send({"arguments": [*command, "--root", str(root)], "output": None})

    def run(
        self,
        root: Path,
        *arguments: str,
        befalls: Befalls = (),
        fault: Fault = NONE,
        below: str = "",
    ) -> Outcome:
        """Run a command to its end; what is to befall it are functions of strikes.py, and words."""
        request = {
            "arguments": [*arguments, "--root", str(root)],
            "befalls": [[str(word) for word in one] for one in befalls],
        }
        several = any(one[0] == "two_ranks" for one in befalls)
        return self.ask(request, root, fault, below=below, idle=RANKS_IDLE if several else IDLE)


def predict(root: Path, out: Path, *extra: str) -> tuple[str, ...]:
    """Give the command that segments the scans of a root with its fold 0."""
    images = root / "raw" / DATASET / "imagesTs"
    model = root / "results" / DATASET / "nnseg" / "2d"
    return ("predict", "-i", str(images), "-o", str(out), "-m", str(model), "-f", "0", *CPU, *extra)


def copy_of(root: Path, target: Path) -> Path:
    """Copy a root, with the times of its files."""
    return Path(shutil.copytree(root, target, symlinks=True))


def store_of(root: Path) -> Path:
    """Give the folder of the preprocessed cases."""
    return root / "preprocessed" / DATASET / "nnseg" / "2d"


def without_store(root: Path) -> Path:
    """Take the preprocessed cases away, and keep their plan."""
    shutil.rmtree(store_of(root))
    return root


def fold_of(root: Path) -> Path:
    """Give the folder that TRAIN writes."""
    return root / "results" / DATASET / "nnseg" / "2d" / "fold_1"


def final_weights(root: Path) -> str:
    """Give the SHA-256 of the weights that TRAIN has left."""
    return str(json.loads((fold_of(root) / "checkpoint_final.json").read_text())["weights_sha256"])


def results_in(out: Path) -> Tree:
    """Hash what is proven of a prediction: label maps, and the proofs of them."""
    return {name: value for name, value in tree_of(out).items() if name.startswith("2d_")}


def since(note: Path) -> float:
    """Give the seconds that have gone by since a strike took a note."""
    return time.monotonic() - float(note.read_text())


def fits_user(outcome: Outcome) -> bool:
    """Whether what was said is for a user: no traceback, no bug."""
    return "Traceback" not in outcome.said and "bug of ours" not in outcome.said
