"""One method on one model and one batch: every guarantee that such a run can show."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import tokenzoo
from tokenzoo.errors import UnsupportedError
from tokenzoo.host.family import Family, find_family
from tokenzoo.host.validation import InvalidReductionError
from tokenzoo.pipeline import Pipeline
from tokenzoo.plugins import load_zoo, reason
from tokenzoo.reducer import DataDependentError, Reduction, TokenReducer
from tokenzoo.testing.findings import Finding
from tokenzoo.testing.oracle import FullPrompt, OracleSample, Positions, full_prompt, oracle_logits
from tokenzoo.testing.recorder import Call, watch
from tokenzoo.trace import SourceTrace, Trace
from tokenzoo.workload import Workload

#: Largest difference of two logits that count as equal, in float32.
TOLERANCE = 1e-4
NEW_TOKENS = 8


@dataclass
class Case:
    """A model, a batch for it, and what the plain model makes of it (computed once, shared by all methods)."""

    model: Any
    inputs: dict[str, Any]
    where: str
    generates: bool = True
    family: Family = field(init=False)
    prompt: FullPrompt = field(init=False)

    def __post_init__(self) -> None:
        self.family = find_family(self.model, load_zoo().families())
        self.decoder: Any = self.family.decoder(self.model)
        self.prompt = full_prompt(self.model, self.decoder, self.inputs)
        self.mrope = "mrope_section" in (getattr(self.decoder.config, "rope_parameters", None) or {})
        self.before = fingerprint(self.model)


@dataclass
class Outcome:
    """What a reduced run gave: everything the oracle is compared with."""

    trace: Trace
    logits: list[torch.Tensor]
    generated: torch.Tensor
    kv_lengths: list[int]
    entry: torch.Tensor
    calls: list[list[Call]]


@dataclass
class Report:
    """What was found, whether the method cannot work on this model by its own word, and whether it dropped tokens."""

    findings: list[Finding] = field(default_factory=list)
    unsupported: str = ""
    dropped: bool = False
    outcome: Outcome | None = None


def check_case(case: Case, reducers: Sequence[TokenReducer]) -> Report:
    """Run the methods on the case and return all that is wrong."""
    report = Report()
    watched = [watch(reducer) for reducer in reducers]
    states = [dict(vars(copy)) for copy, _ in watched]
    inputs = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in case.inputs.items()}
    try:
        outcome = run(case, [copy for copy, _ in watched], [calls for _, calls in watched])
    except UnsupportedError as error:
        report.unsupported = str(error)
        return report
    except InvalidReductionError as error:
        report.findings.append(Finding(6, case.where, f"it returned what is no reduction of its tokens. {error}"))
        return report
    except Exception as error:
        names = "+".join(reducer.name for reducer in reducers)
        report.findings.append(Finding(4, case.where, f"'{names}' raised {reason(error)}"))
        return report
    finally:
        report.findings += leftovers(case)
    report.outcome = outcome
    report.dropped = any(
        outcome.trace.visual_tokens(i)[-1] < sum(map(_offered, sample.sources)) for i, sample in enumerate(outcome.trace.samples)
    )
    for copy, state in zip((copy for copy, _ in watched), states, strict=True):
        if not _equal_state(vars(copy), state):
            written = sorted(set(vars(copy)) ^ set(state)) or sorted(k for k in state if vars(copy)[k] is not state[k])
            message = f"it wrote to self ({', '.join(written)}); keep what hooks share in tokens.memory / layer.memory."
            report.findings.append(Finding(3, case.where, message))
    report.findings += changed_inputs(case, outcome, inputs)
    structure = list(check_structure(case, outcome))
    report.findings += structure
    if not structure:
        report.findings += check_promises(case, outcome, reducers)
        report.findings += check_entry(case, outcome)
        report.findings += check_logits(case, outcome, reducers)
    return report


def _offered(source: SourceTrace) -> int:
    """Tokens that a source had before anything was reduced: before the projector there may be more."""
    before = sum(source.source.before_projector) if source.assignment is not None else 0
    return max(source.source.tokens, before)


def run(case: Case, reducers: Sequence[TokenReducer], calls: list[list[Call]]) -> Outcome:
    """Run the reduced model: generate 8 tokens, or only the forward pass where the batch is padded right."""
    seen: list[torch.Tensor] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not seen:
            seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    handle = case.decoder.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    inputs = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in case.inputs.items()}
    try:
        with torch.no_grad(), tokenzoo.apply(case.model, list(reducers)) as running:
            if case.generates:
                made = case.model.generate(
                    **inputs,
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
                steps = torch.stack(made.logits, dim=1)
                logits = list(steps)
                generated = made.sequences[:, -NEW_TOKENS:]
                cache = made.past_key_values
            else:
                output = case.model(**inputs, use_cache=True)
                generated = torch.empty(len(output.logits), 0, dtype=torch.long)
                cache = output.past_key_values
            trace = running.trace
    finally:
        handle.remove()
    if not case.generates:
        last = trace.layers - 1
        counts = [len(sample.rows(last)) for sample in trace.samples]
        logits = [output.logits[index, _rows(case, count, max(counts))] for index, count in enumerate(counts)]
    lengths = [int(layer.keys.shape[-2]) for layer in cache.layers]
    return Outcome(trace, logits, generated, lengths, seen[0], calls)


def _rows(case: Case, count: int, length: int) -> slice:
    """Where a sample of `count` rows lies in a batch of `length` columns: as the prompt was padded."""
    right = bool(case.prompt.mask[:, 0].all())
    return slice(0, count) if right else slice(length - count, length)


def check_structure(case: Case, outcome: Outcome) -> Iterator[Finding]:
    """Text is all there in every layer, visual tokens never come back, caches have the trace's lengths."""
    trace = outcome.trace
    for index, sample in enumerate(trace.samples):
        text = _text(case, index)
        where = f"{case.where}, sample {index}"
        for layer in range(trace.layers):
            rows = sample.rows(layer)
            present = [sample.entry[row] for row in rows if not sample.visual[row]]
            if present != text:
                gone = sorted(set(text) - set(present))
                what = f"text token {gone[0]} of the prompt is gone" if gone else "text is out of order"
                yield Finding(6, where, f"{what} in decoder layer {layer}; only visual tokens may be dropped.")
                break
            if layer and not set(rows) <= set(sample.rows(layer - 1)):
                yield Finding(1, where, f"decoder layer {layer} has tokens that layer {layer - 1} had not.")
                break
    new = outcome.generated.shape[1]
    expected = [
        max(trace.tokens(index)[layer] for index in range(len(trace.samples))) + max(new - 1, 0) for layer in range(trace.layers)
    ]
    for layer, (want, got) in enumerate(zip(expected, outcome.kv_lengths, strict=True)):
        if want != got:
            yield Finding(5, case.where, f"the cache of layer {layer} holds {got} tokens, the trace says {want}.")
            break


