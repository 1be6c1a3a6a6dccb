"""The n-th call that changes a file fails, or the process dies in it: for every n, if need be."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from injection import FAULTS, Call, Fault, Outcome, Warm
from oracle import LEFT_OUT, UNFINISHED, Tree, differences, half_files, neither_old_nor_new, tree_of
from roots import (
    DATASET,
    PLAN,
    PREPROCESS,
    Right,
    copy_models,
    copy_root,
    fold_of,
    own_raw,
)
from tallies import Tally

DATA_JOBS = {"preprocess": 2, "preprocess again": 1, "plan": 1, "plan again": 1}  # calls in short
FOLDS = (fold_of("0"), fold_of("1"))
MODEL = FOLDS[0].parent
ZIP = Path("out/model.zip")
RULES = Path("out/rules.json")
LABELS = Path("raw") / DATASET / "labelsTr"
SCORED = ("--overlap", "--chill")
NAMED = ("-djfile", LABELS.parent / "dataset.json")
APPLIED = ("-o", Path("out/applied"))
MODEL_JOBS = {  # what each begins with, and what it does; a Path is below the root
    "find-best": ((), ("find-best", "1")),
    "find-best again": ((("find-best", "1", "-f", "0"),), ("find-best", "1")),
    "export": ((), ("export", MODEL, "--to", "zip", "-o", ZIP)),
    "import": (
        (("export", MODEL, "--to", "zip", "-o", ZIP),),
        ("import", ZIP, "-o", Path("out/models")),
    ),
    "ensemble": ((), ("ensemble", "-i", FOLDS[0] / "validation", "-o", Path("out/mean"))),
    "evaluate": (
        (),
        ("evaluate", LABELS, FOLDS[0] / "validation", "-o", Path("out/scores.json"), *SCORED),
    ),
    "postprocess": (
        (),
        ("postprocess", "-i", FOLDS[0] / "validation", "-ref", LABELS, "-o", RULES),
    ),
    "apply": (
        (("postprocess", "-i", FOLDS[0] / "validation", "-ref", LABELS, "-o", RULES),),
        ("postprocess", "--apply", RULES, "-i", FOLDS[0] / "validation", *NAMED, *APPLIED),
    ),
}
WITH_TORCH = {
    "export to ONNX": ((), ("export", MODEL, "--to", "onnx", "-o", Path("out/onnx"))),
    "export to nnU-Net": ((), ("export", MODEL, "--to", "nnunet", "-o", Path("out/theirs"))),
    "import of nnU-Net's": (
        (("export", MODEL, "--to", "nnunet", "-o", Path("out/theirs")),),
        ("import", Path("out/theirs"), "-o", Path("out/ours")),
    ),
}
ALL_OR_NOTHING = ("import", *WITH_TORCH)
SLOWEST = [("export to ONNX", kind) for kind in ("full", "broken once", "killed")]
SHORT = [("2d", job, kind, count) for job, count in DATA_JOBS.items() for kind in FAULTS]
SHORT += [("models", job, kind, 1) for job in MODEL_JOBS for kind in FAULTS]
LONG = [("2d", job, kind, None) for job in DATA_JOBS for kind in FAULTS]
LONG += [("linked", job, kind, None) for job in list(DATA_JOBS)[:2] for kind in FAULTS]
LONG += [("models", job, kind, None) for job in (*MODEL_JOBS, *WITH_TORCH) for kind in FAULTS]
LONG = [sweep for sweep in LONG if sweep[1:3] not in SLOWEST]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command, where it is run, what copies the root there, and its files before and after."""

    arguments: tuple[str, ...]
    run: Callable[..., Outcome]
    root: Path  # always the same, since some records say where they are
    start: Callable[[], object]
    written: Path  # the folder whose files it changes
    all_or_nothing: bool
    old: Tree
    new: Tree
    calls: tuple[Call, ...]  # of the undisturbed run


@pytest.fixture(scope="module")
def job_of(
    warm: Warm,
    right_of: Callable[[str], Right],
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str], Job]:
    """Gives a job of a variant, undisturbed: on nothing, or where there is something old."""
    made: dict[tuple[str, str], Job] = {}

    def give(variant: str, name: str) -> Job:
        if (variant, name) not in made:
            folder = tmp_path_factory.mktemp("job")
            if variant == "models":
                process = request.getfixturevalue("warm_models")
                trained = request.getfixturevalue("trained")
                made[variant, name] = of_models(name, trained, folder, process)
            else:
                made[variant, name] = of_data(name, right_of(variant), folder, warm)
        return made[variant, name]

    return give


def of_data(name: str, right: Right, folder: Path, warm: Warm) -> Job:
    """Give a job that writes preprocessed/."""
    begin, arguments = folder / "begin", PLAN if "plan" in name else PREPROCESS
    if name == "preprocess":
        begin = right.planned
    elif name == "plan":
        copy_root(right.planned, begin, preprocessed=False)
    else:
        copy_root(right.done, begin)
        raw = own_raw(begin)
        for part in ("imagesTr", "labelsTr"):
            first, second, *_, last = sorted((raw / part).iterdir())
            shutil.copy(first, second)
            if name == "preprocess again":
                last.unlink()
        if name == "plan again":
            arguments = (*PLAN, "--memory-gb", "2")
    root, has_data = folder / "root", (begin / "preprocessed").exists()
    return undisturbed(
        arguments,
        root,
        lambda: copy_root(begin, root, preprocessed=has_data),
        lambda *args, **options: warm.run(root, *args, **options),
        written=root / "preprocessed",
    )


