"""Predictions of folders that get killed, a full disk, or scans and results that are damaged."""

import ctypes
import errno
import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from injection import FAULTS, NONE, PATIENCE, Call, Fault, Injector, Outcome, Warm
from oracle import (
    LEFT_OUT,
    RENAMING,
    UNFINISHED,
    WRITING,
    Tree,
    differences,
    phase_of,
    sha256,
    tree_of,
)
from scans import draw_scans, make_model
from tallies import Tally

from nnseg import commit
from nnseg.errors import DataError, MachineError, PartlyDoneError, StoppedError, UsageError
from nnseg.predicted_folder import PROBE_BYTES, Wanted
from nnseg.predictor import Predictor, load
from nnseg.verbs import predicting
from nnseg.volume import read_segmentation

SCANS = 3
SLOWED = Fault(sleep_us=1500)  # so that most of the time goes by while results are written
EVERYTHING = ("--uncertainty", "--statistics", "--save_probabilities", "chunks")
SWEPT = (*EVERYTHING, "--disable_tta")
KINDS = [*((False, kind) for kind in FAULTS), (True, "killed")]  # on nothing, on old results


class Predictions(Warm):
    """Predicts in forks of a process that has loaded torch."""

    def __init__(self, injector: Injector, scratch: Path) -> None:
        self.model = make_model(scratch / "model")
        self.scans = draw_scans(scratch / "scans", SCANS)
        self.two_scans = draw_scans(scratch / "two_scans", 2)
        rehearsal = self._command(scratch / "rehearsal", EVERYTHING)
        super().__init__(injector.library, scratch / "runs", [rehearsal])

    def predict(
        self,
        out: Path,
        *extra: str,
        scans: Path | None = None,
        fault: Fault = NONE,
        kill_after_calls: int = 0,
        kill_seconds_later: float = 0.0,
    ) -> Outcome:
        """Predict the scans into `out`, to the end or until it is killed."""
        return self.ask(
            {"arguments": self._command(out, extra, scans)},
            out,
            fault,
            kill_after_calls=kill_after_calls,
            kill_seconds_later=kill_seconds_later,
        )

    def _command(
        self, out: Path, extra: tuple[str, ...], scans: Path | None = None
    ) -> tuple[str, ...]:
        where = ("-i", str(scans or self.scans), "-o", str(out), "-m", str(self.model))
        return ("predict", *where, "-device", "cpu", "--precision", "fp32", *extra)


@dataclass(frozen=True, kw_only=True)
class Right:
    """What undisturbed predictions leave, and the calls that it took."""

    tree: Tree
    calls: tuple[Call, ...]

    @property
    def writing(self) -> list[int]:
        """The numbers of the calls within which the result of some case is unfinished."""
        return [c.number for c in self.calls if case_of(c.path)]


@pytest.fixture(scope="module")
def predictions(
    injector: Injector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Predictions]:
    process = Predictions(injector, tmp_path_factory.mktemp("predictions"))
    yield process
    process.close()


@pytest.fixture(scope="module")
def right_of(
    predictions: Predictions, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Right]:
    """Gives what predictions with some more arguments leave in an empty folder."""
    made: dict[object, Right] = {}

    def give(*extra: str, scans: Path | None = None) -> Right:
        if (extra, scans) not in made:
            out = tmp_path_factory.mktemp("right") / "out"
            done = predictions.predict(out, *extra, scans=scans)
            assert done.code == 0, done.said
            made[extra, scans] = Right(tree=tree_of(out), calls=done.calls)
        return made[extra, scans]

    return give


@pytest.fixture(scope="module")
def predictor(predictions: Predictions) -> Predictor:
    return load(predictions.model, device="cpu", precision="fp32")


def case_of(path: Path) -> str | None:
    """Say to which scan a file of the results belongs, finished or not, if to one."""
    match = re.match(r"scan_\d+", UNFINISHED.sub("", path.name))
    return match and match[0]


def is_of_case(path: Path) -> bool:
    """Whether a path is that of a result, and not of the folder as a whole."""
    return case_of(path) is not None


