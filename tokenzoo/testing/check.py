"""Every guarantee for one method, on tiny random models of every family: what `tokenzoo check` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

import tokenzoo
from tokenzoo.errors import UserError
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.reduction import UnreachableError
from tokenzoo.method.signatures import check_class
from tokenzoo.testing.case import Case, leftovers
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.findings import Finding
from tokenzoo.testing.guarantees import TOLERANCE
from tokenzoo.testing.inputs import cases, take_sample, tiny_inputs, words
from tokenzoo.testing.models import LAYERS, USUAL, tiny_model
from tokenzoo.zoo.errors import reason

BACKENDS = ("sdpa", "eager")
_models: dict[tuple[str, str, int], Any] = {}
_cases: dict[tuple[str, str, str, int], Case] = {}


def tiny_case(family: str, case: str, backend: str = "sdpa", layers: int = LAYERS) -> Case:
    """A model and a batch, with what the plain model makes of it; made once per process."""
    key, kind = (family, case, backend, layers), (family, backend, layers)
    if key not in _cases:
        if kind not in _models:
            _models[kind] = _decided(tiny_model(family, backend, layers), backend)
        model = _models[kind]
        inputs = {
            name: value.to(model.dtype) if value.is_floating_point() else value
            for name, value in tiny_inputs(model, case).items()
        }
        _cases[key] = Case(model, inputs, f"{family}, {case}, {backend}", generates=case != "right")
    return _cases[key]


def _decided(model: Any, backend: str) -> Any:
    """A mixture of experts in float64: in float32 rounding alone now and then sends a token to another expert.

    Not with eager attention, whose masks make NaN of fully padded rows there.
    """
    if backend != "sdpa" or not getattr(model.config.get_text_config(), "num_experts", 0):
        return model
    model.set_experts_implementation("eager")  # the grouped product knows no float64
    return model.double()


@dataclass
class CheckResult:
    """The findings, and on which families the method says that it cannot work."""

    findings: list[Finding] = field(default_factory=list)
    unsupported: dict[str, str] = field(default_factory=dict)
    runs: int = 0


def check_reducer(
    reducer: TokenReducer | type[TokenReducer],
    families: Sequence[str] = USUAL,
    backends: Sequence[str] = BACKENDS,
    progress: Callable[[str], None] = lambda where: None,
) -> list[Finding]:
    """Run guarantees 1 to 6 for a method; return what does not hold, [] where all does."""
    return check_all(reducer, families, backends, progress).findings


def check_all(
    reducer: TokenReducer | type[TokenReducer],
    families: Sequence[str] = USUAL,
    backends: Sequence[str] = BACKENDS,
    progress: Callable[[str], None] = lambda where: None,
) -> CheckResult:
    """As `check_reducer`, with the families that were left out and the number of runs."""
    result = CheckResult()
    try:
        check_class(type(reducer) if isinstance(reducer, TokenReducer) else reducer)
        method = reducer if isinstance(reducer, TokenReducer) else reducer()
    except Exception as error:
        result.findings.append(Finding(0, "its class", reason(error)))
        return result
    dropped = False
    for family in families:
        for backend in backends:
            for case in cases(tiny_case(family, "single", backend).model):
                if backend != BACKENDS[0] and case not in ("single", "left", "video"):
                    continue
                progress(f"{family}, {case}, {backend}")
                report = check_case(tiny_case(family, case, backend), [method])
                result.runs += 1
                if report.unsupported:
                    result.unsupported.setdefault(family, report.unsupported)
                    continue
                dropped = dropped or report.dropped
                result.findings += report.findings
        if family not in result.unsupported and not result.findings:
            progress(f"{family}, repeated")
            result.findings += check_independence(method, family)
            result.findings += check_full_retention(method, family)
            result.findings += check_failure(method, family)
    acts = method.enters or method.acts_inside
    if acts and not dropped and not result.findings and len(result.unsupported) < len(families):
        result.findings.append(Finding(1, "every family and case", "not one token was dropped; do its hooks act?"))
    if len(result.unsupported) == len(families):
        why = next(iter(result.unsupported.values()))
        result.findings.append(Finding(4, "every family", f"the method says that it cannot work: {why}"))
    return result


def check_independence(method: TokenReducer, family: str, layers: int = LAYERS) -> Iterator[Finding]:
    """The same sample keeps the same tokens: asked twice, and whatever else is in its batch."""
    case = tiny_case(family, "left", layers=layers)
    first, second = (_kept(case, method, case.inputs) for _ in range(2))
    if first != second:
        yield Finding(6, case.where, "the same call twice keeps other tokens; keep no state between calls, seed noise.")
        return
    for index, together in enumerate(first):
        (alone,) = _kept(case, method, take_sample(case.inputs, "left", index), index)
        if alone != together:
            where = f"{case.where}, sample {index}"
            yield Finding(6, where, "in a batch it keeps other tokens than alone; hooks see one sample at a time.")
            return


def _kept(case: Case, method: TokenReducer, inputs: dict[str, Any], first: int = 0) -> list[Any]:
    """By `generate`, which gives a padded sample the positions that it has alone."""
    with torch.no_grad(), tokenzoo.apply(case.model, [method], **words(inputs, first)) as running:
        case.model.generate(**inputs, max_new_tokens=1, do_sample=False)
        return [(sample.entry, sample.stages) for sample in running.trace.samples]


def check_full_retention(method: TokenReducer, family: str, layers: int = LAYERS) -> Iterator[Finding]:
    """Set to keep everything, a method is the plain model."""
    try:
        everything = method.at_retention(1.0, layers)
    except (UnreachableError, NotImplementedError):
        return
    except UserError as error:
        yield Finding(6, family, f"at_retention(1.0) raised {reason(error)}")
        return
    case = tiny_case(family, "single", layers=layers)
    try:
        with torch.no_grad(), tokenzoo.apply(case.model, [everything], **words(case.inputs)) as running:
            logits = case.model(**case.inputs).logits
            counts = running.trace.visual_tokens()
    except UserError as error:
        yield Finding(6, case.where, f"at retention 1.0: {error}")
        return
    if everything.enters and everything.acts_inside and counts[-1] < counts[0] == counts[1]:
        return  # its knob sets what enters the LLM; inside, it goes on pruning
    difference = (logits[:, -1] - case.prompt.logits[:, -1]).abs().max().item()
    if difference > TOLERANCE:
        yield Finding(6, case.where, f"at retention 1.0 it is not the plain model: logits differ by {difference:.2g}.")


def check_failure(method: TokenReducer, family: str, layers: int = LAYERS) -> Iterator[Finding]:
    """Whatever is raised inside the block, the model is as it was after it."""
    case = tiny_case(family, "single", layers=layers)
    try:
        with tokenzoo.apply(case.model, [method]):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    yield from leftovers(case)
    with torch.no_grad():
        logits = case.model(**case.inputs).logits
    if not torch.equal(logits, case.prompt.logits):
        yield Finding(3, case.where, "after the 'with' block the model does not answer as before.")
