"""What holds of any record, file, label mapping, split, probability or score."""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from laws import (
    EDGE,
    NAMES,
    ORDERS,
    SEEDS,
    SHAPES,
    SPACINGS,
    WORDS,
    image_of,
    labels_of,
    law,
)
from tiny import toy_plan

from nnseg import record
from nnseg.axes import Order, Shape, Spacing, permute
from nnseg.choose import Choice, ChosenModel
from nnseg.dataset import DatasetSpec, Fold, extend_folds, make_folds, parse_spec, spec_to_json
from nnseg.dataset.groups import extend_grouped_folds, find_leaks, make_grouped_folds
from nnseg.dataset.spec import stays_inside
from nnseg.errors import DataError
from nnseg.evaluate import CaseScores, confusion_table, score_table, summarize
from nnseg.folders import is_folder_name
from nnseg.labels import Labels
from nnseg.model.schedule import SCHEDULES
from nnseg.plan import Plan
from nnseg.postprocess import KeepLargest, MinimumSize, Postprocessing
from nnseg.preprocess import Placement, preprocess_case
from nnseg.probabilities import open_compact, writing_compact
from nnseg.probabilities.heads import STEPS, quantise
from nnseg.restore import restore
from nnseg.scores.comparison import compare
from nnseg.scores.intervals import mean_interval
from nnseg.scores.summary_json import from_nnunet, to_nnunet
from nnseg.volume import read_array, simple_geometry, split_ending, write

PLAIN = Labels(labels={"background": 0, "a": 1, "b": 2, "c": 3})
PLAN = toy_plan(PLAIN)
KEYS = st.one_of(NAMES, WORDS)
SHOWN = WORDS.filter(str.isprintable)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), NUMBERS, WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
CASE_IDS = st.lists(NAMES, min_size=2, max_size=40, unique=True)
ENDINGS = st.sampled_from((".nii", ".nii.gz", ".mha", ".nrrd", ".tif"))
TYPES = st.sampled_from(("uint8", "uint16", "int16", "float32"))
VALUES = st.lists(st.integers(1, 300), min_size=1, max_size=5, unique=True)


def all_labels(values: list[int], ignored: bool) -> Labels:
    """Labels of any integers, in any order."""
    found: dict[str, int | tuple[int, ...]] = {"background": 0}
    found |= {f"label {value}": value for value in values}
    if ignored:
        found["ignore"] = max(values) + 1
    return Labels(labels=found)


@law(values=VALUES, ignored=st.booleans(), shape=SHAPES, seed=SEEDS)
def labels_become_positions_and_labels_again(
    values: list[int], ignored: bool, shape: Shape, seed: int
) -> None:
    labels = all_labels(values, ignored)
    places = np.random.default_rng(seed).integers(0, len(labels.values), shape)
    segmentation = np.array(labels.values, dtype=np.uint16)[places]
    positions = labels.to_positions(segmentation)
    assert (positions == places).all()
    assert (labels.from_positions(positions) == segmentation).all()
    assert labels.consecutive.values == tuple(range(len(labels.values)))
    channels = labels.to_channels(positions)
    assert (channels.sum(0) == np.isin(segmentation, labels.foreground_values)).all()


@law(values=VALUES, wrong=st.integers(-5, 400), shape=SHAPES)
def a_value_that_is_no_label_is_never_taken_for_one(
    values: list[int], wrong: int, shape: Shape
) -> None:
    labels = all_labels(values, False)
    segmentation = np.full(shape, wrong, dtype=np.int32)
    if wrong in labels.values:
        assert (labels.from_positions(labels.to_positions(segmentation)) == wrong).all()
        return
    with pytest.raises(DataError, match="no labels"):
        labels.to_positions(segmentation)


@law(values=VALUES, ignored=st.booleans(), channels=st.lists(SHOWN, min_size=1, max_size=3))
def a_dataset_json_comes_back_as_it_was(
    values: list[int], ignored: bool, channels: list[str]
) -> None:
    spec = DatasetSpec(
        channels=tuple(channels),
        labels=all_labels(values, ignored),
        num_training=len(values),
        file_ending=".nii.gz",
    )
    text = json.dumps(spec_to_json(spec))
    assert parse_spec(json.loads(text), "dataset.json") == spec


