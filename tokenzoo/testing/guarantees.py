"""What one run must satisfy (guarantees 1, 5 and 6): each check yields what does not hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

from tokenzoo.cost.traces import recorded_run
from tokenzoo.method.pipeline import Pipeline
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.reduction import DataDependentError
from tokenzoo.method.trace import SampleTrace
from tokenzoo.method.workload import Workload
from tokenzoo.testing.case import Case, Outcome, sample_rows
from tokenzoo.testing.encoder import MaskedEncoder, masked_encoder
from tokenzoo.testing.findings import Finding
from tokenzoo.testing.oracle import has_keys, oracle_logits
from tokenzoo.testing.oracle import layer_window as cache_window
from tokenzoo.testing.positions import oracle_sample
from tokenzoo.testing.recorder import Call
from tokenzoo.zoo.errors import reason


def check_structure(case: Case, outcome: Outcome) -> Iterator[Finding]:
    """Text is all there in every layer, visual tokens never come back, caches have the trace's lengths."""
    trace = outcome.trace
    for index, sample in enumerate(trace.samples):
        text = _text(case, index)
        where = f"{case.where}, sample {index}"
        before = set(sample.rows(-1))
        for name, rows in _passed(sample, trace.layers):
            present = [sample.entry[row] for row in rows if not sample.visual[row]]
            if present != text:
                gone = sorted(set(text) - set(present))
                what = f"text token {gone[0]} of the prompt is gone" if gone else "text is out of order"
                yield Finding(6, where, f"{what} in {name}; only visual tokens may be dropped.")
                break
            if not set(rows) <= before:
                yield Finding(1, where, f"{name} has tokens that were gone before it.")
                break
            before = set(rows)
        yield from _cache_structure(outcome, index, where)
    new = outcome.generated.shape[1]
    lengths = [trace.cache_tokens(index) for index in range(len(trace.samples))]
    expected = [max(of_layer) + max(new - 1, 0) for of_layer in zip(*lengths, strict=True)]
    windows = [cache_window(case.decoder, layer) for layer in range(trace.layers)]
    expected = [want if window is None else min(want, window - 1) for want, window in zip(expected, windows, strict=True)]
    for layer, (want, got) in enumerate(zip(expected, outcome.kv_lengths, strict=True)):
        if got != (want if has_keys(case.decoder, layer) else None):
            yield Finding(5, case.where, f"the cache of layer {layer} holds {got} tokens, the trace says {want}.")
            break


def _passed(sample: SampleTrace, layers: int) -> Iterator[tuple[str, list[int]]]:
    """The rows that each decoder layer, and then its MLP, saw."""
    for layer in range(layers):
        yield f"decoder layer {layer}", sample.rows(layer)
        yield f"the MLP of decoder layer {layer}", sample.mlp_rows(layer)


def _cache_structure(outcome: Outcome, index: int, where: str) -> Iterator[Finding]:
    """Caches hold rows that passed their layer, all text among them; steps read what is cached."""
    sample = outcome.trace.samples[index]
    for layers, rows in sample.cached:
        passed = set(sample.rows(layers[0]))
        if not set(rows) <= passed or not {row for row in passed if not sample.visual[row]} <= set(rows):
            yield Finding(6, where, f"the cache of layer {layers[0]} lacks text, or holds tokens that never passed the layer.")
            return
    for step, groups in enumerate(sample.reads):
        for layers, rows in groups:
            if any(not sample.visual[row] or row not in sample.cache(layers[0]) for row in rows):
                yield Finding(6, where, f"decode step {step + 1} reads in layer {layers[0]} what is not in its cache.")
                return


def _text(case: Case, index: int) -> list[int]:
    """The places of the text in a sample's prompt, padding not counted."""
    ids = case.inputs["input_ids"][index][case.prompt.mask[index]]
    placeholders = [case.family.token_id(case.model, kind) for kind in ("image", "video")]
    visual = torch.zeros_like(ids, dtype=torch.bool)
    for token in placeholders:
        visual |= ids == token if token is not None else False
    return (~visual).nonzero()[:, 0].tolist()