def of_models(name: str, trained: Path, folder: Path, warm: Warm) -> Job:
    """Give a job that writes results/ or out/."""
    before, command = (MODEL_JOBS | WITH_TORCH)[name]
    root, begin = folder / "root", folder / "begin"
    copy_models(trained, root)

    def run(*arguments: str, **options: Fault) -> Outcome:
        return warm.run(root, *arguments, below="", **options)

    for arguments in before:
        done = run(*below(root, arguments))
        assert done.code == 0, done.said
    root.rename(begin)
    return undisturbed(
        below(root, command),
        root,
        lambda: copy_models(begin, root),
        run,
        written=root,
        all_or_nothing=name in ALL_OR_NOTHING,
    )


def below(root: Path, arguments: tuple[str | Path, ...]) -> tuple[str, ...]:
    """Have the paths among some arguments begin at a root."""
    return tuple(str(root / part) if isinstance(part, Path) else part for part in arguments)


def undisturbed(
    arguments: tuple[str, ...],
    root: Path,
    start: Callable[[], object],
    run: Callable[..., Outcome],
    *,
    written: Path,
    all_or_nothing: bool = False,
) -> Job:
    """Do a job without a fault, to know what it leaves and the calls that it makes."""
    start()
    old = tree_of(written)
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.said
    new = tree_of(written)
    assert new != old, "a job that changes nothing shows nothing"
    shutil.rmtree(root)
    return Job(
        arguments=arguments,
        run=run,
        root=root,
        start=start,
        written=written,
        all_or_nothing=all_or_nothing,
        old=old,
        new=new,
        calls=outcome.calls,
    )


def inject(job: Job, fault: Fault) -> tuple[Outcome, list[str]]:
    """Run a job with a fault on a copy of its start, then without; list all that is wrong."""
    job.start()
    outcome = job.run(*job.arguments, fault=fault)
    found = tree_of(job.written)
    wrong = half_files(job.written)
    wrong += neither_old_nor_new(found, job.old, job.new, all_or_nothing=job.all_or_nothing)
    if fault.action == "kill":
        if outcome.hit and outcome.code == 0:
            wrong.append("went on when it was killed")
    else:
        wrong += misbehaviour(job, outcome, found)
    if found != job.new:  # some commands refuse to do again what they have done
        again = job.run(*job.arguments)
        if again.code != 0:
            wrong.append(f"the next run ends with {again.code}: {again.said}")
        wrong += [
            f"after the next run, {text}" for text in differences(tree_of(job.written), job.new)
        ]
    shutil.rmtree(job.root)
    where = outcome.hit and f"{outcome.hit.kind} of {outcome.hit.path.name}"
    return outcome, [f"{fault} ({where}): {text}" for text in wrong]


def misbehaviour(job: Job, outcome: Outcome, found: Tree) -> list[str]:
    """List what is wrong with how a command tells that it could not write.

    It ends with 4 and names a path, or with 6 where it has done a part. It may go on, and do all,
    where only its log or its record could not be written, a file not be removed, the folder of a
    finished one not be synced, or where it can copy what could not be linked to.
    """
    wrong = []
    if "Traceback" in outcome.said or "bug of ours" in outcome.said:
        wrong.append(f"no message for a user: {outcome.said}")
    hit = outcome.hit
    if outcome.code == 0:
        wrong += [f"ended with 0, but {text}" for text in differences(found, job.new)]
        if hit is not None and not is_needless(hit, outcome.calls):
            wrong.append("ended with 0")
    elif outcome.code not in (4, 6):
        wrong.append(f"ended with {outcome.code}: {outcome.said}")
    elif str(job.root) not in outcome.said:
        wrong.append(f"names no path: {outcome.said}")
    return wrong


def is_needless(call: Call, calls: tuple[Call, ...]) -> bool:
    """Whether all can be done without a call, as without making a folder that is there.

    Logs may have the name of an unfinished file; a zip is opened in another way if one fails.
    """
    others = [c for c in calls if c.number != call.number and c.path == call.path]
    is_log = LEFT_OUT.fullmatch(UNFINISHED.sub("", call.path.name)) is not None
    is_folder = call.path.is_dir() or any(c.kind == "mkdir" for c in others)
    is_again = call.kind == "open" and any(c.kind == "open" for c in others)
    return is_log or call.kind in ("remove", "link") or is_folder or is_again


@pytest.mark.fault("R05", "B1.1")
@pytest.mark.parametrize(
    ("variant", "name", "kind", "count"),
    [*SHORT, *(pytest.param(*sweep, marks=pytest.mark.slow) for sweep in LONG)],
)
def test_a_fault_leaves_each_file_old_or_new_and_the_next_run_ends_undisturbed(
    job_of: Callable[[str, str], Job],
    tally: Tally,
    variant: str,
    name: str,
    kind: str,
    count: int | None,
) -> None:
    job = job_of(variant, name)
    total = sum(call.kind in FAULTS[kind].kinds for call in job.calls)
    numbers = list(range(1, total + 1))
    if count is not None:
        numbers = random.Random(f"{name} {kind}").sample(numbers, count)
    wrong, hits, kept = [], 0, 0
    for number in numbers:
        outcome, found = inject(job, replace(FAULTS[kind], at=number))
        hits += outcome.hit is not None
        kept += outcome.hit is not None and not found
        wrong += found
    tally(f"n-th call, {name}", kept, hits, states={kind: hits})
    assert not wrong, "\n".join(wrong)
    assert hits >= 0.9 * len(numbers), "threads may save a call, not many"
