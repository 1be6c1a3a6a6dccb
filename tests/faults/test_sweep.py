"""The n-th call that changes a file fails, or the process dies in it: for every n, if need be."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from injection import Call, Fault, Outcome, Warm
from oracle import LEFT_OUT, Tree, differences, half_files, neither_old_nor_new, tree_of
from roots import PLAN, PREPROCESS, Right, copy_root, own_raw

FAULTS = {
    "full once": Fault(action="ENOSPC"),
    "full": Fault(action="ENOSPC", lasting=True),
    "broken once": Fault(action="EIO"),
    "killed": Fault(action="kill"),
}
JOBS = {"preprocess": 3, "preprocess again": 3, "plan": 2, "plan again": 2}  # calls in short
SHORT = [("2d", job, kind, count) for job, count in JOBS.items() for kind in FAULTS]
LONG = [("2d", job, kind, None) for job in JOBS for kind in FAULTS]
LONG += [("linked", job, kind, None) for job in list(JOBS)[:2] for kind in ("full once", "killed")]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command, a root to run it on a copy of, and its files before and after."""

    arguments: tuple[str, ...]
    start: Path
    old: Tree
    new: Tree


@pytest.fixture(scope="module")
def job_of(
    warm: Warm, right_of: Callable[[str], Right], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Job]:
    """Gives a job of a variant, undisturbed: on nothing, or where there is something old."""
    made: dict[tuple[str, str], Job] = {}

    def give(variant: str, name: str) -> Job:
        if (variant, name) not in made:
            right = right_of(variant)
            folder = tmp_path_factory.mktemp("job")
            arguments = PLAN if "plan" in name else PREPROCESS
            if name == "preprocess":
                start = right.planned
            elif name == "plan":
                start = copy_root(right.planned, folder / "start", preprocessed=False)
            else:
                start = copy_root(right.done, folder / "start")
                raw = own_raw(start)
                for part in ("imagesTr", "labelsTr"):
                    first, second, *_, last = sorted((raw / part).iterdir())
                    shutil.copy(first, second)
                    if name == "preprocess again":
                        last.unlink()
                if name == "plan again":
                    arguments = (*PLAN, "--memory-gb", "2")
            end = copy_root(start, folder / "end", preprocessed=(start / "preprocessed").exists())
            outcome = warm.run(end, *arguments)
            assert outcome.code == 0, outcome.said
            made[variant, name] = Job(
                arguments=arguments,
                start=start,
                old=tree_of(start / "preprocessed"),
                new=tree_of(end / "preprocessed"),
            )
        return made[variant, name]

    return give


def inject(job: Job, fault: Fault, root: Path, warm: Warm) -> tuple[Outcome, list[str]]:
    """Run a job with a fault on a copy of its start, then without; list all that is wrong."""
    copy_root(job.start, root, preprocessed=(job.start / "preprocessed").exists())
    outcome = warm.run(root, *job.arguments, fault=fault)
    found = tree_of(root / "preprocessed")
    wrong = half_files(root / "preprocessed") + neither_old_nor_new(found, job.old, job.new)
    if fault.action == "kill":
        if outcome.hit and outcome.code == 0:
            wrong.append("went on when it was killed")
    else:
        wrong += misbehaviour(job, outcome, found, root)
    again = warm.run(root, *job.arguments)
    if again.code != 0:
        wrong.append(f"the next run ends with {again.code}: {again.said}")
    wrong += [
        f"after the next run, {d}" for d in differences(tree_of(root / "preprocessed"), job.new)
    ]
    shutil.rmtree(root)
    where = outcome.hit and f"{outcome.hit.kind} of {outcome.hit.path.name}"
    return outcome, [f"{fault} ({where}): {text}" for text in wrong]


def misbehaviour(job: Job, outcome: Outcome, found: Tree, root: Path) -> list[str]:
    """List what is wrong with how a command tells that it could not write.

    It ends with 4 and names a path. It may go on, and do all, where only its log or its record
    could not be written, a file not be removed, the folder of a finished one not be synced, or
    where it can copy what could not be linked to.
    """
    wrong = []
    if "Traceback" in outcome.said or "bug of ours" in outcome.said:
        wrong.append(f"no message for a user: {outcome.said}")
    hit = outcome.hit
    if outcome.code == 0:
        wrong += [f"ended with 0, but {text}" for text in differences(found, job.new)]
        if hit is not None and not is_needless(hit):
            wrong.append("ended with 0")
    elif outcome.code != 4:
        wrong.append(f"ended with {outcome.code}: {outcome.said}")
    elif str(root) not in outcome.said:
        wrong.append(f"names no path: {outcome.said}")
    return wrong


def is_needless(call: Call) -> bool:
    """Whether all can be done without a call; logs may have the name of an unfinished file."""
    names = (call.path.name, call.path.name.split("-")[-1])
    is_log = any(LEFT_OUT.fullmatch(name) for name in names)
    return is_log or call.kind in ("remove", "link") or call.path.is_dir()


@pytest.mark.parametrize(
    ("variant", "name", "kind", "count"),
    [*SHORT, *(pytest.param(*sweep, marks=pytest.mark.slow) for sweep in LONG)],
)
def test_a_fault_leaves_each_file_old_or_new_and_the_next_run_ends_undisturbed(
    job_of: Callable[[str, str], Job],
    warm: Warm,
    tell: Callable[[str], None],
    tmp_path: Path,
    variant: str,
    name: str,
    kind: str,
    count: int | None,
) -> None:
    job = job_of(variant, name)
    census = tmp_path / "census"
    copy_root(job.start, census, preprocessed=(job.start / "preprocessed").exists())
    total = len(warm.run(census, *job.arguments, fault=replace(FAULTS[kind], at=0)).calls)
    numbers = list(range(1, total + 1))
    if count is not None:
        numbers = random.Random(f"{name} {kind}").sample(numbers, count)
    wrong, hits = [], 0
    for number in numbers:
        fault = replace(FAULTS[kind], at=number)
        outcome, found = inject(job, fault, tmp_path / str(number), warm)
        hits += outcome.hit is not None
        wrong += found
    tell(f"{variant} {name}, {kind}: {hits} of {total} calls hit, {len(wrong)} wrong")
    assert not wrong, "\n".join(wrong)
    assert hits >= 0.9 * len(numbers), "threads may save a call, not many"
