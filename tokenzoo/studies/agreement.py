"""How far the order of methods here is the order that published tables print: Kendall's tau-b, with a bootstrap interval.

Every table in the registry whose rows name a preset is taken: its methods run at the table's settings, layers scaled to this
model's depth, and their accuracies here are ranked against the printed ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tokenzoo.cost import load_architecture
from tokenzoo.errors import UserError
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.report.plots import COLORS, figure
from tokenzoo.studies.common import Lab, Study, accuracy_text, points
from tokenzoo.zoo.plugins import Zoo

RESAMPLES = 2000
#: From here on the printed order counts as found again.
AGREES = 0.8
#: Fewer rows than this have no order to speak of.
FEWEST = 3
#: Frames of the videos that published tables were measured on, where the table does not say.
FRAMES = 32
#: Parameters that count visual tokens: they are scaled to this model's prompt as layers are to its depth.
COUNTS = ("tokens", "rank")


@dataclass
class Printed:
    """A published table: for each row the method's setting scaled to this model, and its accuracy relative to all tokens."""

    name: str
    methods: dict[str, str] = field(default_factory=dict)
    relative: dict[str, float] = field(default_factory=dict)


def run(labs: Sequence[Lab]) -> Study:
    """Measure the tables' methods on each lab's model, and rank them. Raises UserError where no table fits."""
    rows, data, taus = [], [], []
    for lab in labs:
        whole = lab.measure({"none": "none"})[0].visual_tokens or 0.0
        for table in tables(lab.runner.zoo, lab.plan.kind, lab.layers, whole):
            measured = {row.label: row for row in lab.measure({"none": "none", **table.methods})}
            here = {name: lab.correct[name] for name in table.methods}
            tau = Tau.of(here, table.relative, lab.runner.settings.seed)
            taus.append(tau)
            for name in table.methods:
                row = measured[name]
                rows.append(
                    [f"{table.name}: {name}", table.methods[name], accuracy_text(row), f"{100 * table.relative[name]:.1f}"]
                )
                entry = {"table": table.name, "row": name, "method": table.methods[name], "accuracy": points(row)}
                data.append(
                    {**entry, "printed_relative": table.relative[name], "tau": tau.value, "low": tau.low, "high": tau.high}
                )
            rows.append([f"{table.name}: tau-b", "", str(tau), ""])
    if not taus:
        raise UserError("No published table of this kind of input names the presets of three methods. See registry.yaml.")
    together = Tau.together(taus)
    return Study(
        name="agreement",
        title=f"Order of methods, here and in print ({'; '.join(lab.described for lab in labs)})",
        header=["Row", "Method", "Here\naccuracy %", "Paper\n% of all tokens'"],
        rows=rows,
        here=f"Kendall's tau-b over all tables is {together} (1: the printed order, 0: none, -1: the reverse).",
        paper="Its tables' order, by the mean over benchmarks of accuracy relative to all tokens.",
        verdict="agrees" if together.low >= AGREES else "differs" if together.high < AGREES else "cannot tell",
        plot=lambda: _plot(data),
        notes=[f"Intervals: {RESAMPLES} resamples of the questions, 95 %. Printed accuracies are taken as they are."],
        data=[*data, {"table": "together", "tau": together.value, "low": together.low, "high": together.high}],
    )


@dataclass(frozen=True)
class Tau:
    """Kendall's tau-b with its bootstrap interval; `resampled` are its values, `pairs` how many pairs of rows it ranks."""

    value: float
    resampled: Any
    pairs: int

    @classmethod
    def of(cls, correct: Mapping[str, Sequence[bool]], printed: Mapping[str, float], seed: int) -> Tau:
        """The tau of accuracies over questions [rows, questions] against printed values, rows in the same order."""
        right = np.array([correct[name] for name in printed], float)
        order = np.array(list(printed.values()))
        drawn = np.random.default_rng(seed).integers(right.shape[1], size=(RESAMPLES, right.shape[1]))
        resampled = np.array([_tau(right[:, chosen].mean(1), order) for chosen in drawn])
        return cls(_tau(right.mean(1), order), resampled, len(order) * (len(order) - 1) // 2)

    @classmethod
    def together(cls, taus: Sequence[Tau]) -> Tau:
        """The mean over tables, each by its pairs of rows."""
        weights = np.array([tau.pairs for tau in taus]) / sum(tau.pairs for tau in taus)
        value = sum(weight * tau.value for weight, tau in zip(weights, taus, strict=True))
        resampled = sum(weight * tau.resampled for weight, tau in zip(weights, taus, strict=True))
        return cls(float(value), resampled, sum(tau.pairs for tau in taus))

    @property
    def low(self) -> float:
        return float(np.quantile(self.resampled, 0.025))

    @property
    def high(self) -> float:
        return float(np.quantile(self.resampled, 0.975))

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f} {self.high:+.2f}]"


