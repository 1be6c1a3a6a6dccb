"""Reports: the page is the one that its record of facts names."""

from pathlib import Path

from nnseg import record
from nnseg.errors import NnsegError
from nnseg.folders import facts_file, report_file
from nnseg.fsck.proofs import Look
from nnseg.lock import in_use
from nnseg.report.facts import Facts

REMEDY = "`nnseg report` makes both anew"


def examine_report(look: Look, folder: Path) -> None:
    """Judge the report in a folder, if there is one and no run is writing it.

    A kill between the two leaves the facts of one run beside the page of another; each is whole.
    """
    path, page = facts_file(folder), report_file(folder)
    if not path.is_file() or in_use(folder):
        return
    try:
        facts = record.load(Facts, path)
    except NnsegError:  # who proves the file says that it is damaged, and of which run it is
        return
    look.files += 1
    if facts.page_sha256 and (fault := look.fault(page, facts.page_sha256)) and not in_use(folder):
        other = "is of another run than the report.json beside it"
        look.notes.error("report", page, other if page.is_file() else fault, REMEDY)
