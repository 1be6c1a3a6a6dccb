"""Commands that meet bad inputs: which are run on what, and what they must have left."""

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from bad_inputs import (
    DATA,
    DATASET,
    Array,
    BadFile,
    BadInput,
    Data,
    Refused,
    copy_data,
    write_files,
)
from bad_inputs_oracle import (
    Ended,
    Forks,
    Judgement,
    judge,
    load,
    wrong_with_arrays,
    wrong_with_predicted,
    wrong_with_prepared,
)

NETWORKS = {"volumes": "3d_fullres", "pictures": "2d"}  # that predict, and of what
ONE_STEP = "--epochs 1 --iterations 1 --validation-iterations 1 --batch-size 2 --no-validation"
CPU = ("-device", "cpu")
PATIENCE_WITH_TORCH = 300.0  # seconds; importing it takes long where others do so, too
PREDICTED = 3  # cases of a spoilt folder of images: the bad one, and two good ones


class Preparing:
    """Runs `plan_and_preprocess` and `preprocess` on spoilt copies of the phantoms."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.forks = Forks(scratch / "runs")
        self.drawn = {kind: draw(scratch / kind) for kind, draw in DATA.items()}
        self.usual = {}
        for kind in DATA:
            root = self.fresh(kind)
            self.forks.rehearse(*_plan(root))
            self.usual[kind] = self.forks.run(*_plan(self.fresh(kind)))
            wrong = list(wrong_with_prepared(self.drawn[kind], root))
            assert self.usual[kind].code == 0, self.usual[kind].said
            assert not wrong, wrong
        shutil.copytree(self.fresh("volumes"), scratch / "planned", dirs_exist_ok=True)
        planned = self.forks.run("plan", "1", "--root", str(scratch / "planned"))
        assert planned.code == 0, planned.said

    def fresh(self, kind: str) -> Path:
        """Give a root with the phantoms of a kind, in the place of the one before."""
        root = self.scratch / "root"
        clear(root)
        copy_data(self.drawn[kind], root / "raw" / DATASET)
        return root

    def judge(self, bad: BadInput) -> Judgement:
        """Have a spoilt dataset planned and preprocessed."""
        root = self.fresh(bad.drawn)
        data = replace(
            self.drawn[bad.drawn],
            folder=root / "raw" / DATASET,
            cases=dict(self.drawn[bad.drawn].cases),
        )
        bad.spoil(data)
        ended = self.forks.run(*_plan(root))
        if isinstance(bad.verdict, Refused):
            return judge(bad, ended, self.usual[bad.drawn], _left_by_refusal(root))
        return judge(bad, ended, self.usual[bad.drawn], wrong_with_prepared(data, root))

    def judge_after_plan(self, bad: BadInput) -> Judgement:
        """Have a dataset preprocessed of which a file went bad after it was planned."""
        root = self.scratch / "root"
        clear(root)
        shutil.copytree(self.scratch / "planned", root)
        data = replace(self.drawn["volumes"], folder=root / "raw" / DATASET)
        bad.spoil(data)
        ended = self.forks.run("preprocess", "-d", "1", "--root", str(root))

        def wrong() -> Iterator[str]:
            folder = root / "preprocessed" / DATASET / "nnseg" / "3d_fullres"
            for case in [case for case in data.cases if case != "case_0"]:
                yield from wrong_with_arrays(folder, case, data.cases[case])
            yield from (f"{path.name} is there" for path in folder.glob("case_0*"))

        bad = replace(bad, names=(*bad.names, "case case_0"))
        return judge(bad, ended, self.usual["volumes"], wrong())

    def close(self) -> None:
        self.forks.close()


class Predicting:
    """Runs `predict` on spoilt images, with networks that have learnt for a step."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.forks = Forks(scratch / "runs")
        self.drawn: dict[str, Data] = {}
        self.right: dict[str, dict[str, Array]] = {}  # the label maps of good phantoms, (x, y, z)
        self.usual: dict[str, Ended] = {}

    def learn(self, kind: str) -> None:
        """Train a network for phantoms of a kind, if there is none, and predict the good ones."""
        if kind in self.drawn:
            return
        root = self.scratch / f"of {kind}"
        data = self.drawn[kind] = DATA[kind](root / "raw" / DATASET)
        where = ("--root", str(root))
        train = ("train", "1", NETWORKS[kind], "0", *ONE_STEP.split(), *CPU, *where)
        self.forks.rehearse("plan", "1", *where)
        self.forks.rehearse(*train)  # in vain, as nothing is preprocessed, so without threads
        self.forks.rehearse(*_plan(root))
        done = self.forks.run(*train, patience=PATIENCE_WITH_TORCH)
        assert done.code == 0, (done.code, done.said)
        images, out = data.folder / "imagesTr", self.scratch / f"right {kind}"
        self.forks.rehearse(*self._command(kind, images, self.scratch / f"rehearsal {kind}"))
        usual = self.forks.run(*self._command(kind, images, out), patience=PATIENCE_WITH_TORCH)
        assert usual.code == 0, usual.said
        self.usual[kind] = usual
        self.right[kind] = {c: load(out / f"{c}{data.ending}")[0] for c in data.cases}

    def judge(self, bad: BadInput) -> Judgement:
        """Have the images of a spoilt dataset predicted."""
        self.learn(bad.drawn)
        folder, out = self.scratch / "spoilt", self.scratch / "out"
        clear(folder)
        clear(out)
        data = copy_data(self.drawn[bad.drawn], folder)
        for case in list(data.cases)[PREDICTED:]:
            data.remove(case)
        bad.spoil(data)
        ended = self.forks.run(*self._command(bad.drawn, folder / "imagesTr", out))
        return judge(bad, ended, self.usual[bad.drawn], self._wrong(bad, data, out))

    def judge_together(self, kind: str, files: Sequence[BadFile]) -> list[Judgement]:
        """Have a folder predicted that holds a case for each bad file, and the good ones."""
        self.learn(kind)
        folder, out = self.scratch / f"all {kind}", self.scratch / f"out {kind}"
        data = copy_data(self.drawn[kind], folder)
        names = {f"bad_{number:03d}": bad for number, bad in enumerate(files)}
        for name, bad in names.items():
            spoilt = copy_data(self.drawn[kind], self.scratch / "one")
            write_files(bad, spoilt, spoilt.image())
            for path in (spoilt.folder / "imagesTr").glob("case_0*"):
                path.rename(folder / "imagesTr" / path.name.replace("case_0", name))
            clear(spoilt.folder)
        ended = self.forks.run(*self._command(kind, folder / "imagesTr", out))
        assert ended.code == 6, ended.said
        for case in data.cases:
            wrong = list(wrong_with_predicted(case, data.image(case), out, self.right[kind][case]))
            assert not wrong, wrong
        return [
            self._judge_one(kind, name, bad, ended, folder / "imagesTr", out)
            for name, bad in names.items()
        ]

    def _judge_one(
        self, kind: str, name: str, bad: BadFile, ended: Ended, images: Path, out: Path
    ) -> Judgement:
        """Judge what was said and done of one of many cases."""
        lines = [line for line in ended.said.splitlines() if re.search(rf"\b{name}(_|:)", line)]
        refused = any(line.startswith(f"  case {name}: ") for line in lines)
        verdict = bad.verdicts["predicted"]
        one = BadInput(
            name=f"{bad.name}, predicted",
            row=bad.row,
            spoil=lambda data: None,
            verdict=verdict,
            names=(f"{name}_0000{bad.ending}",) if isinstance(verdict, Refused) else (),
            command="predict",
            drawn=kind,
        )

        def wrong() -> Iterator[str]:
            if isinstance(verdict, Refused):
                yield from (f"{path.name} is there" for path in out.glob(f"{name}*"))
            else:
                image = next(images.glob(f"{name}_0000*"))
                if ".nii" not in image.name:
                    image = self.drawn[kind].image()
                yield from wrong_with_predicted(name, image, out, self.right[kind]["case_0"])

        share = ended.seconds / (len(list(images.iterdir())) or 1)
        code = 3 if refused else 0
        said = Ended(code=code, said="\n".join(lines), seconds=share, memory=ended.memory)
        return judge(one, said, self.usual[kind], wrong())

    def _wrong(self, bad: BadInput, data: Data, out: Path) -> Iterator[str]:
        drawn, good = self.drawn[bad.drawn].cases, data.cases
        if isinstance(bad.verdict, Refused):
            others = drawn.keys() - {"case_0"} if bad.verdict.code == 6 else set()
            good = {case: truth for case, truth in data.cases.items() if case in others}
            names = {f"{case}{data.ending}" for case in good}
            found = {path.name for path in out.rglob(f"[!.]*{data.ending}")}
            yield from (f"{name} is there" for name in sorted(found - names))
        for case, truth in good.items():
            of = next((c for c, one in drawn.items() if one.channels is truth.channels), None)
            image = next((data.folder / "imagesTr").glob(f"{_escaped(case)}_0000*"))
            wanted = None if of is None else self.right[bad.drawn][of]
            yield from wrong_with_predicted(case, image, out, wanted)

    def close(self) -> None:
        self.forks.close()

    def _command(self, kind: str, images: Path, out: Path) -> tuple[str, ...]:
        model = self.scratch / f"of {kind}" / "results" / DATASET / "nnseg" / NETWORKS[kind]
        where = ("-i", str(images), "-o", str(out), "-m", str(model))
        return ("predict", *where, *CPU, "--precision", "fp32", "--disable_tta")


def clear(folder: Path) -> None:
    """Remove a folder, whatever rights are left in it."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)


def _plan(root: Path) -> tuple[str, ...]:
    return ("plan_and_preprocess", "-d", "1", "--root", str(root))


def _left_by_refusal(root: Path) -> Iterator[str]:
    """Name what a refused dataset must not have: a plan, and preprocessed cases."""
    for path in (root / "preprocessed").rglob("*"):
        if path.suffix == ".b2nd" or path.parent.name == "plans" or path.name == "fingerprint.json":
            yield f"{path.name} is there"


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