def _tau(here: Any, printed: Any) -> float:
    """Kendall's tau-b; 0 where all rows are equal, so that there is no order."""
    from scipy.stats import kendalltau

    found = float(kendalltau(here, printed, variant="b").statistic)
    return 0.0 if np.isnan(found) else found


def tables(zoo: Zoo, kind: str, layers: int, tokens: float) -> list[Printed]:
    """The published tables of images or videos, methods scaled to a decoder of `layers` layers and `tokens` visual tokens."""
    found: dict[tuple[str, str, str], Printed] = {}
    for method, entry in zoo.registry.methods.items():
        for result in entry.published:
            table = str(result.get("table", ""))
            if result.get("kind", table.split("_")[0]) != kind or not result.get("preset"):
                continue
            model = str(result.get("model") or result.get("architecture", ""))
            source = str(result.get("source", ""))
            key = (source, table, model)
            whole = _whole(zoo, key)
            shared = [result["accuracy"][name] / whole[name] for name in result.get("accuracy", {}) if whole.get(name)]
            if shared:
                printed = found.setdefault(key, Printed(f"{source} {table}"))
                name = str(result.get("row", method))
                built = zoo.build(f"{method}@{result['preset']}")
                theirs = load_architecture(model)
                workload = theirs.video_workload(FRAMES) if kind == "video" else theirs.image_workload()
                share = tokens / workload.visual_tokens
                printed.methods[name] = str(scaled(built, theirs.decoder.layers, layers, share))
                printed.relative[name] = sum(shared) / len(shared)
    return [table for table in found.values() if len(table.methods) >= FEWEST]


def _whole(zoo: Zoo, key: tuple[str, str, str]) -> dict[str, float]:
    """The same table's row of the unreduced model, by benchmark."""
    for result in zoo.registry.methods["none"].published:
        model = str(result.get("model") or result.get("architecture", ""))
        if (str(result.get("source", "")), str(result.get("table", "")), model) == key:
            return dict(result.get("accuracy", {}))
    return {}


def scaled(method: Pipeline, from_layers: int, to_layers: int, share: float) -> Pipeline:
    """A method set for a decoder of `from_layers` at the same relative depth of one with `to_layers`.

    A parameter is a layer where another value makes the method act after other layers. Parameters that count visual tokens are
    multiplied by `share`.
    """

    def moved(layer: int) -> int:
        if layer >= from_layers:
            return to_layers + layer - from_layers
        return max(min(layer, 1), round(layer * to_layers / from_layers))

    def at_depth(reducer: TokenReducer) -> TokenReducer:
        changes: dict[str, Any] = {}
        for name, value in reducer.parameters.items():
            if name in COUNTS and isinstance(value, int):
                changes[name] = max(1, round(value * share))
                continue
            many = isinstance(value, (tuple, list))
            whole = [one for one in (value if many else [value]) if isinstance(one, int) and not isinstance(one, bool)]
            if not whole or len(whole) != (len(value) if many else 1):
                continue
            if _is_layer(reducer, name, value, from_layers):
                changes[name] = tuple(dict.fromkeys(map(moved, whole))) if many else moved(whole[0])
        return reducer.replace(**changes)

    return Pipeline(tuple(map(at_depth, method.reducers)))


def _is_layer(reducer: TokenReducer, name: str, value: Any, layers: int) -> bool:
    for step in (1, -1):
        other = tuple(one + step for one in value) if isinstance(value, (tuple, list)) else value + step
        try:
            return list(reducer.replace(**{name: other}).layers(layers)) != list(reducer.layers(layers))
        except UserError:
            continue
    return False


def _plot(data: list[dict[str, Any]]) -> Any:
    drawn, axes = figure()
    for index, table in enumerate(dict.fromkeys(one["table"] for one in data)):
        of = [one for one in data if one["table"] == table]
        said = f"{table}: tau-b {of[0]['tau']:+.2f} [{of[0]['low']:+.2f} {of[0]['high']:+.2f}]"
        axes.plot(
            [100 * one["printed_relative"] for one in of], [one["accuracy"] for one in of], "os^D"[index % 4],
            color=COLORS[index % len(COLORS)], label=said,
        )  # fmt: skip
        for one in of:
            axes.annotate(one["row"], (100 * one["printed_relative"], one["accuracy"]), fontsize=7, xytext=(4, 2),
                          textcoords="offset points")  # fmt: skip
    axes.set_xlabel("Paper: accuracy, % of all tokens'")
    axes.set_ylabel("Here: accuracy, %")
    axes.legend(fontsize=8, frameon=False, loc="best")
    return drawn
