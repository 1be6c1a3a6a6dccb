from nnseg.evaluate import CaseScores, Score, Summary, summarize
from nnseg.labels import Labels
from nnseg.scores.comparison import compare
from nnseg.scores.detection import Detection
from nnseg.scores.metrics import METRICS
from nnseg.scores.tables import describe_comparison, describe_groups, describe_scores

ORGANS = Labels(labels={"background": 0, "liver": 1, "spleen": 2})
MISSED = Detection(
    found=1, missed=1, spurious=0, iou_sum=0.5, panoptic_found=0, panoptic_iou_sum=0.0
)
NOTHING = Score(tp=0, fp=0, fn=0, tn=9)


def result(*liver: Score, **more: object) -> Summary:
    cases = [
        CaseScores(
            case_id=f"site{number % 2}_{number}",
            reference_file="r",
            prediction_file="p",
            scores={"liver": score, "spleen": NOTHING},
        )
        for number, score in enumerate(liver)
    ]
    return summarize(cases, ORGANS, **more)


A = result(Score(tp=2, fp=2, fn=2, tn=9), Score(tp=4, fp=0, fn=0, tn=9))
B = result(Score(tp=3, fp=1, fn=1, tn=9), Score(tp=4, fp=0, fn=0, tn=9))


def test_a_table_has_a_row_for_each_label_and_says_over_how_many_it_is() -> None:
    lines = describe_scores(A).splitlines()
    assert lines[0].split() == [
        "Dice",
        "95",
        "%",
        "interval",
        "IoU",
        "|volume",
        "error|",
        "counted",
    ]
    assert lines[1].startswith("liver            0.7500  ")
    assert lines[1].split()[-5:] == ["0.6667", "0.0000", "2", "of", "2"]
    assert lines[2].split() == ["spleen", "-", "-", "-", "-", "0", "of", "2"]
    assert lines[3].startswith("foreground mean  0.7500")
    assert lines[3].endswith("1 of 2 labels")


def test_metrics_that_were_not_measured_have_no_column() -> None:
    assert "HD95" not in describe_scores(A)
    assert "PQ" not in describe_scores(A)
    measured = result(Score(tp=1, fp=0, fn=0, tn=9, hd95_mm=1.234, detection=MISSED), match_iou=0.1)
    head, liver, *_ = describe_scores(measured).splitlines()
    assert head.split()[4:] == (
        ["IoU", "HD95", "mm", "|volume", "error|", "F1", "sensitivity", "FP/case", "PQ", "counted"]
    )
    assert liver.split()[3:] == (
        ["1.0000", "1.23", "0.0000", "0.6667", "0.5000", "0.0000", "0.0000", "1", "of", "1"]
    )


def test_groups_have_a_row_each() -> None:
    grouped = result(
        *(Score(tp=2, fp=2, fn=2, tn=9), Score(tp=4, fp=0, fn=0, tn=9)),
        groups={"0": ("site0_0",), "1": ("site1_1",)},
    )
    lines = describe_groups(grouped).splitlines()
    assert lines[0].split() == [
        "cases",
        "foreground",
        "mean",
        "95",
        "%",
        "interval",
        "liver",
        "spleen",
    ]
    assert lines[1].split() == ["0", "1", "0.5000", "-", "0.5000", "-"]
    assert lines[2].split() == ["1", "1", "1.0000", "-", "1.0000", "-"]


def test_a_comparison_says_what_is_better_and_what_was_left_out() -> None:
    found = compare(A, B)
    lines = describe_comparison(found).splitlines()
    assert lines[0] == "Dice, 2 cases; higher is better"
    assert lines[2].split()[:4] == ["liver", "0.7500", "0.8750", "+0.1250"]
    assert lines[2].split()[-3:] == ["1/1/0", "0", "0"]
    assert "lower is better" in describe_comparison(compare(A, B, metric="volume"))
    other = result(Score(tp=2, fp=2, fn=2, tn=9))
    assert describe_comparison(compare(A, other)).splitlines()[-1] == (
        "left out, only in A (1): site1_1"
    )
    many = result(*[Score(tp=2, fp=2, fn=2, tn=9)] * 8)
    assert describe_comparison(compare(A, many)).endswith(
        "only in B (6): site0_2, site0_4, site0_6, site1_3, site1_5, ..."
    )


def test_a_metric_that_is_over_fewer_cases_says_so() -> None:
    exact = Score(tp=4, fp=0, fn=0, tn=9, hd95_mm=0.0, assd_mm=0.0, nsd=1.0)
    missed = Score(tp=0, fp=0, fn=4, tn=9, nsd=0.0)
    _, liver, spleen, foreground = describe_scores(result(exact, missed, missed)).splitlines()
    assert "0.00 (1 of 3)" in liver
    assert liver.endswith("  3 of 3")
    assert "0.00 (1 of 6)" in foreground  # of two labels
    assert "(" not in spleen
    assert "(" not in describe_scores(result(exact, exact))


def test_what_was_not_predicted_is_named_and_counted() -> None:
    lines = describe_scores(result(*[NOTHING] * 2, missing=("x", "y"))).splitlines()
    assert lines[1].endswith("0 of 4")
    assert lines[-1] == "not predicted (2): x, y"
    lines = describe_comparison(
        compare(result(NOTHING), result(NOTHING, missing=("z",)))
    ).splitlines()
    assert lines[-1] == "not predicted in B (1): z"


def test_what_has_no_difference_is_told_with_its_cases() -> None:
    seen = Score(tp=2, fp=0, fn=2, tn=9, hd95_mm=3.0, nsd=0.5)
    missed = Score(tp=0, fp=0, fn=4, tn=9, nsd=0.0)
    text = describe_comparison(compare(result(missed, seen), result(seen, seen), metric="hd95"))
    assert "liver: A missed it wholly: 1 wins of B, in no mean and no p (site0_0)" in text
    assert text.splitlines()[2].split()[-3:] == ["1/1/0", "0", "1"]
    speck = Score(tp=0, fp=2, fn=0, tn=9)
    text = describe_comparison(compare(result(NOTHING), result(speck)))
    assert "liver: B made it up where it is not: 1 wins of A" in text
    unknown = Score(tp=2, fp=0, fn=2, tn=9)
    text = describe_comparison(compare(result(seen), result(unknown), metric="hd95"))
    assert "liver: B has no value, and nothing tells why: 1 uncounted" in text


def test_ratios_of_components_are_titled_by_what_they_are_of() -> None:
    """Of all components together in a result, of single cases in a comparison."""
    pair = result(Score(tp=1, fp=0, fn=0, tn=9, detection=MISSED), match_iou=0.1)
    for metric in ("f1", "sensitivity", "pq"):
        title = METRICS[metric].title
        assert title in describe_scores(pair).splitlines()[0]
        head = describe_comparison(compare(pair, pair, metric=metric)).splitlines()[0]
        assert head.startswith(f"{title} ")
        assert "single cases" in head
