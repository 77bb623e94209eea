"""The rows of a comparison, and where each number comes from.

Three kinds of number are never mixed up: *measured* (this machine ran it: accuracy, tokens, milliseconds, memory),
*computed* (exact arithmetic on token counts: FLOPs, KV bytes, prices on another architecture) and *quoted* (a paper
printed it). Every renderer groups its columns by them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tokenzoo.comparison.statistics import Difference, Interval, Spread

Status = Literal["ok", "failed", "refused"]


@dataclass(frozen=True)
class TaskScore:
    """Accuracy of one method on one task: share of right answers with its 95 % interval, and the paired difference
    to `none` on the same questions (None for `none` itself). `f1` is given for yes/no tasks ("yes" is positive).

    A benchmark of lmms-eval has its own `metric` as well, on its own scale (`value`), with a bootstrap standard `error`;
    `metrics` are all that it has. Accuracy is then the mean of its scores of single answers, NaN where it gives none.
    """

    task: str
    right: int
    questions: int
    accuracy: Interval
    difference: Difference | None = None
    f1: float | None = None
    metric: str = ""
    value: float | None = None
    error: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Timing:
    """Milliseconds over interleaved rounds (median and quartiles) and ratios to `none` of the same round."""

    prefill_ms: Spread
    first_token_ms: Spread
    decode_ms: Spread
    method_ms: Spread
    prefill_ratio: Spread | None = None
    decode_ratio: Spread | None = None
    peak_bytes: int | None = None

    @property
    def slower(self) -> bool:
        """Whether prefill is slower than `none`, beyond the spread of the rounds."""
        return self.prefill_ratio is not None and self.prefill_ratio.low > 1.0


@dataclass(frozen=True)
class Price:
    """Cost on another architecture and GPU, computed under a named convention. `basis` says from what: the method's
    `schedule`, or, where that depends on the picture, the retention measured here, without the method's own products."""

    target: str
    convention: str
    tflops: float
    share: float
    prefill_ms: float | None
    kv_bytes: int
    visual_tokens: float
    basis: str = "schedule"


@dataclass
class Row:
    """One method with its settings on one model: a line of the table.

    `specification` builds the method again exactly as it ran; the label has the same settings, rounded. `budget` is what it
    was set to, as written ("" for none of it); `at_budget` says that it uses the budget up but for 2 %.
    """

    method: str
    label: str
    status: Status = "ok"
    note: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    visual_tokens: float | None = None
    visual_share: float | None = None
    tokens_per_layer: list[float] = field(default_factory=list)
    scores: dict[str, TaskScore] = field(default_factory=dict)
    overall: TaskScore | None = None
    flops: float | None = None
    llm_flops: float | None = None
    llm_share: float | None = None
    kv_bytes: float | None = None
    timing: Timing | None = None
    prices: dict[str, Price] = field(default_factory=dict)
    specification: str = ""
    budget: str = ""
    at_budget: bool = False

    @property
    def is_baseline(self) -> bool:
        return self.method == "none"


@dataclass(frozen=True)
class Quoted:
    """A row that a paper printed for one of the methods, with the settings it names: never our own measurement."""

    method: str
    row: str
    source: str
    architecture: str
    accuracy: dict[str, float]


@dataclass
class Section:
    """The rows of one model on one kind of input (images or videos): what may be read against each other.

    `terms` says in one line what the rows were set to, or that their costs differ. Only where `equal_cost` holds may one row
    be called the best, among the rows of one `budget`: none of them costs more than that.
    """

    model: str
    kind: Literal["image", "video"]
    tasks: list[str]
    rows: list[Row]
    questions: int = 0
    chance: dict[str, float] = field(default_factory=dict)
    timed_on: str = ""
    published: list[Quoted] = field(default_factory=list)
    terms: str = ""
    equal_cost: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.model}, {self.kind}s"


@dataclass
class Comparison:
    """A finished comparison: its sections, the settings that made it, the machine it ran on.

    `notes` are for whoever reads the tables, `hints` for whoever ran them.
    """

    sections: list[Section]
    settings: dict[str, Any]
    environment: dict[str, Any]
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[Row]:
        return [row for section in self.sections for row in section.rows if row.status == "failed"]

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain data: the JSON output."""
        return {"format": 1, **asdict(self)}
