"""Texts that a reader must neither follow nor be stopped by: classes, paths and JSON."""

from collections.abc import Callable

CLASS = "this.s"  # importing it prints
QUICK = ("a path upwards", "an absolute path", "a NUL", "a terminal's command")
PATHS = {
    "a path upwards": "../../evil",
    "an absolute path": "/tmp/evil",
    "a drive": "C:\\evil",
    "a share": "\\\\host\\evil",
    "a NUL": "evil\0.json",
    "a variable": "$HOME/evil",
    "a home": "~/evil",
    "a terminal's command": "evil\x1b[2J",
    "a line": "evil\nnnseg: all is well",
    "a command": "; touch /tmp/evil",
    "nothing": "",
    "a device": "CON",
}
JSON_BOMBS: dict[str, Callable[[], str]] = {
    "10^5 levels deep": lambda: '{"a":' * 10**5 + "1" + "}" * 10**5,
    "10^5 lists deep": lambda: '{"a":' + "[" * 10**5 + "]" * 10**5 + "}",
    "65 levels deep": lambda: '{"a":' * 65 + "1" + "}" * 65,
    "of one key twice": lambda: '{"plans_name": "a", "plans_name": "b"}',
    "of 10^5 keys, one of them twice": lambda: (
        "{" + ",".join(f'"{i}": 0' for i in range(10**5)) + ', "5": 1}'
    ),
    "NaN": lambda: '{"a": NaN}',
    "infinite": lambda: '{"a": [-Infinity]}',
    "beyond all floats": lambda: '{"a": 1e999}',
    "a number of 5000 digits": lambda: '{"a": ' + "9" * 5000 + "}",
    "half of a character": lambda: '{"a": "\\ud800"}',
    "100 MB of blanks": lambda: '{"a": 1' + " " * 10**8,
    "30 MB of lists": lambda: '{"a": [' + "[]," * 10**7 + "[]]}",
    "100 MB of lists": lambda: '{"a": [' + "[]," * (10**8 // 3) + "[]]",
}