def check_promises(case: Case, outcome: Outcome, reducers: Sequence[TokenReducer]) -> Iterator[Finding]:
    """The schedules say how many visual tokens each layer, and each MLP, gets; the trace says how many it got."""
    pipeline, architecture = Pipeline(tuple(reducers)), case.family.architecture(case.model)
    for index, sample in enumerate(outcome.trace.samples):
        where = f"{case.where}, sample {index}"
        sources = tuple(source.source for source in sample.sources)
        if not sources:
            if len(sample.rows(outcome.trace.layers)) != sample.prompt_tokens:
                yield Finding(6, where, "a sample without images was changed.")
            continue
        text = sample.prompt_tokens - sum(source.tokens for source in sources)
        workload = Workload(architecture, sources, text)
        text_rows = sum(not visual for visual in sample.visual)
        held = [count - text_rows for count in outcome.trace.cache_tokens(index)]
        read = [outcome.trace.read_tokens(index, step) for step in range(len(sample.reads))]
        for name, of_layer, schedule, got in (
            ("schedule", "layer", pipeline.schedule, outcome.trace.visual_tokens(index)),
            ("mlp_schedule", "the MLP of layer", pipeline.mlp_schedule, outcome.trace.mlp_visual_tokens(index)),
            ("cache_schedule", "the cache of layer", pipeline.cache_schedule, held),
            *(("read_schedule", "what a step reads of layer", pipeline.read_schedule, counts) for counts in read),
        ):
            try:
                promised = _promised(schedule, workload, sample)
            except DataDependentError:
                yield Finding(6, where, f"{name}() raises DataDependentError although workload.recorded is given.")
                return
            except Exception as error:
                yield Finding(6, where, f"{name}() raised {reason(error)}")
                return
            if len(promised) != len(got):
                yield Finding(6, where, f"{name}() has {len(promised)} entries for {len(got)} decoder layers.")
                return
            wrong = [layer for layer, (want, have) in enumerate(zip(promised, got, strict=True)) if want != have]
            if wrong:
                layer = wrong[0]
                promise = f"{name}() promises {promised[layer]} visual tokens in {of_layer} {layer}"
                yield Finding(6, where, f"{promise}, {got[layer]} were there.")
                break


def _promised(schedule: Callable[[Workload], list[int]], workload: Workload, sample: SampleTrace) -> list[int]:
    """The promise made without seeing the picture, or, where the picture decides, from what was recorded."""
    try:
        return list(schedule(workload))
    except DataDependentError:
        return list(schedule(replace(workload, recorded=recorded_run(sample))))


def check_entry(case: Case, outcome: Outcome, reducers: Sequence[TokenReducer]) -> Iterator[Finding]:
    """Every row that entered is the plain model's, or exactly what the methods made of it."""
    counts = [len(sample.entry) for sample in outcome.trace.samples]
    inside = _encoders(case, outcome, reducers)
    for index, sample in enumerate(outcome.trace.samples):
        where = f"{case.where}, sample {index}"
        entered = outcome.entry[index, sample_rows(case, counts[index], max(counts))]
        full = case.prompt.embeddings[index][case.prompt.mask[index]]
        expected = full[torch.tensor(sample.entry, dtype=torch.long)].clone()
        for number, (source, calls) in enumerate(zip(sample.sources, outcome.entering[index], strict=True)):
            encoder = inside.get((index, number))
            if encoder is not None:
                difference = max(encoder.difference, _unlike(case, encoder, calls))
                if not difference <= case.tolerance:
                    what = "inside or behind the encoder the method was shown other tokens than the oracle has, by"
                    yield Finding(1, where, f"{what} {difference:.2g}.")
            made = _made(case, calls, encoder)
            if made is not None:
                if len(made) > len(source.rows):
                    yield Finding(1, where, "the method's tokens are not all in the trace.")
                    return
                expected[torch.tensor(source.rows[: len(made)], dtype=torch.long)] = made
                if encoder is not None and source.source.through:  # CLS tokens saw what was left
                    rows = torch.tensor(source.rows[len(made) :], dtype=torch.long)
                    expected[rows] = _projected(case, encoder.features[:, 0])
        difference = (entered - expected).abs().amax().item() if len(entered) else 0.0
        if not difference <= case.tolerance:
            message = f"what entered the LLM differs from what the method returned by {difference:.2g}."
            yield Finding(1, where, message)


