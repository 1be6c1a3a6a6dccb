"""The postprocessing rules that lie beside models which are exported."""

from pathlib import Path

from nnseg import record
from nnseg.folders import postprocessing_file
from nnseg.postprocess import Postprocessing


def find_rules(fold: Path) -> tuple[Path, Postprocessing] | None:
    """Give the rules by which `nnseg predict` with this fold's configuration goes, and their file.

    They lie beside the folds, or beside the configurations. Rules of a choice are not among them:
    they are for what its members predict together.

    Raises:
        DataError: The file is damaged.
    """
    for place in fold.absolute().parents[:2]:
        file = postprocessing_file(place)
        if file.is_file():
            rules = record.load(Postprocessing, file)
            return (file, rules) if rules.rules else None
    return None
