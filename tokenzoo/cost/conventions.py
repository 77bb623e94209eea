"""The four conventions by name. A FLOPs number is only comparable with numbers of the same convention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokenzoo.cost import exact, llm_viewer, paper_formulas
from tokenzoo.cost.operations import Operation, Step
from tokenzoo.errors import unknown
from tokenzoo.method.workload import Architecture


@dataclass(frozen=True)
class Convention:
    """How a forward pass is counted.

    `decoder_layer(decoder, step, skip_mlp_add)` and `lm_head(decoder, positions, width)` return operations;
    `whole_model` tells whether vision tower, projector and the method's own work count; `has_bytes` whether traffic
    (and so time) is defined.
    """

    name: str
    summary: str
    decoder_layer: Callable[[Architecture, Step, bool], list[Operation]]
    lm_head: Callable[[Architecture, int, int], list[Operation]]
    whole_model: bool = False
    has_bytes: bool = True


CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention(
            "llm-viewer",
            "LLM-Viewer's per-operation count of the decoder, printed by AIM and PruMerge",
            llm_viewer.decoder_layer,
            llm_viewer.lm_head,
        ),
        Convention(
            "fastv",
            "FastV's formula 4nd²+2n²d+2ndm per layer, one per multiply-add",
            paper_formulas.formula(2),
            paper_formulas.lm_head,
            has_bytes=False,
        ),
        Convention(
            "pdrop",
            "PyramidDrop's formula 4nd²+2n²d+3ndm per layer, one per multiply-add",
            paper_formulas.formula(3),
            paper_formulas.lm_head,
            has_bytes=False,
        ),
        Convention(
            "exact",
            "2 per multiply-add of every product the whole model executes, as counters count",
            exact.decoder_layer,
            exact.lm_head,
            whole_model=True,
        ),
    )
}


def load_convention(name: str) -> Convention:
    """Return the convention of that name; raises UserError with a suggestion where there is none."""
    if name not in CONVENTIONS:
        raise unknown("convention", name, CONVENTIONS, "tokenzoo cost --help")
    return CONVENTIONS[name]
