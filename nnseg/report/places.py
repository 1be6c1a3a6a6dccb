"""Names instead of the places of a machine's folders: a report may be handed on."""

import re
from collections.abc import Mapping
from dataclasses import replace

from nnseg.report.facts import Facts, RunFacts

ABSOLUTE = re.compile(
    r"""(?<![\w.~<:/\\-])(?:[A-Za-z]:)?[/\\](?:[^\s/\\'"`;,<>]+[/\\])+(?=[^\s/\\'"`;,<>])"""
)


def without_places(facts: Facts, names: Mapping[str, str]) -> Facts:
    """Give the facts without the paths of the machine, in whatever text of ours they stand.

    Args:
        facts: Of a report.
        names: What folders are called instead, by their paths.
    """

    def tell(text: str) -> str:
        return named(text, names)

    return replace(
        facts,
        subject=tell(facts.subject),
        runs=tuple(_run(run, names) for run in facts.runs),
        missing=tuple(
            replace(row, section=tell(row.section), reason=tell(row.reason))
            for row in facts.missing
        ),
        findings=facts.findings
        and tuple(
            replace(row, file=tell(row.file), found=tell(row.found), remedy=tell(row.remedy))
            for row in facts.findings
        ),
    )


def named(text: str, names: Mapping[str, str]) -> str:
    """Give a text with names for folders; of other absolute paths it keeps the last part.

    >>> named("/home/me/results/D/fold_0: no scores", {"/home/me/results": "results"})
    'results/D/fold_0: no scores'
    >>> named("restore /srv/scans/a.nii.gz, and/or https://niivue.com/x/y", {})
    'restore a.nii.gz, and/or https://niivue.com/x/y'
    """
    for place in sorted(names, key=len, reverse=True):
        text = re.sub(
            re.escape(place) + r"(?=[/\\]|[^\w.-]|\.?$)", names[place].replace("\\", r"\\"), text
        )
    return ABSOLUTE.sub("", text)


def _run(run: RunFacts, names: Mapping[str, str]) -> RunFacts:
    return replace(
        run,
        warnings=tuple(named(text, names) for text in run.warnings),
        outputs={named(file, names): digest for file, digest in run.outputs.items()},
        facts={
            name: named(value, names) if isinstance(value, str) else value
            for name, value in run.facts.items()
        },
    )
