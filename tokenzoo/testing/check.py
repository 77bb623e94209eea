"""Every guarantee for one method, on tiny random models of every family: what `tokenzoo check` runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers.utils import import_utils

import tokenzoo
from tokenzoo.errors import UserError
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.reduction import UnreachableError
from tokenzoo.method.signatures import check_class
from tokenzoo.models.checkpoint import check_device
from tokenzoo.testing.case import EITHER_SIDE, Case, leftovers
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.findings import Finding
from tokenzoo.testing.inputs import cases, take_sample, tiny_inputs, words
from tokenzoo.testing.models import HERE, LAYERS, USUAL, Place, tiny_model
from tokenzoo.zoo.errors import reason

BACKENDS = ("sdpa", "eager")
#: Those that need a GPU, a short number format and a package of their own.
FLASH = ("flash_attention_2", "flash_attention_3")
_models: dict[tuple[str, str, int, Place], Any] = {}
_cases: dict[tuple[str, str, str, int, Place], Case] = {}


def tiny_case(family: str, case: str, backend: str = "sdpa", layers: int = LAYERS, place: Place = HERE) -> Case:
    """A model and a batch, with what the plain model makes of it; made once per process."""
    key, kind = (family, case, backend, layers, place), (family, backend, layers, place)
    if key not in _cases:
        if kind not in _models:
            _models[kind] = _placed(tiny_model(family, backend, layers), backend, place)
        model = _models[kind]
        where = f"{family}, {case}, {backend}" + (f", {place}" if place != HERE else "")
        _cases[key] = Case(model, tiny_inputs(model, case), where, generates=case != "right")
    return _cases[key]


def check_place(place: Place, backends: Sequence[str] = BACKENDS) -> None:
    """Raise UserError where this machine cannot run the tiny models there."""
    check_device(place.device)
    if place.dtype == torch.float64 and not place.has_float64:
        raise UserError(f"'{place.device}' has no float64. Choose float32, bfloat16 or float16.")
    for backend in backends:
        if backend not in FLASH:
            continue
        if torch.device(place.device).type != "cuda" or place.full:
            raise UserError(f"'{backend}' needs a GPU and a short number format. Pass --device cuda --dtype bfloat16 as well.")
        if not getattr(import_utils, f"is_{backend.replace('flash_attention', 'flash_attn')}_available")():
            raise UserError(f"'{backend}' is not installed here. Choose from: {', '.join(BACKENDS)}.")


@contextmanager
def all_digits() -> Iterator[None]:
    """Products and convolutions in float32 where a GPU may take TF32, which has the digits of float16."""
    products = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(products)


def _placed(model: Any, backend: str, place: Place) -> Any:
    """The model on its device; a mixture of experts in float64, for rounding alone now and then sends a token to another expert.

    Not with eager attention, whose masks make NaN of fully padded rows there, nor where a device has no float64.
    """
    mixture = getattr(model.config.get_text_config(), "num_experts", 0)
    if not mixture or backend != "sdpa" or not place.has_float64:
        return model.to(dtype=place.dtype).to(place.device)
    model.set_experts_implementation("eager")  # the grouped product knows no float64
    return model.double().to(place.device)


@dataclass
class CheckResult:
    """The findings, on which families the method says that it cannot work, and what could not be asked for there."""

    findings: list[Finding] = field(default_factory=list)
    unsupported: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    runs: int = 0


def check_reducer(
    reducer: TokenReducer | type[TokenReducer],
    families: Sequence[str] = USUAL,
    backends: Sequence[str] = BACKENDS,
    progress: Callable[[str], None] = lambda where: None,
    place: Place = HERE,
) -> list[Finding]:
    """Run guarantees 1 to 6 for a method; return what does not hold, [] where all does."""
    return check_all(reducer, families, backends, progress, place).findings


def check_all(
    reducer: TokenReducer | type[TokenReducer],
    families: Sequence[str] = USUAL,
    backends: Sequence[str] = BACKENDS,
    progress: Callable[[str], None] = lambda where: None,
    place: Place = HERE,
) -> CheckResult:
    """As `check_reducer`, with the families that were left out and the number of runs.

    Raises UserError where there is no such `place` on this machine.
    """
    check_place(place, backends)
    with all_digits():
        return _check_all(reducer, families, backends, progress, place)


def _check_all(
    reducer: TokenReducer | type[TokenReducer],
    families: Sequence[str],
    backends: Sequence[str],
    progress: Callable[[str], None],
    place: Place,
) -> CheckResult:
    result = CheckResult(notes=list(_notes(families, place)))
    try:
        check_class(type(reducer) if isinstance(reducer, TokenReducer) else reducer)
        method = reducer if isinstance(reducer, TokenReducer) else reducer()
    except Exception as error:
        result.findings.append(Finding(0, "its class", reason(error)))
        return result
    dropped = False
    for family in families:
        for backend in backends:
            for case in cases(tiny_case(family, "single", backend, place=place).model):
                if backend != backends[0] and case not in ("single", "left", "video"):
                    continue
                progress(f"{family}, {case}, {backend}")
                report = check_case(tiny_case(family, case, backend, place=place), [method])
                result.runs += 1
                if report.unsupported:
                    result.unsupported.setdefault(family, report.unsupported)
                    continue
                dropped = dropped or report.dropped
                result.findings += report.findings
        if family not in result.unsupported and not result.findings:
            progress(f"{family}, repeated")
            if place.full:
                result.findings += check_independence(method, family, place=place)
            result.findings += check_full_retention(method, family, place=place)
            result.findings += check_failure(method, family, place=place)
    if method.acts and not dropped and not result.findings and len(result.unsupported) < len(families):
        result.findings.append(Finding(1, "every family and case", "not one token was dropped; do its hooks act?"))
    if len(result.unsupported) == len(families):
        why = next(iter(result.unsupported.values()))
        result.findings.append(Finding(4, "every family", f"the method says that it cannot work: {why}"))
    return result


def _notes(families: Sequence[str], place: Place) -> Iterator[str]:
    """What a place does not allow to ask for."""
    if not place.full:
        yield (
            f"In {place} logits may differ from the oracle's by {EITHER_SIDE} times what the format costs the plain model, and "
            "whether a sample keeps the same tokens alone and in a batch is not asked: rounding may choose others."
        )
    if not place.has_float64 and any("moe" in family for family in families):
        yield f"'{place.device}' has no float64, so that rounding may choose a mixture's experts: a finding there may be none."


def check_independence(method: TokenReducer, family: str, layers: int = LAYERS, place: Place = HERE) -> Iterator[Finding]:
    """The same sample keeps the same tokens: asked twice, and whatever else is in its batch."""
    case = tiny_case(family, "left", layers=layers, place=place)
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
    """What is left of each sample in each layer, by `generate`, which gives a padded sample the positions that it has alone."""
    with torch.no_grad(), tokenzoo.apply(case.model, [method], **words(inputs, first)) as running:
        case.model.generate(**inputs, max_new_tokens=3 if method.reads else 1, do_sample=False)
        trace = running.trace
        layers = range(trace.layers)
        return [(one.entry, [one.rows(layer) for layer in layers], one.cached, one.reads) for one in trace.samples]


def check_full_retention(method: TokenReducer, family: str, layers: int = LAYERS, place: Place = HERE) -> Iterator[Finding]:
    """Set to keep everything, a method is the plain model."""
    try:
        everything = method.at_retention(1.0, layers)
    except (UnreachableError, NotImplementedError):
        return
    except UserError as error:
        yield Finding(6, family, f"at_retention(1.0) raised {reason(error)}")
        return
    case = tiny_case(family, "single", layers=layers, place=place)
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
    if difference > case.tolerance:
        yield Finding(6, case.where, f"at retention 1.0 it is not the plain model: logits differ by {difference:.2g}.")


def check_failure(method: TokenReducer, family: str, layers: int = LAYERS, place: Place = HERE) -> Iterator[Finding]:
    """Whatever is raised inside the block, the model is as it was after it."""
    case = tiny_case(family, "single", layers=layers, place=place)
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