def proven(out: Path) -> set[str]:
    """Name the cases whose proof is there, and whose files are what it says."""
    found = set()
    for path in out.glob("[!.]*.proof.json"):
        outputs = json.loads(path.read_text())["outputs"]
        with suppress(FileNotFoundError):
            if all(sha256(out / name) == digest for name, digest in outputs.items()):
                found.add(path.name.removesuffix(".nii.gz.proof.json"))
    return found


def times(out: Path, cases: set[str]) -> dict[str, tuple[int, int]]:
    """When each file of these cases was written, and which one it is."""
    paths = [path for path in sorted(out.glob("[!.]*")) if case_of(path) in cases]
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in paths}


def neither_old_nor_new(found: Tree, old: Tree, new: Tree) -> list[str]:
    """Name the files of a final name that are neither as they were nor as they are to be.

    A case may be without results while they are replaced: the older ones are withdrawn first.
    Where a case has failed, the table of statistics has the rows of the others.
    """
    final = {name: value for name, value in found.items() if not name.startswith(".")}
    wrong = [
        f"{name} is neither old nor new"
        for name, value in final.items()
        if value not in (old.get(name), new.get(name)) and name != "statistics.csv"
    ]
    gone = [name for name in sorted(old.keys() - final.keys()) if not case_of(Path(name))]
    unproven = {case_of(Path(name)) for name in old} - {None}
    unproven -= {case_of(Path(name)) for name in final if name.endswith(".proof.json")}
    kept = [name for name in final if case_of(Path(name)) in unproven]
    mixed = [name for name in kept if final[name] != new.get(name)]
    return (
        wrong
        + [f"{name} is gone" for name in gone]
        + [f"{name} is old, and its proof is gone" for name in mixed]
    )


@pytest.mark.fault("R34", "B1.2")
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_a_folder_prediction_that_is_killed_ends_as_if_it_had_not_been(
    predictions: Predictions,
    right_of: Callable[..., Right],
    tally: Tally,
    tmp_path: Path,
    kills: int,
) -> None:
    rng, wrong, phases, kept = random.Random(kills), [], Counter[str](), 0
    for number in range(kills):
        extra = EVERYTHING if number % 2 else ()
        right, out = right_of(*extra), tmp_path / str(number) / "out"
        if number % 6 < 5:  # in the call itself: of a write, half has been done
            fault = Fault(action="kill", at=rng.choice(right.writing))
            killed = predictions.predict(out, *extra, fault=fault)
        else:
            killed = predictions.predict(
                out,
                *extra,
                fault=SLOWED,
                kill_after_calls=rng.randrange(1, len(right.calls)),
                kill_seconds_later=rng.uniform(0, 0.003),
            )
        done = proven(out)
        begun = {case_of(call.path) for call in killed.calls} - {None}
        phases[
            phase_of(killed.calls, lambda path: case_of(path) is not None, done=begun <= done)
        ] += 1
        found = neither_old_nor_new(tree_of(out), {}, right.tree)
        if killed.code not in (0, -signal.SIGKILL) or (killed.code == 0 and done < begun):
            found.append(f"ended with {killed.code}: {killed.said}")
        before = times(out, done)
        again = predictions.predict(out, *extra)
        if again.code:
            found.append(f"the next run ends with {again.code}: {again.said}")
        if times(out, done) != before:
            found.append("the next run did again what was done")
        found += [f"after the next run, {text}" for text in differences(tree_of(out), right.tree)]
        kept += not found
        wrong += [f"kill {number} ({killed.hit}): {text}" for text in found]
        shutil.rmtree(out)
    tally("kill -9, predict", kept, kills, states=phases)
    assert not wrong, "\n".join(wrong)
    during = phases[WRITING] + phases[RENAMING]
    assert during >= (40 if kills == 50 else kills / 2), phases


