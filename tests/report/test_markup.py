import json

import pytest

from nnseg.report.markup import Markup, join, script_json, tag


def test_text_is_escaped_wherever_it_goes_in() -> None:
    made = tag("p", "<b>", tag("i", "&"), title='"<', class_="a b")
    assert made == '<p title="&quot;&lt;" class="a b">&lt;b&gt;<i>&amp;</i></p>'


def test_an_attribute_without_a_value_has_none_and_a_missing_one_is_left_out() -> None:
    assert tag("input", checked=True, hidden=False, id=None) == "<input checked>"


def test_a_number_is_written_short() -> None:
    assert tag("line", x1=1 / 3, x2=12.0) == '<line x1="0.333333" x2="12"/>'


def test_what_is_none_is_left_out_of_the_contents() -> None:
    assert join("a", None, Markup("<br>")) == "a<br>"


@pytest.mark.parametrize("name", ["a\x00b", "a\udce9b", "a\x1bb"])
def test_what_no_page_can_hold_is_replaced(name: str) -> None:
    assert tag("p", name) == "<p>a�b</p>"


def test_json_in_a_script_cannot_end_it_and_says_the_same() -> None:
    data = {"</script><!--": "&lt; \u2028 ü"}
    text = script_json(data)
    assert not set("<>&\u2028") & set(text)
    assert text.isascii()
    assert json.loads(text) == data