def _text(case: Case, index: int) -> list[int]:
    """The places of the text in a sample's prompt, padding not counted."""
    ids = case.inputs["input_ids"][index][case.prompt.mask[index]]
    placeholders = [case.family.token_id(case.model, kind) for kind in ("image", "video")]
    visual = torch.zeros_like(ids, dtype=torch.bool)
    for token in placeholders:
        visual |= ids == token if token is not None else False
    return (~visual).nonzero()[:, 0].tolist()


def check_promises(case: Case, outcome: Outcome, reducers: Sequence[TokenReducer]) -> Iterator[Finding]:
    """The schedule says how many visual tokens each layer gets; the trace says how many it got."""
    pipeline, architecture = Pipeline(tuple(reducers)), case.family.architecture(case.model)
    for index, sample in enumerate(outcome.trace.samples):
        got = outcome.trace.visual_tokens(index)
        where = f"{case.where}, sample {index}"
        sources = tuple(source.source for source in sample.sources)
        if not sources:
            if len(sample.rows(outcome.trace.layers - 1)) != sample.prompt_tokens:
                yield Finding(6, where, "a sample without images was changed.")
            continue
        recorded = tuple((*source.view_counts, len(source.rows) - sum(source.view_counts)) for source in sample.sources)
        text = sample.prompt_tokens - sum(source.tokens for source in sources)
        workload = Workload(architecture, sources, text)
        try:
            promised = _schedule(pipeline, workload, recorded)
        except DataDependentError:
            yield Finding(6, where, "schedule() raises DataDependentError although workload.recorded is given.")
            return
        except Exception as error:
            yield Finding(6, where, f"schedule() raised {reason(error)}")
            return
        if len(promised) != len(got):
            yield Finding(6, where, f"schedule() has {len(promised)} entries for {len(got)} decoder layers.")
            return
        wrong = [layer for layer, (want, have) in enumerate(zip(promised, got, strict=True)) if want != have]
        if wrong:
            layer = wrong[0]
            yield Finding(
                6,
                where,
                f"schedule() promises {promised[layer]} visual tokens in layer {layer}, {got[layer]} were there.",
            )