@pytest.mark.fault("R05", "R08", "B1.1")
@pytest.mark.parametrize(
    ("again", "kind", "calls"),
    [
        *((*sweep, 1) for sweep in KINDS),
        *(pytest.param(*sweep, None, marks=pytest.mark.slow) for sweep in KINDS),
    ],
)
def test_a_fault_leaves_each_result_old_or_new_and_the_next_run_ends_undisturbed(
    predictions: Predictions,
    right_of: Callable[..., Right],
    tally: Tally,
    tmp_path: Path,
    again: bool,
    kind: str,
    calls: int | None,
) -> None:
    scans, start = predictions.two_scans, tmp_path / "start"
    right = right_of(*SWEPT, scans=scans)
    start.mkdir()
    if again:  # there are results of other settings, which are replaced
        assert predictions.predict(start, *SWEPT, "-step_size", "1", scans=scans).code == 0
    old = tree_of(start)
    census = shutil.copytree(start, tmp_path / "census")
    counting = replace(FAULTS[kind], at=0)
    total = len(predictions.predict(census, *SWEPT, scans=scans, fault=counting).calls)
    numbers = list(range(1, total + 1))
    if calls is not None:
        numbers = random.Random(f"{again} {kind}").sample(numbers, calls)
    wrong, hits, kept = [], 0, 0
    for number in numbers:
        out = shutil.copytree(start, tmp_path / str(number))
        fault = replace(FAULTS[kind], at=number)
        struck = predictions.predict(out, *SWEPT, scans=scans, fault=fault)
        hits += struck.hit is not None
        found = neither_old_nor_new(tree_of(out), old, right.tree)
        if kind == "killed":
            found += [f"ended with {struck.code}"] if struck.code != -signal.SIGKILL else []
        else:
            found += misbehaviour(struck, out, right.tree)
        last = predictions.predict(out, *SWEPT, scans=scans)
        if last.code:
            found.append(f"the next run ends with {last.code}: {last.said}")
        found += [f"after the next run, {text}" for text in differences(tree_of(out), right.tree)]
        kept += struck.hit is not None and not found
        wrong += [f"{struck.fault} ({struck.hit}): {text}" for text in found]
        shutil.rmtree(out)
    tally(f"n-th call, predict{' again' if again else ''}", kept, hits, states={kind: hits})
    assert not wrong, "\n".join(wrong)
    assert hits >= 0.9 * len(numbers), "threads may save a call, not many"


def misbehaviour(struck: Outcome, out: Path, new: Tree) -> list[str]:
    """List what is wrong with how a command tells that it could not write.

    It ends with 4, or with 6 where some cases are done, and names each case that is not. It may
    end with 0 where all results are there, and only the log or the record of the run is not, where
    a file could not be removed, or where Blosc2 wrote again what had failed in an array.
    """
    wrong = []
    if "Traceback" in struck.said or "bug of ours" in struck.said:
        wrong.append(f"no message for a user: {struck.said}")
    begun = {case_of(call.path) for call in struck.calls} - {None}
    found = tree_of(out)
    for case in sorted({str(case_of(Path(name))) for name in new if case_of(Path(name))}):
        whole = all(found.get(name) == new[name] for name in new if case_of(Path(name)) == case)
        if begun and not whole and not re.search(rf"^(nnseg:|) *.*\b{case}: ", struck.said, re.M):
            wrong.append(f"{case} is not done, and the message names it not: {struck.said}")
    hit = struck.hit
    if struck.code == 0:
        wrong += [f"ended with 0, but {text}" for text in differences(found, new)]
        if hit and not is_needless(hit, out):
            wrong.append("ended with 0")
    elif struck.code not in (4, 6) or (struck.code == 6 and not proven(out)):
        wrong.append(f"ended with {struck.code}: {struck.said}")
    elif str(out) not in struck.said:
        wrong.append(f"names no path: {struck.said}")
    return wrong


def is_needless(call: Call, out: Path) -> bool:
    """Whether all can be done without a call."""
    name = UNFINISHED.sub("", call.path.name)
    again = call.kind == "write" and name.endswith(".b2nd")  # as one call of many, all read back
    return bool(LEFT_OUT.fullmatch(name)) or call.kind == "remove" or call.path == out or again


