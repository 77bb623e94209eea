"""A model and a batch, one run of methods on them, and what must be the same afterwards."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

import tokenzoo
from tokenzoo.application import family_of
from tokenzoo.host.family import LINEAR, Family
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.method.trace import Trace
from tokenzoo.testing.encoder import entering_views
from tokenzoo.testing.findings import Finding
from tokenzoo.testing.inputs import encoded_first, words
from tokenzoo.testing.oracle import FullPrompt, full_prompt
from tokenzoo.testing.recorder import Call, calls_of, encoder_calls_of

NEW_TOKENS = 8
#: Largest difference of two logits that count as equal, in float32 and float64.
TOLERANCE = 1e-4
#: In a short format, and in a recurrence, two ways to compute one number may each be off by as much as the plain model is.
EITHER_SIDE = 2
#: A recurrence carries what is rounded on from row to row.
ALONG_A_RECURRENCE = 8


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
        self.family = family_of(self.model)
        self.decoder: Any = self.family.decoder(self.model)
        self.prompt = full_prompt(self.model, self.decoder, self.inputs)
        self.mrope = "mrope_section" in (getattr(self.decoder.config, "rope_parameters", None) or {})
        self.before = fingerprint(self.model)
        self.tolerance = TOLERANCE
        recurrent = LINEAR in (getattr(self.decoder.config, "layer_types", None) or ())
        if recurrent or self.model.dtype not in (torch.float32, torch.float64):
            self.tolerance = max(TOLERANCE, (ALONG_A_RECURRENCE if recurrent else EITHER_SIDE) * _rounding(self))

    @cached_property
    def entering_views(self) -> dict[str, torch.Tensor]:
        """What enters the plain encoder, see `entering_views`; only methods that act inside it are compared with it."""
        return entering_views(self.model, self.family, self.inputs)


@torch.no_grad()
def _rounding(case: Case) -> float:
    """How far the plain model's logits are from those of a longer number format; of float64, from those of float32, in which
    transformers computes a recurrence in any case."""
    longer = torch.float64 if case.model.dtype == torch.float32 else torch.float32
    exact = copy.deepcopy(case.model).to(longer)
    exact.set_attn_implementation("sdpa")
    if torch.float64 in (longer, case.model.dtype):
        exact.set_experts_implementation("eager")  # the grouped product knows no float64
    inputs = {name: value.to(longer) if value.is_floating_point() else value for name, value in case.inputs.items()}
    return (exact(**encoded_first(exact, inputs)).logits - case.prompt.logits)[case.prompt.mask].abs().max().item()


@dataclass
class Outcome:
    """What a reduced run gave: everything the oracle is compared with.

    `kv_lengths`: rows in each layer's KV cache; None where a layer has none.
    `entering`: for each sample and each of its images and videos the methods' calls before the LLM; `inside`: for each sample
    those inside it; `encoder`, as `entering`: those inside the encoder.
    """

    trace: Trace
    logits: list[torch.Tensor]
    generated: torch.Tensor
    kv_lengths: list[int | None]
    entry: torch.Tensor
    entering: list[list[list[Call]]]
    inside: list[list[Call]]
    encoder: list[list[list[Call]]]


@dataclass
class Report:
    """What was found, whether the method cannot work on this model by its own word, and whether it dropped tokens."""

    findings: list[Finding] = field(default_factory=list)
    unsupported: str = ""
    dropped: bool = False
    outcome: Outcome | None = None


def run(case: Case, reducers: Sequence[TokenReducer]) -> Outcome:
    """Run the reduced model: generate 8 tokens, or only the forward pass where the batch is padded right."""
    seen: list[torch.Tensor] = []

    def note(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not seen:
            seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    handle = case.decoder.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    inputs = {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in case.inputs.items()}
    try:
        with torch.no_grad(), tokenzoo.apply(case.model, list(reducers), **words(inputs)) as running:
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
                generated = inputs["input_ids"][:, :0]
                cache = output.past_key_values
            trace = running.trace
            prompt = running.prefill.prompt
            samples = range(len(trace.samples))
            entering = [[calls_of(source.memory) for source in prompt.of_sample(sample)] for sample in samples]
            encoder = [[encoder_calls_of(source.memory) for source in prompt.of_sample(sample)] for sample in samples]
            inside = [calls_of(prompt.memory(sample)) for sample in samples]
    finally:
        handle.remove()
    if not case.generates:
        counts = [len(sample.rows(trace.layers)) for sample in trace.samples]
        logits = [output.logits[index, sample_rows(case, count, max(counts))] for index, count in enumerate(counts)]
    keys = [getattr(layer, "keys", None) for layer in cache.layers]
    lengths = [None if states is None else int(states.shape[-2]) for states in keys]
    lengths += [None] * (trace.layers - len(lengths))  # transformers 5.19 leaves out layers at the end that share keys
    return Outcome(trace, logits, generated, lengths, seen[0], entering, inside, encoder)


def sample_rows(case: Case, count: int, length: int) -> slice:
    """Where a sample of `count` rows lies in a batch of `length` columns: as the prompt was padded."""
    right = bool(case.prompt.mask[:, 0].all())
    return slice(0, count) if right else slice(length - count, length)


def fingerprint(model: Any) -> tuple[Any, ...]:
    """Everything of a model that a run must not change: hooks, weights, configuration, forward methods."""
    hooks = tuple(
        (name, _hooks(module._forward_hooks), _hooks(module._forward_pre_hooks), "forward" in vars(module))
        for name, module in model.named_modules()
    )
    weights = sum(parameter.cpu().double().sum().item() for parameter in model.parameters())
    return hooks, weights, str(model.config.to_dict()), str(model.generation_config.to_dict())


def _hooks(hooks: dict[int, Any]) -> int:
    """How many hooks there are; those that transformers itself installs when a module first runs are part of the model."""
    return sum(not str(getattr(hook, "__module__", "")).startswith("transformers.") for hook in hooks.values())


def leftovers(case: Case) -> list[Finding]:
    """Differences between the model as it was and as it is after the block."""
    after = fingerprint(case.model)
    what = ("a hook or a patched forward was left behind", "weights were changed", "the configuration was changed")
    for name, old, new in zip((*what, what[2]), case.before, after, strict=True):
        if old != new:
            case.before = after
            return [Finding(3, case.where, f"{name} after the 'with' block ended.")]
    return []
