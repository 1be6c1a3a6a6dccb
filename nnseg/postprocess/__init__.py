"""Rules that take implausible pieces out of a predicted label map: chosen, stored, carried out.

`Postprocessing` holds the rules, `apply` carries them out. `decide` chooses them by arithmetic on a
`ComponentTable` of each case.
"""

from nnseg.postprocess.apply import apply
from nnseg.postprocess.decide import Decided, MeanDice, Step, decide, decide_as_nnunet
from nnseg.postprocess.rules import (
    KeepLargest,
    MinimumSize,
    Postprocessing,
    Rule,
    keep_largest_foreground,
)
from nnseg.postprocess.table import ComponentTable, component_table, score_after

__all__ = [
    "ComponentTable",
    "Decided",
    "KeepLargest",
    "MeanDice",
    "MinimumSize",
    "Postprocessing",
    "Rule",
    "Step",
    "apply",
    "component_table",
    "decide",
    "decide_as_nnunet",
    "keep_largest_foreground",
    "score_after",
]