@pytest.mark.fault("R08")
@pytest.mark.parametrize("done", [0, 1])
def test_on_a_full_disk_what_is_done_stays_and_the_rest_is_listed_in_one_message(
    predictions: Predictions, right_of: Callable[..., Right], tmp_path: Path, done: int
) -> None:
    extra, out = ("--uncertainty", "--statistics"), tmp_path / "out"
    right = right_of(*extra)
    census = predictions.predict(tmp_path / "census", *extra, fault=Fault(action="ENOSPC"))
    opened = [c for c in census.calls if c.path.name.endswith(f"-scan_{done}.nii.gz")]
    fault = Fault(action="ENOSPC", at=opened[0].number, lasting=True)
    full = predictions.predict(out, *extra, fault=fault)
    kept, lost = [{f"scan_{n}" for n in numbers} for numbers in (range(done), range(done, SCANS))]
    assert full.code == (6 if kept else 4), full.said
    errors = [line for line in full.said.splitlines() if line.endswith("cases failed:")]
    assert errors == [f"nnseg: {len(lost)} of {SCANS} cases failed:"], full.said
    listed = full.said.partition(errors[0])[2].splitlines()[1:]
    assert {str(re.findall(r"^  case (.*?): .*disk is full", line)[0]) for line in listed} == lost
    assert proven(out) == kept
    assert not neither_old_nor_new(tree_of(out), {}, right.tree)
    before = times(out, kept)
    assert predictions.predict(out, *extra).code == 0
    assert times(out, kept) == before
    assert not differences(tree_of(out), right.tree)


def test_of_ten_scans_three_are_bad_and_named_and_seven_are_done(
    predictions: Predictions, tmp_path: Path
) -> None:
    scans, out = draw_scans(tmp_path / "scans", 10), tmp_path / "out"
    cut, holed, halved = (scans / f"scan_{n}_000{c}.nii.gz" for n, c in ((2, 0), (5, 1), (8, 1)))
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    image = nibabel.load(holed)
    values = np.asarray(image.dataobj)
    values[3, 4, 5] = np.nan
    nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), holed)
    halved.unlink()
    partly = predictions.predict(out, scans=scans)
    assert partly.code == 6
    first, *listed = partly.said.splitlines()
    assert first == "nnseg: 3 of 10 cases failed:"
    for line, words in zip(
        listed,
        (
            f"  case scan_2: {cut}: .*is damaged",
            f"  case scan_5: {holed}: 1 voxels are not finite",
            f"  case scan_8: {scans} lacks {halved.name}",
        ),
        strict=True,
    ):
        assert re.match(words, line), line
    good = {f"scan_{number}" for number in range(10)} - {"scan_2", "scan_5", "scan_8"}
    assert proven(out) == good
    assert {path.name for path in out.glob("*.nii.gz")} == {f"{case}.nii.gz" for case in good}