def _schedule(pipeline: Pipeline, workload: Workload, recorded: tuple[tuple[int, ...], ...]) -> list[int]:
    """The promise made without seeing the picture, or, where the picture decides, from what was recorded."""
    if pipeline.fixed_schedule:
        try:
            return list(pipeline.schedule(workload))
        except DataDependentError:
            pass
    return list(pipeline.schedule(replace(workload, recorded=recorded)))


def check_entry(case: Case, outcome: Outcome) -> Iterator[Finding]:
    """Every row that entered is the plain model's, or exactly what the method made of it."""
    counts = [len(sample.entry) for sample in outcome.trace.samples]
    number = 0
    for index, sample in enumerate(outcome.trace.samples):
        entered = outcome.entry[index, _rows(case, counts[index], max(counts))]
        full = case.prompt.embeddings[index][case.prompt.mask[index]]
        expected = full[torch.tensor(sample.entry, dtype=torch.long)].clone()
        for source in sample.sources:
            made = _made(case, outcome, number)
            number += 1
            if made is not None:
                if len(made) > len(source.rows):
                    yield Finding(1, f"{case.where}, sample {index}", "the method's tokens are not all in the trace.")
                    return
                expected[torch.tensor(source.rows[: len(made)], dtype=torch.long)] = made
        difference = (entered - expected).abs().amax().item() if len(entered) else 0.0
        if not difference <= TOLERANCE:
            message = f"what entered the LLM differs from what the method returned by {difference:.2g}."
            yield Finding(1, f"{case.where}, sample {index}", message)


def _made(case: Case, outcome: Outcome, number: int) -> torch.Tensor | None:
    """What the methods made of source `number` before the LLM; None where they left it alone."""
    made = None
    for calls in outcome.calls:
        own = [call for call in calls if call.hook == "before_projector"]
        if own and own[number].result is not None:
            made = own[number].output
    if made is not None:
        projector = case.family.projector(case.model)
        with torch.no_grad():
            made = case.family.projector_output(projector(case.family.projector_input(case.model, made)))
    for calls in outcome.calls:
        own = [call for call in calls if call.hook == "pre_llm"]
        if own and own[number].result is not None:
            made = own[number].output
    return made


def check_logits(case: Case, outcome: Outcome, reducers: Sequence[TokenReducer]) -> Iterator[Finding]:
    """Logits and tokens of prefill and every step against the mask oracle."""
    positions = Positions.of(list(reducers), case.mrope)
    merged = _merged(outcome)
    counts = [len(sample.entry) for sample in outcome.trace.samples]
    for index, sample in enumerate(outcome.trace.samples):
        where = f"{case.where}, sample {index}"
        entered = outcome.entry[index, _rows(case, counts[index], max(counts))]
        generated = outcome.generated[index]
        expected = oracle_logits(
            case.model,
            case.decoder,
            case.prompt,
            index,
            OracleSample(sample, entered, merged.get(index, {})),
            positions,
            generated[:-1],
        )
        got = outcome.logits[index]
        expected = expected[-len(got) :] if len(generated) else expected
        difference = (got - expected).abs().amax(-1)
        if not bool((difference <= TOLERANCE).all()):
            step = int((~(difference <= TOLERANCE)).nonzero()[0, 0])
            part = "prefill" if step == 0 or not len(generated) else f"decode step {step}"
            message = (
                f"logits of the {part} differ from the mask oracle's by {difference[step]:.2g} "
                f"(allowed {TOLERANCE:.0e}): the dropped tokens still act, or others were dropped."
            )
            yield Finding(1, where, message)
        elif len(generated):
            best = expected.argmax(-1)
            margin = expected.amax(-1) - expected.gather(1, generated[:, None])[:, 0]
            wrong = ((best != generated) & (margin > TOLERANCE)).nonzero()
            if len(wrong):
                step = int(wrong[0, 0])
                message = f"token {step} is {int(generated[step])}, the oracle's is {int(best[step])}."
                yield Finding(1, where, message)
    yield from _text_only(case, outcome)