@law(seed=SEEDS, values=VALUES, voxels=EDGE)
def logits_decide_on_the_highest_head(seed: int, values: list[int], voxels: int) -> None:
    labels = all_labels(values, False)
    logits = image_of((voxels, labels.heads), seed)
    found = labels.segment(logits)
    assert (found == np.array(labels.values)[logits.argmax(-1)]).all()
    probabilities = labels.probabilities(logits)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    assert (probabilities.argmax(-1) == logits.argmax(-1)).all()


@law(ids=CASE_IDS)
def each_case_validates_one_fold_and_trains_the_others(ids: list[str]) -> None:
    folds = make_folds(ids)
    assert folds == make_folds(ids[::-1])
    assert sorted(case for fold in folds for case in fold.val) == sorted(ids)
    for fold in folds:
        assert sorted((*fold.train, *fold.val)) == sorted(ids)
    sizes = [len(fold.val) for fold in folds]
    assert max(sizes) - min(sizes) <= 1


@law(ids=CASE_IDS, known=st.integers(2, 40))
def cases_that_join_move_no_other(ids: list[str], known: int) -> None:
    folds = make_folds(ids[:known])
    extended = extend_folds(folds, ids)
    for before, now in zip(folds, extended, strict=True):
        assert set(before.val) <= set(now.val)
        assert set(before.train) <= set(now.train)
        assert sorted((*now.train, *now.val)) == sorted(ids)
    assert extend_folds(extended, ids) == extended


@law(ids=CASE_IDS, seed=SEEDS, count=st.integers(2, 12), known=st.integers(2, 40))
def no_patient_is_on_both_sides(ids: list[str], seed: int, count: int, known: int) -> None:
    drawn = np.random.default_rng(seed).integers(0, count, len(ids))
    patients = {case: f"patient {number}" for case, number in zip(ids, drawn, strict=True)}
    before = {case: patients[case] for case in ids[:known]}
    if len(set(before.values())) < 2:
        return
    folds = make_grouped_folds(before)
    assert find_leaks(folds, before) == ()
    extended = extend_grouped_folds(folds, patients)
    assert find_leaks(extended, patients) == ()
    assert sorted(case for fold in extended for case in fold.val) == sorted(ids)


@law(data=JSON)
def any_json_is_read_as_it_was_written(data: Any) -> None:
    assert json.loads(record.json_text(data)) == data


