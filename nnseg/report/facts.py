"""All that a report says, as records: report.json holds them, the page shows them."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Tone: TypeAlias = Literal["good", "plain", "watch", "bad"]
Kind: TypeAlias = Literal["fold", "predictions", "comparison", "choice", "dataset"]
Pick: TypeAlias = Literal["best", "median", "worst"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """A sentence of the verdict."""

    tone: Tone
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A mean over cases and its 95 % bootstrap interval; None where there is no value."""

    mean: float | None
    low: float | None = None
    high: float | None = None
    count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRow:
    """The scores of a label or region over cases."""

    name: str
    dice: Span
    median: float | None = None
    iou: float | None = None
    hd95_mm: float | None = None
    assd_mm: float | None = None
    nsd: float | None = None
    volume_error: float | None = None  # mean of (predicted - reference) / reference


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseRow:
    """A case: its scores, and the file that shows it."""

    case_id: str
    dice: float | None = None  # mean over the labels that have a value
    label_dice: dict[str, float | None] = field(default_factory=dict)
    hd95_mm: float | None = None  # the worst of its labels
    other_dice: float | None = None  # of the second prediction, in a comparison
    label_size: dict[str, float] = field(
        default_factory=dict
    )  # before training; of DataFacts' unit
    group: str = ""  # such as the fold that it was held out of
    pick: Pick | None = None
    file: str | None = None  # what shows it, in the report's folder of files


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow:
    """An epoch of a training."""

    epoch: int
    lr: float
    loss: float
    validation_loss: float
    dice: float | None
    dice_average: float | None
    label_dice: dict[str, float | None]
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A training, epoch by epoch."""

    name: str
    epochs: tuple[EpochRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A rule of the plan: what it was given, and what came out."""

    rule: str
    given: str
    result: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFacts:
    """The plan in words: what each network sees, and why."""

    name: str
    planner: str
    memory_gb: float
    configurations: tuple[tuple[str, str], ...]  # name and description
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspectRow:
    """A label map that may be wrong."""

    case_id: str
    score: float
    label: str | None
    reason: str
    where: tuple[int, int, int] | None  # voxel (z, y, x), image order


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingRow:
    """A problem that the doctor found in the raw data."""

    severity: str
    file: str
    found: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What a model's own confidence is worth."""

    name: str
    temperature: float | None
    ece_before: float | None
    ece_after: float | None
    pearson: float | None  # of the expected Dice with the true one
    spearman: float | None
    cases: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRow:
    """A model, or several together, that could have been chosen."""

    name: str
    dice: Span
    dice_postprocessed: float | None
    role: str = ""  # "chosen", "nnU-Net's rule", both or neither


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoosingFacts:
    """How a model was chosen, and what may be expected of it."""

    candidates: tuple[CandidateRow, ...]
    chosen: str
    expected_dice: float | None
    optimism: float | None
    nnunet: str | None
    rules: tuple[str, ...] = ()  # of postprocessing, in words


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceRow:
    """How two predictions differ for a label: second minus first, over the cases of both."""

    name: str
    difference: Span
    p_value: float | None
    wins: int  # of the second
    ties: int
    losses: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonFacts:
    """Two predictions of the same cases."""

    first: str
    second: str
    rows: tuple[DifferenceRow, ...]
    first_dice: float | None = None  # foreground mean over the cases of both
    second_dice: float | None = None
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What the dataset holds."""

    cases: int
    channels: tuple[str, ...]
    labels: tuple[str, ...]
    spacing_mm: tuple[str, ...] = ()  # smallest, median, largest; z x y x x
    shape: tuple[str, ...] = ()
    size_unit: str = ""  # of the labels of a case: ml, or mm² of pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A command that made what is reported: when, where, how long, with what."""

    command: str
    started: str  # UTC
    seconds: float
    exit_code: int
    machine: str
    versions: dict[str, str]
    warnings: tuple[str, ...]
    outputs: dict[str, str]  # file to SHA-256
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """A section that is left out, and why."""

    section: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The content of report.json."""

    kind: Kind
    title: str
    subject: str  # the folder that is reported on
    made: str  # UTC, ISO 8601
    verdict: tuple[Statement, ...] = ()
    foreground: LabelRow | None = None
    labels: tuple[LabelRow, ...] = ()
    tolerance_mm: float | None = None
    cases: tuple[CaseRow, ...] = ()
    curves: tuple[Curve, ...] = ()
    data: DataFacts | None = None
    plan: PlanFacts | None = None
    choosing: ChoosingFacts | None = None
    comparison: ComparisonFacts | None = None
    trust: tuple[Trust, ...] = ()
    suspects: tuple[SuspectRow, ...] | None = None
    findings: tuple[FindingRow, ...] | None = None
    runs: tuple[RunFacts, ...] = ()
    missing: tuple[Missing, ...] = ()
    sheets: tuple[str, ...] = ()  # contact sheets, in the report's folder of files
    page_sha256: str = ""  # of the page that shows this; another one there is of another run
    format: int = 1
