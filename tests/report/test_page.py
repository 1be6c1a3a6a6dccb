import base64
import hashlib
import json
import re
from dataclasses import replace

import pytest
from report_pages import EVIL, LABELS, Page, summary

from nnseg.report import rows
from nnseg.report.facts import (
    Facts,
    FindingRow,
    Missing,
    PlanFacts,
    Reason,
    RunFacts,
    Statement,
    SuspectRow,
    Trust,
)
from nnseg.report.page import assets, niivue, page
from nnseg.report.sections import positions, sections

FOLDER = "files-0123"


def facts() -> Facts:
    scored = summary(9)
    foreground, labels = rows.label_rows(scored)
    cases = rows.case_rows(scored)
    return Facts(
        kind="fold",
        title=EVIL,
        subject=f"results/{EVIL}",
        made="2026-05-04T03:02:01+00:00",
        verdict=(Statement(tone="good", text=EVIL),),
        foreground=foreground,
        labels=labels,
        tolerance_mm=1.0,
        cases=tuple(replace(case, file=f"case-{i + 1:04d}.js") for i, case in enumerate(cases)),
        curves=(rows.read_curve(EVIL, CURVE),),
        plan=PlanFacts(
            name=EVIL,
            planner=EVIL,
            memory_gb=8,
            configurations=((EVIL, EVIL),),
            reasons=(Reason(rule=EVIL, given=EVIL, result=EVIL),),
        ),
        trust=(
            Trust(
                name=EVIL,
                temperature=1.8,
                ece_before=0.02,
                ece_after=0.01,
                pearson=None,
                spearman=0.3,
                cases=9,
            ),
        ),
        suspects=(SuspectRow(case_id=EVIL, score=9.0, label=EVIL, reason=EVIL, where=(0, 1, 2)),),
        findings=(FindingRow(severity="warning", file=EVIL, found=EVIL, remedy=EVIL),),
        runs=(
            RunFacts(
                command=EVIL,
                started="",
                seconds=3,
                exit_code=1,
                machine=EVIL,
                versions={EVIL: EVIL},
                warnings=(EVIL,),
                outputs={EVIL: EVIL},
            ),
        ),
        missing=(Missing(section=EVIL, reason=EVIL),),
        sheets=("worst.png",),
    )


CURVE = (
    f'epoch,lr,loss,validation_loss,dice,dice_average,"dice_{EVIL}",seconds,wait_share\n'
    "1,0.1,0.5,0.4,,,,12.5,0\n2,0.1,0.3,0.2,0.7,0.6,0.5,12.5,0\n"
)


def made() -> Page:
    return Page(page(facts(), LABELS, FOLDER, has_niivue=True))


def digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_policy_allows_the_scripts_and_styles_of_the_page_alone() -> None:
    found = made()
    (policy,) = [m["content"] for m in found.of("meta") if "http-equiv" in m]
    assert policy is not None
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split("; ")}
    (script,) = [text for attributes, text in found.scripts if "type" not in attributes]
    (style,) = found.styles
    assert rules == {
        "default-src": ["'none'"],
        "script-src": [f"'{digest(script)}'", "'strict-dynamic'"],
        "style-src": [f"'{digest(style)}'"],
        "img-src": ["'self'", "file:", "data:", "blob:"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }


def test_the_policy_comes_before_anything_that_it_is_about() -> None:
    kinds = [name for name, attributes in made().elements if name in ("style", "script", "img")]
    first = next(i for i, (name, _) in enumerate(made().elements) if name in kinds)
    policy = next(i for i, (_, a) in enumerate(made().elements) if "http-equiv" in a)
    assert policy < first


def test_nothing_comes_from_elsewhere() -> None:
    for _, attributes in made().elements:
        for name in ("src", "href", "action", "srcset", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", f"{FOLDER}/", "report.json")), value
    for text in (assets().style, assets().script):
        assert not re.search(r"https?:|@import|url\(|\beval\b|innerHTML|document\.write", text)


def test_no_element_has_a_style_or_a_handler_of_its_own() -> None:
    for _, attributes in made().elements:
        assert not [name for name in attributes if name == "style" or name.startswith("on")]


def test_evil_names_stay_text_everywhere() -> None:
    found = made()
    assert [image.get("src") for image in found.of("img")] == [f"{FOLDER}/worst.png"]
    assert found.text.count(EVIL) > 25


def test_the_data_of_the_viewer_name_each_case_and_its_file() -> None:
    found = made()
    (data,) = [json.loads(text) for a, text in found.scripts if a.get("type") == "application/json"]
    assert data["folder"] == FOLDER
    assert data["niivue"] == "niivue.umd.js"
    assert EVIL in {case["id"] for case in data["cases"]}
    assert data["labels"] == [{"position": 1, "name": "liver"}, {"position": 2, "name": EVIL}]
    numbers = {b["data-show"] for b in found.of("button") if "data-show" in b}
    assert {int(number) for number in numbers if number} == set(range(9))


def test_the_same_facts_give_the_same_page() -> None:
    assert page(facts(), LABELS, FOLDER) == page(facts(), LABELS, FOLDER)


def test_the_navigation_leads_to_every_section_that_is_there() -> None:
    found = made()
    anchors = {a["href"] for a in found.of("a") if (a["href"] or "").startswith("#")}
    assert anchors == {f"#{section['id']}" for section in found.of("section")}
    assert {"#summary", "#labels", "#cases", "#training", "#plan", "#runs"} <= anchors


def test_a_section_without_anything_to_say_is_left_out() -> None:
    bare = Facts(kind="dataset", title="a", subject="b", made="c")
    assert [part.name for part in sections(bare, LABELS, FOLDER)] == ["summary"]


def test_a_case_without_a_picture_has_no_button() -> None:
    plain = replace(facts(), cases=tuple(replace(c, file=None) for c in facts().cases))
    found = Page(page(plain, LABELS, FOLDER))
    assert not [b for b in found.of("button") if "data-show" in b]
    assert "viewer" not in {element.get("id") for _, element in found.elements}


def test_every_control_of_the_script_is_on_the_page() -> None:
    wanted = set(re.findall(r'byId\("(\w+)"\)', assets().script))
    there = {attributes.get("id") for _, attributes in made().elements}
    assert wanted <= there


def test_regions_name_the_labels_that_they_hold() -> None:
    from nnseg.labels import Labels

    labels = Labels(
        labels={"background": 0, "whole": (1, 3), "core": (3,), "ignore": 4},
        regions_class_order=(1, 3),
    )
    assert positions(labels) == {1: "whole", 2: "whole + core", 3: "ignore"}


def test_niivue_comes_with_its_licence_or_not_at_all() -> None:
    names = set(niivue())
    if not names:
        pytest.skip("scripts/niivue was not run")
    assert names == {"niivue.umd.js", "niivue.LICENSE.txt"}
