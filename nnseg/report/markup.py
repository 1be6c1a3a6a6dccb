"""HTML that cannot be broken by what is put into it: every text is escaped unless it is markup."""

import html
import json
from typing import Any

VOID = {"br", "col", "hr", "img", "input", "link", "meta", "circle", "line", "path", "rect"}


class Markup(str):
    """Text that is HTML already; all other text is escaped where it goes in."""

    __slots__ = ()


def tag(name: str, *content: str | None, **attributes: str | float | None) -> Markup:
    """Give an element; None among the contents or attributes is left out.

    A `_` at the end of an attribute's name goes, others become `-`; True is an attribute without
    a value, False none.

    >>> tag("p", "a < b", class_="note", aria_label='"x"')
    '<p class="note" aria-label="&quot;x&quot;">a &lt; b</p>'
    """
    opening = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID and not content:
        return Markup(f"<{name}{opening}>" if name not in _SHAPES else f"<{name}{opening}/>")
    return Markup(f"<{name}{opening}>{join(*content)}</{name}>")


def join(*content: str | None) -> Markup:
    """Give contents one after the other, escaped unless they are markup; None is left out."""
    return Markup("".join(text(part) for part in content if part is not None))


def text(content: str) -> Markup:
    """Give `content` as HTML; what no HTML can hold becomes the replacement character."""
    if isinstance(content, Markup):
        return content
    return Markup(html.escape(_printable(content)))


def script_json(data: Any) -> str:
    r"""Give JSON that can stand in a script: no `<`, no `&`, ASCII only.

    >>> script_json("</script>")
    '"\\u003c/script\\u003e"'
    """
    plain = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


_SHAPES = {"circle", "line", "path", "rect"}  # elements of SVG, which close themselves


def _attribute(key: str, value: str | float | None) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if name == "viewbox":
        name = "viewBox"
    if value is True:
        return f" {name}"
    shown = value if isinstance(value, str) else f"{value:.6g}"
    return f' {name}="{html.escape(_printable(shown))}"'


def _printable(content: str) -> str:
    """Replace control characters and halves of characters, which file names can hold."""
    return "".join(
        c if (c >= " " and not "\ud800" <= c <= "\udfff" and c != "\x7f") or c in "\n\t" else "�"
        for c in content
    )