def _encoders(case: Case, outcome: Outcome, reducers: Sequence[TokenReducer]) -> dict[tuple[int, int], MaskedEncoder]:
    """For each sample and source of which patches left inside the encoder, the encoder's mask oracle."""
    proportional = any(reducer.proportional_attention for reducer in reducers if reducer.acts_in_encoder)
    stacks, used, found = case.family.encoder_stacks, {"image": 0, "video": 0}, {}
    for index, sample in enumerate(outcome.trace.samples):
        for number, (source, calls) in enumerate(zip(sample.sources, outcome.encoder[index], strict=True)):
            kind, views = source.source.kind, len(source.source.before_projector)
            first, used[kind] = used[kind], used[kind] + views
            if calls:
                entering = case.entering_views[kind][first : first + views]
                stack = stacks(case.model)[-1 if kind == "video" else 0]
                found[index, number] = masked_encoder(case.model, case.family, stack, entering, calls, proportional)
    return found


def _projected(case: Case, features: torch.Tensor) -> torch.Tensor:
    projector = case.family.projector(case.model)
    with torch.no_grad():
        return case.family.projector_output(case.model, projector(case.family.projector_input(case.model, features)), features)


def _behind(case: Case, encoder: MaskedEncoder) -> torch.Tensor:
    """The tokens [tokens, width] of a source before the projector, CLS left out."""
    return encoder.features[:, int(case.family.has_cls(case.model)) :].flatten(0, 1)


def _unlike(case: Case, encoder: MaskedEncoder, calls: Sequence[Call]) -> float:
    """By how much what the first method behind the encoder was given differs from what left it."""
    if not calls:
        return 0.0
    behind = _behind(case, encoder)
    behind = behind if calls[0].early else _projected(case, behind)
    return (calls[0].features - behind).abs().max().item() if calls[0].features.shape == behind.shape else torch.inf


def _made(case: Case, calls: Sequence[Call], encoder: MaskedEncoder | None) -> torch.Tensor | None:
    """What the methods made of one source before the LLM; None where they left it alone."""
    if not calls:
        return None if encoder is None else _projected(case, _behind(case, encoder))
    return _projected(case, calls[-1].output) if calls[-1].early else calls[-1].output


def check_logits(case: Case, outcome: Outcome, reducers: Sequence[TokenReducer]) -> Iterator[Finding]:
    """Logits and tokens of prefill and every step against the mask oracle."""
    counts = [len(sample.entry) for sample in outcome.trace.samples]
    for index in range(len(counts)):
        where = f"{case.where}, sample {index}"
        entered = outcome.entry[index, sample_rows(case, counts[index], max(counts))]
        generated = outcome.generated[index]
        expected = oracle_logits(
            case.model,
            case.decoder,
            case.prompt,
            index,
            oracle_sample(case, outcome, index, reducers, entered),
            generated[:-1],
        )
        got = outcome.logits[index]
        expected = expected[-len(got) :] if len(generated) else expected
        difference = (got - expected).abs().amax(-1)
        if not bool((difference <= case.tolerance).all()):
            step = int((~(difference <= case.tolerance)).nonzero()[0, 0])
            part = "prefill" if step == 0 or not len(generated) else f"decode step {step}"
            message = (
                f"logits of the {part} differ from the mask oracle's by {difference[step]:.2g} "
                f"(allowed {case.tolerance:.0e}): the dropped tokens still act, or others were dropped."
            )
            yield Finding(1, where, message)
        elif len(generated):
            best = expected.argmax(-1)
            margin = expected.amax(-1) - expected.gather(1, generated[:, None])[:, 0]
            wrong = ((best != generated) & (margin > case.tolerance)).nonzero()
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
            if difference > case.tolerance:
                message = f"a sample without images answers differently from the plain model (by {difference:.2g})."
                yield Finding(6, f"{case.where}, sample {index}", message)