@law(data=st.dictionaries(KEYS, JSON, max_size=4))
def a_json_file_comes_back_from_the_disk(data: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.json"
        path.write_text(record.json_text(data), "utf-8")
        assert record.read_json(path) == data


@law(
    order=ORDERS,
    shape=SHAPES,
    spacing=SPACINGS,
    resampled=SHAPES,
    ends=st.tuples(EDGE, EDGE, EDGE),
)
def where_a_case_lies_survives_json(
    order: Order, shape: Shape, spacing: Spacing, resampled: Shape, ends: Shape
) -> None:
    z, y, x = ((0, end) for end in ends)
    placement = Placement(
        order=order, shape=shape, spacing=spacing, box=(z, y, x), shape_resampled=resampled
    )
    data = json.loads(record.dumps(placement))
    assert record.parse(Placement, data, "placement") == placement


@law(
    folders=st.lists(NAMES, min_size=1, max_size=3),
    weight=st.floats(1e-3, 1e3),
    smallest=st.floats(1e-6, 1e6),
    names=st.lists(WORDS, min_size=1, max_size=3),
)
def a_choice_survives_json(
    folders: list[str], weight: float, smallest: float, names: list[str]
) -> None:
    choice = Choice(
        members=tuple(ChosenModel(folder=folder, weight=weight) for folder in folders),
        postprocessing=Postprocessing(
            rules=(
                KeepLargest(labels=tuple(names)),
                MinimumSize(label=names[0], smallest=smallest),
            )
        ),
    )
    data = json.loads(record.dumps(choice))
    assert record.parse(Choice, data, "choice") == choice


@law(spacing=SPACINGS, batch=st.integers(1, 40), name=NAMES)
def a_plan_survives_json(spacing: Spacing, batch: int, name: str) -> None:
    full = dataclasses.replace(PLAN.configuration("3d_fullres"), spacing=spacing, batch_size=batch)
    plan = dataclasses.replace(PLAN, name=name, configurations={full.name: full})
    assert record.parse(Plan, json.loads(record.dumps(plan)), "plan") == plan


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sealed:
    """A record with a hash of itself."""

    text: str
    numbers: tuple[float, ...]
    record_sha256: str = ""


@law(
    text=WORDS,
    numbers=st.lists(NUMBERS, max_size=3),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def one_bit_of_a_sealed_record_is_missed_by_nobody(
    text: str, numbers: list[float], place: float, bit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sealed.json"
        saved = record.save_sealed(Sealed(text=text, numbers=tuple(numbers)), path)
        assert record.load_sealed(Sealed, path) == saved
        data = bytearray(path.read_bytes())
        data[int(place * len(data))] ^= 1 << bit
        path.write_bytes(data)
        with pytest.raises(DataError):
            record.load_sealed(Sealed, path)


@law(name=st.text(max_size=12))
def what_may_name_a_folder_leads_nowhere_else(name: str) -> None:
    if is_folder_name(name):
        assert (Path("/base") / name).resolve().parent == Path("/base")
        assert Path(name).name == name


@law(parts=st.lists(st.sampled_from(("..", ".", "a", "b c", "~", "$HOME", "", "C:")), max_size=5))
def a_path_that_stays_inside_does(parts: list[str]) -> None:
    path = "/".join(parts)
    if stays_inside(path):
        found = (Path("/base/inside") / path).resolve()
        assert found.is_relative_to("/base/inside")


@law(stem=WORDS, ending=ENDINGS)
def a_name_is_its_stem_and_its_ending(stem: str, ending: str) -> None:
    assert split_ending(stem + ending) == (stem, ending)
    first, second = split_ending(stem)
    assert first + second == stem


@law(shape=SHAPES, seed=SEEDS)
def a_table_of_pairs_counts_every_voxel_once(shape: Shape, seed: int) -> None:
    first, second = labels_of(shape, seed), labels_of(shape, seed + 1)
    table = confusion_table(first, second, PLAIN)
    wanted = np.zeros((4, 4), dtype=int)
    np.add.at(wanted, (second.ravel(), first.ravel()), 1)
    assert (table == wanted).all()
    assert (confusion_table(second, first, PLAIN) == table.T).all()


@law(shape=SHAPES, seed=SEEDS)
def overlap_is_alike_both_ways_perfect_for_itself_and_adds_up(shape: Shape, seed: int) -> None:
    first, second = labels_of(shape, seed), labels_of(shape, seed + 1)
    there = score_table(confusion_table(first, second, PLAIN), PLAIN)
    back = score_table(confusion_table(second, first, PLAIN), PLAIN)
    own = score_table(confusion_table(first, first, PLAIN), PLAIN)
    for name, value in (("a", 1), ("b", 2), ("c", 3)):
        assert there[name].dice == back[name].dice
        assert own[name].dice == (1.0 if (first == value).any() else None)
        score = there[name]
        assert score.tp + score.fp + score.fn + score.tn == first.size


@law(shape=SHAPES, seed=SEEDS, cases=st.integers(1, 4))
def a_summary_survives_json_and_does_not_differ_from_itself(
    shape: Shape, seed: int, cases: int
) -> None:
    scored = [
        CaseScores(
            case_id=str(number),
            reference_file=f"{number}.nii.gz",
            prediction_file=f"{number}.nii.gz",
            scores=score_table(
                confusion_table(labels_of(shape, seed + number), labels_of(shape, seed), PLAIN),
                PLAIN,
            ),
        )
        for number in range(cases)
    ]
    summary = summarize(scored, PLAIN)
    text = json.dumps(to_nnunet(summary, PLAIN), allow_nan=False)
    back = from_nnunet(json.loads(text), PLAIN, "summary.json")
    assert back.mean == summary.mean
    assert [case.scores for case in back.cases] == [case.scores for case in summary.cases]
    for difference in compare(summary, summary).labels.values():
        assert difference.mean in (None, 0)


@law(values=st.lists(st.one_of(st.none(), st.floats(-1, 1)), max_size=8))
def an_interval_holds_its_mean_and_lies_among_the_values(values: list[float | None]) -> None:
    found = mean_interval(values, draws=50)
    there = [value for value in values if value is not None]
    assert found.count == len(there)
    assert (found.mean is None) == (not there)
    if found.mean is not None and found.low is not None and found.high is not None:
        slack = 1e-9
        assert min(there) - slack <= found.low <= found.high <= max(there) + slack


@law(seed=SEEDS, count=st.integers(1, 50))
def quantised_probabilities_are_half_a_step_off_at_most(seed: int, count: int) -> None:
    probabilities = np.random.default_rng(seed).random(count, dtype=np.float32)
    steps = quantise(probabilities)
    assert np.abs(steps / STEPS - probabilities).max() <= 0.5 / STEPS + 1e-7
    again = (steps / np.float32(STEPS)).astype(np.float32)
    assert (quantise(again) == steps).all()


@law(shape=SHAPES, seed=SEEDS, scale=st.sampled_from((0.01, 1.0, 8.0)))
def compact_probabilities_keep_what_is_decided(shape: Shape, seed: int, scale: float) -> None:
    logits = (scale * image_of((*shape, PLAIN.heads), seed) / 10).astype(np.float32)
    z, y, x = ((0, n) for n in shape)
    placement = Placement(
        order=(0, 1, 2), shape=shape, spacing=(1, 1, 1), box=(z, y, x), shape_resampled=shape
    )
    with tempfile.TemporaryDirectory() as folder:
        label_map = Path(folder) / "case.nii.gz"
        with writing_compact(label_map, PLAIN, simple_geometry(shape, (1, 1, 1)), placement) as put:
            put(logits)
        opened = open_compact(label_map)
        back = opened.log_odds(0, shape[0])
        assert (back.argmax(-1) == logits.argmax(-1)).all()
        found = opened.planes(0, shape[0])
    np.testing.assert_allclose(found, PLAIN.probabilities(logits), rtol=0, atol=5e-3)


@law(shape=SHAPES, seed=SEEDS, spacing=SPACINGS, ending=ENDINGS, kind=TYPES)
def an_array_comes_back_from_its_file_value_by_value(
    shape: Shape, seed: int, spacing: Spacing, ending: str, kind: str
) -> None:
    array = image_of(shape, seed)
    array = (np.abs(array) if kind.startswith("u") else array).astype(kind)
    before = array.copy()
    geometry = simple_geometry(shape, spacing)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"case{ending}"
        write(path, array, geometry)
        found, lies = read_array(path)
        assert found.dtype == array.dtype
        assert (found == array).all()
        assert (array == before).all()
        np.testing.assert_allclose(lies.spacing, spacing, rtol=1e-5)
        np.testing.assert_allclose(lies.corners(), geometry.corners(), atol=1e-4)


@law(order=ORDERS, shape=st.tuples(*[st.integers(2, 7)] * 3), seed=SEEDS, border=st.integers(0, 2))
def a_case_comes_back_to_its_file_however_it_was_turned_and_cut(
    order: Order, shape: Shape, seed: int, border: int
) -> None:
    plan = dataclasses.replace(PLAN, order=order)
    full = plan.configuration("3d_fullres")
    z, y, x = full.spacing
    assert z is not None
    inverse = np.argsort(order)
    spacing = tuple((z, y, x)[axis] for axis in inverse)
    assert permute(spacing, order) == (z, y, x)
    segmentation = np.pad(labels_of(shape, seed), border)
    image = np.pad(image_of((1, *shape), seed), [(0, 0)] + [(border, border)] * 3)
    case = preprocess_case(image, segmentation, spacing, plan, full)
    assert case.segmentation is not None
    logits = np.eye(PLAIN.heads, dtype=np.float32)[case.segmentation.clip(0)]
    found = restore([logits], case.placement, PLAIN, full)
    assert (found == segmentation).all()


@law(name=st.sampled_from(sorted(SCHEDULES)), progress=st.floats(0, 1))
def no_learning_rate_leaves_what_is_between_0_and_the_first(name: str, progress: float) -> None:
    schedule = SCHEDULES[name]
    assert schedule(0.0) == 1
    assert 0 <= schedule(progress) <= 1 + 1e-9


@law(ids=CASE_IDS)
def folds_survive_json(ids: list[str]) -> None:
    for fold in make_folds(ids):
        assert record.parse(Fold, json.loads(record.dumps(fold)), "fold") == fold
