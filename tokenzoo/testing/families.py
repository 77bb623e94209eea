"""For a family's author: every method on a tiny model of the family, and what the adapter tells against the model's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

import tokenzoo
from tokenzoo.application import family_of
from tokenzoo.errors import UnsupportedError
from tokenzoo.host.adapter import fault
from tokenzoo.method.decoder_layer import DecoderLayer
from tokenzoo.method.reducer import TokenReducer
from tokenzoo.testing.case import TOLERANCE, Case
from tokenzoo.testing.contract import check_case
from tokenzoo.testing.findings import Finding
from tokenzoo.testing.inputs import words
from tokenzoo.zoo.plugins import load_zoo


def check_family(
    model: Any, batches: Mapping[str, Mapping[str, Any]], methods: Sequence[str] = (), generates: bool = True
) -> list[Finding]:
    """Run `methods` (all of them, if none is named) on each of the named batches; return what does not hold, [] where all does.

    `batches`: keyword arguments of the model's call; padded left, or right where `generates` is False. The model is random,
    small, in float32 and evaluation mode, 12 layers deep for methods' defaults to act. A method's refusal to work on the model
    is no finding. Raises AdapterError where the adapter of the model's family is wrong.
    """
    for inputs in batches.values():
        check_attention(model, inputs)
    findings = []
    for where, inputs in batches.items():
        case = Case(model, dict(inputs), where, generates)
        for method in methods or load_zoo().names():
            findings += check_case(case, load_zoo().build(method).reducers).findings
    return findings


@dataclass
class Listens(TokenReducer):
    """Writes down the attention maps that it is told after each layer, and drops nothing."""

    name: ClassVar[str] = "listens"
    told: dict[str, Any] = field(default_factory=dict)

    def kept(self, entered: int, layers: int) -> dict[int, int | None]:
        return dict.fromkeys(range(layers - 1))

    def pick(self, layer: DecoderLayer, count: int | None) -> torch.Tensor:
        rows = torch.arange(len(layer.hidden_states))
        if "told" not in layer.memory:
            layer.memory["told"] = {}
            self.told.setdefault("samples", []).append(layer.memory["told"])
        for index, ask in ((layer.index, layer.attention), (layer.index + 1, layer.next_attention)):
            try:
                layer.memory["told"][index] = ask(rows)
            except UnsupportedError:
                continue  # a layer without an attention map
        return torch.arange(len(layer.visual))


@torch.no_grad()
def check_attention(model: Any, inputs: Mapping[str, Any]) -> None:
    """Raise AdapterError where a layer's attention, made of the adapter's q and k, is not the one that the model computes."""
    backend = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        maps = model(**inputs, output_attentions=True).attentions
        method = Listens()
        with tokenzoo.apply(model, method, **words(dict(inputs))) as run:
            model(**inputs)
        padding = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        pictured = [index for index, sample in enumerate(run.trace.samples) if sample.sources]
        for sample, layers in zip(pictured, method.told.get("samples", ()), strict=True):
            rows = padding[sample]
            for layer, told in layers.items():
                apart = (told - maps[layer][sample][:, rows][:, :, rows]).abs().max().item()
                if not apart <= TOLERANCE:
                    wrong = (
                        f"and what is made of it tell another attention in layer {layer} than the model's own, by {apart:.2g}; "
                        "head_norms(), rotate() and rotary() have a part in it"
                    )
                    raise fault(family_of(model), "decoder_projections", wrong)
    finally:
        model.set_attn_implementation(backend)