def _text_only(case: Case, outcome: Outcome) -> Iterator[Finding]:
    """A sample without pictures answers as the plain model does."""
    for index, sample in enumerate(outcome.trace.samples):
        if not sample.sources:
            plain = case.prompt.logits[index][case.prompt.mask[index]]
            got = outcome.logits[index]
            first = got[:1] if case.generates else got
            wanted = plain[-1:] if case.generates else plain
            difference = (first - wanted).abs().max().item()
            if difference > TOLERANCE:
                message = f"a sample without images answers differently from the plain model (by {difference:.2g})."
                yield Finding(6, f"{case.where}, sample {index}", message)


def _merged(outcome: Outcome) -> dict[int, dict[int, tuple[torch.Tensor, torch.Tensor]]]:
    """Tokens merged inside the LLM, by sample and layer: entry rows and their new states."""
    merged: dict[int, dict[int, tuple[torch.Tensor, torch.Tensor]]] = {}
    for calls in outcome.calls:
        for layer in sorted({call.layer for call in calls if call.layer is not None}):
            own = [call for call in calls if call.layer == layer]
            samples = [i for i in range(len(outcome.trace.samples)) if outcome.trace.visual_tokens(i)[layer]]
            for call, index in zip(own, samples, strict=False):
                if isinstance(call.result, Reduction):
                    sample = outcome.trace.samples[index]
                    visual = [row for row in sample.rows(layer) if sample.visual[row]]
                    rows = torch.tensor([visual[anchor] for anchor in call.result.anchors.tolist()], dtype=torch.long)
                    merged.setdefault(index, {})[layer] = (rows, call.result.features)
    return merged


def changed_inputs(case: Case, outcome: Outcome, before: dict[str, Any]) -> Iterator[Finding]:
    """A method must not write into what it was given."""
    for calls in outcome.calls:
        for call in calls:
            if call.changed:
                place = call.hook if call.layer is None else f"{call.hook} (layer {call.layer})"
                message = f"{place} changed its input in place ({', '.join(call.changed)}); work on a copy."
                yield Finding(3, case.where, message)
                return
    for name, value in before.items():
        if isinstance(value, torch.Tensor) and not torch.equal(value, case.inputs[name]):
            yield Finding(3, case.where, f"the call's argument '{name}' was changed in place.")


def fingerprint(model: Any) -> tuple[Any, ...]:
    """Everything of a model that a run must not change: hooks, weights, configuration, forward methods."""
    hooks = tuple(
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), "forward" in vars(module))
        for name, module in model.named_modules()
    )
    weights = sum(parameter.double().sum().item() for parameter in model.parameters())
    return hooks, weights, str(model.config.to_dict()), str(model.generation_config.to_dict())


def leftovers(case: Case) -> list[Finding]:
    """Differences between the model as it was and as it is after the block."""
    after = fingerprint(case.model)
    what = ("a hook or a patched forward was left behind", "weights were changed", "the configuration was changed")
    for name, old, new in zip((*what, what[2]), case.before, after, strict=True):
        if old != new:
            case.before = after
            return [Finding(3, case.where, f"{name} after the 'with' block ended.")]
    return []


def _equal_state(now: dict[str, Any], before: dict[str, Any]) -> bool:
    return now.keys() == before.keys() and all(now[key] is before[key] or now[key] == before[key] for key in now)