@pytest.mark.fault("R37")
def test_a_scan_that_cannot_be_read_or_is_too_large_costs_no_other(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = draw_scans(tmp_path / "scans", 5)
    for number, place in ((1, "/proc/self/mem"), (2, str(tmp_path / "gone"))):
        path = scans / f"scan_{number}_0000.nii.gz"
        path.unlink()
        path.symlink_to(place)  # to read there is an error of the device, EIO
    reads = predicting.read_stored

    def read(images: tuple[Path, ...], channels: int) -> Any:
        if images[0].name.startswith("scan_3"):
            raise MemoryError("Unable to allocate 1 PiB")
        return reads(images, channels)

    monkeypatch.setattr(predicting, "read_stored", read)
    with pytest.raises(PartlyDoneError, match="3 of 5 cases failed") as raised:
        predicting.predict(predictor, scans, tmp_path / "out")
    text = str(raised.value)
    assert re.search(r"case scan_1: \S*scan_1_0000\S*: cannot be read \(Input/output error", text)
    assert re.search(r"case scan_2: \S*scan_2_0000\S* is no file", text)
    assert "case scan_3: there is not enough memory for this image" in text
    assert proven(tmp_path / "out") == {"scan_0", "scan_4"}


@contextmanager
def without_powers_over_files() -> Iterator[None]:
    """Have what a folder permits hold for root, too, in this thread (Linux's capset)."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; the same, higher bits
    assert libc.capget(header, sets) == 0, os.strerror(ctypes.get_errno())
    kept = sets[0]
    sets[0] = kept & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        sets[0] = kept
        assert libc.capset(header, sets) == 0, os.strerror(ctypes.get_errno())


@pytest.mark.fault("R36")
@pytest.mark.parametrize("fault", ["read-only", "full", "a file is there", "in the way is a file"])
def test_an_output_folder_that_takes_no_files_is_refused_before_anything_is_computed(
    predictor: Predictor,
    predictions: Predictions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    ran: list[object] = []
    hooks = [
        network.register_forward_pre_hook(lambda *called: ran.append(called))
        for network in predictor.members[0].model.networks
    ]
    out, reason = tmp_path / "out", "cannot be written"
    guard: Callable[[], AbstractContextManager[None]] = nullcontext
    if fault == "read-only":
        out.mkdir(mode=0o555)
        guard = without_powers_over_files if os.geteuid() == 0 else nullcontext
    elif fault == "full":
        monkeypatch.setattr(Path, "write_bytes", full_disk)
        reason = "the disk is full"
    elif fault == "a file is there":
        out.touch()
        reason = "is a file"
    else:
        (tmp_path / "file").touch()
        out = tmp_path / "file" / "out"
    with guard(), pytest.raises((MachineError, UsageError), match=reason) as raised:
        predicting.predict(predictor, predictions.scans, out)
    assert str(out) in str(raised.value)
    assert not ran
    monkeypatch.undo()
    assert not out.is_dir() or not list(out.iterdir())
    predicting.predict(predictor, predictions.scans, tmp_path / "other")
    assert ran, "the networks would have been heard"
    for hook in hooks:
        hook.remove()


def test_another_share_may_try_out_the_output_folder_at_the_same_time(
    predictor: Predictor,
    predictions: Predictions,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    removed: list[Path] = []
    writes = commit.write_whole

    def write(path: Path, data: bytes, **how: bool) -> None:
        writes(path, data, **how)
        if len(data) == PROBE_BYTES:
            path.unlink()  # as the other share does
            removed.append(path)

    monkeypatch.setattr(commit, "write_whole", write)
    shares = [
        predicting.predict(predictor, predictions.scans, tmp_path, part=part, parts=2)
        for part in range(2)
    ]
    assert len(removed) == 2
    assert proven(tmp_path) == shares[0].keys() | shares[1].keys()
    assert len(proven(tmp_path)) == SCANS


def full_disk(path: Path, data: bytes) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def can_be_read(path: Path) -> bool:
    try:
        read_segmentation(path)
    except DataError:
        return False
    return True


@pytest.mark.fault("G6")
@pytest.mark.parametrize("count_of_damage", [12, pytest.param(120, marks=pytest.mark.slow)])
def test_a_flipped_or_cut_result_or_proof_has_its_own_case_done_again_and_no_other(
    predictor: Predictor,
    predictions: Predictions,
    tally: Tally,
    tmp_path: Path,
    count_of_damage: int,
) -> None:
    out = tmp_path / "out"
    wanted = Wanted(maps=("entropy", "disagreement"), probabilities="chunks", statistics=True)
    predicting.predict(predictor, predictions.scans, out, wanted=wanted)
    right = tree_of(out)
    files = [out / name for name in sorted(right) if case_of(Path(name))]
    proofs = [path for path in files if path.name.endswith(".proof.json")]
    cases = {str(case_of(path)) for path in files}
    rng, wrong, kept = random.Random(count_of_damage), [], 0
    for number in range(count_of_damage):
        path = rng.choice(proofs if number % 3 == 0 else files)
        data = path.read_bytes()
        place, bit = rng.randrange(len(data)), rng.randrange(8)
        if number % 4 == 3:
            what, changed = f"cut to {place}", data[:place]
        else:
            what = f"bit {bit} of byte {place}"
            changed = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
        path.write_bytes(changed)
        own = str(case_of(path))
        others, mine = times(out, cases - {own}), times(out, {own})
        edited = path.name == f"{own}.nii.gz" and can_be_read(path)  # so it may be a correction
        if edited:
            with pytest.raises(PartlyDoneError, match=f"case {own}: .*was changed since"):
                predicting.predict(predictor, predictions.scans, out, wanted=wanted)
            path.unlink()
        predicting.predict(predictor, predictions.scans, out, wanted=wanted)
        found = differences(tree_of(out), right)
        if times(out, cases - {own}) != others:
            found.append("another case was done again")
        if set(times(out, {own}).items()) & set(mine.items()):
            found.append("its case was not done again")
        kept += not found
        wrong += [f"{what} of {path.name}: {text}" for text in found]
    tally("damage, predictions", kept, count_of_damage)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("found", "put"),
    [('"quality": 0', '"quality": 1'), ('"voxels": ', '"voxels": 1'), ("}\n", "}")],
)
def test_a_proof_of_which_any_figure_or_byte_is_another_proves_nothing(
    predictor: Predictor, predictions: Predictions, tmp_path: Path, found: str, put: str
) -> None:
    wanted = Wanted(statistics=True)
    predicting.predict(predictor, predictions.scans, tmp_path, wanted=wanted)
    right = tree_of(tmp_path)
    path = tmp_path / "scan_1.nii.gz.proof.json"
    text = path.read_text()
    assert found in text
    path.write_text(put.join(text.rsplit(found, 1)))
    predicting.predict(predictor, predictions.scans, tmp_path, wanted=wanted)
    assert not differences(tree_of(tmp_path), right)


@pytest.mark.fault("R38")
def test_a_scan_that_changes_while_it_is_read_is_named_and_predicted_the_next_time(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans, out = draw_scans(tmp_path / "scans", 2), tmp_path / "out"
    last = scans / "scan_1_0000.nii.gz"
    other = scans / "scan_1_0001.nii.gz"
    reads = predicting.read_stored

    def read(images: tuple[Path, ...], channels: int) -> Any:
        volume = reads(images, channels)
        if images[0] == last:
            last.write_bytes(other.read_bytes())  # as an upload does that has not ended
        return volume

    with monkeypatch.context() as patch:
        patch.setattr(predicting, "read_stored", read)
        with pytest.raises(PartlyDoneError, match=r"case scan_1: .* changed while they were read"):
            predicting.predict(predictor, scans, out)
    assert proven(out) == {"scan_0"}
    before = times(out, {"scan_0"})
    predicting.predict(predictor, scans, out)
    assert times(out, {"scan_0"}) == before
    predicting.predict(predictor, scans, tmp_path / "fresh")
    assert not differences(tree_of(out), tree_of(tmp_path / "fresh"))


def test_a_cancelled_prediction_ends_within_two_seconds_and_goes_on_later(
    predictor: Predictor, predictions: Predictions, tmp_path: Path
) -> None:
    computing, cancelled = threading.Event(), threading.Event()

    def compute(*_: object) -> None:
        computing.set()
        time.sleep(0.2)  # as a pass of a large network takes; without a stop it takes a minute

    networks = predictor.members[0].model.networks
    hooks = [network.register_forward_pre_hook(compute) for network in networks]
    asked: list[float] = []

    def cancel() -> None:
        assert computing.wait(PATIENCE)
        asked.append(time.monotonic())
        cancelled.set()

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(StoppedError):
        predicting.predict(predictor, predictions.scans, tmp_path / "out", stop=cancelled.is_set)
    took = time.monotonic() - asked[0]
    thread.join()
    for hook in hooks:
        hook.remove()
    assert took < 2
    predicting.predict(predictor, predictions.scans, tmp_path / "out")
    assert proven(tmp_path / "out") == {f"scan_{number}" for number in range(SCANS)}


def test_two_threads_that_predict_at_once_leave_the_bytes_of_one_after_the_other(
    predictor: Predictor, predictions: Predictions, tmp_path: Path
) -> None:
    wanted = Wanted(maps=("entropy", "disagreement"), probabilities="npz", statistics=True)
    meet, failed = threading.Barrier(2), []

    def work(name: str) -> None:
        meet.wait(PATIENCE)
        try:
            predicting.predict(predictor, predictions.scans, tmp_path / name, wanted=wanted)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    predicting.predict(predictor, predictions.scans, tmp_path / "alone", wanted=wanted)
    alone = tree_of(tmp_path / "alone")
    assert len(alone) == 2 + SCANS * 5
    for name in ("one", "two"):
        assert not differences(tree_of(tmp_path / name), alone)
