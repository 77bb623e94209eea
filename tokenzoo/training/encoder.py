"""The vision side of training: what each patch and the summary (CLS token or pooling head) tell, and where attention goes.

A patch tells what it shows and, background too, what the whole picture holds: so its query has a reason to look at objects, as
in encoders trained on captions. Attention is also led to objects directly, by their mask: that is saliency in general, no
method's rule. Every object gets the same share, so small objects stand out and the rims of large ones less.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tokenzoo.bench.scenes import CELLS, COLORS, KINDS

MEAN = 0.5
STD = 0.5
BACKGROUND_WEIGHT = 0.1
#: Of attention, this share is led to objects; the rest is spread evenly.
TO_OBJECTS = 0.6
#: Encoder layers whose attention is led: from this one on.
FIRST_LED = 2
TELLING = 24  #: patches of a picture that are asked what the whole picture holds, in a step


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """uint8 [batch, 96, 96, 3] -> normalised float [batch, 3, 96, 96], as the image processor does."""
    values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return ((values - MEAN) / STD).contiguous()


def encode(model: Any, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Patch features that the projector reads [batch, 144, hidden], and the summary: CLS token or pooling head."""
    outputs = model.model.vision_tower(values, output_hidden_states=True)
    features = outputs.hidden_states[model.config.vision_feature_layer]
    return features[:, has_cls(model) :], outputs.pooler_output


def has_cls(model: Any) -> bool:
    return model.config.vision_feature_select_strategy == "default"


class Heads(nn.Module):
    """Probes used in training only: kind, colour, row, column and time of a patch; what is in the picture, from anywhere."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.kind = nn.Linear(hidden, len(KINDS) + 1)
        self.color = nn.Linear(hidden, len(COLORS) + 1)
        self.row = nn.Linear(hidden, CELLS)
        self.column = nn.Linear(hidden, CELLS)
        self.time = nn.Linear(hidden, 1)
        self.contents = nn.Linear(hidden, (len(KINDS) + 1) * (len(COLORS) + 1))
        self.summary = nn.Linear(hidden, (len(KINDS) + 1) * (len(COLORS) + 1))

    def loss(
        self, features: torch.Tensor, summary: torch.Tensor, shown: torch.Tensor, time: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """shown [batch, 5, 12, 12], time [batch] -> (loss, share of object patches with the right kind and colour)."""
        features = self.norm(features.float())
        kind, color, row, column, _ = shown.flatten(2).unbind(1)
        weight = torch.where(kind > 0, 1.0, BACKGROUND_WEIGHT)
        weight = weight / weight.sum()
        told = [self.kind(features), self.color(features), self.row(features), self.column(features)]
        total = torch.zeros(())
        for logits, wanted, share in zip(told, (kind, color, row, column), (1, 1, 0.5, 0.5), strict=True):
            total = total + share * (F.cross_entropy(logits.transpose(1, 2), wanted, reduction="none") * weight).sum()
        total = total + (self.time(features)[..., 0] - (2 * time[:, None] - 1)).square().mean()
        holds = torch.zeros(len(features), self.contents.out_features)
        holds.scatter_(1, kind * (len(COLORS) + 1) + color, 1)
        some = features[:, torch.randperm(features.shape[1])[:TELLING]]
        from_patches = F.binary_cross_entropy_with_logits(self.contents(some), holds[:, None].expand(-1, TELLING, -1))
        from_summary = F.binary_cross_entropy_with_logits(self.summary(summary.float()), holds)
        right = (told[0].argmax(-1) == kind) & (told[1].argmax(-1) == color)
        return total + 3 * from_patches + 3 * from_summary, right[kind > 0].float().mean().item()


@contextmanager
def recorded(model: Any) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Queries and keys of the encoder's layers, [{"q_proj": [batch, N, hidden], "k_proj": ...}, ...].

    The pooling head, where there is one, comes last: {"head": [batch, patches]}.
    """
    tower = model.model.vision_tower
    records: list[dict[str, torch.Tensor]] = [{} for _ in tower.encoder.layers]
    hooks = []
    for record, layer in zip(records, tower.encoder.layers, strict=True):
        for name in ("q_proj", "k_proj"):
            hooks.append(
                getattr(layer.self_attn, name).register_forward_hook(
                    lambda _module, _inputs, output, record=record, name=name: record.__setitem__(name, output)
                )
            )
    if hasattr(tower, "head"):
        records.append({})

        def keep(head: Any, inputs: tuple) -> None:
            hidden = inputs[0]
            probe = head.probe.repeat(len(hidden), 1, 1)
            records[-1]["head"] = head.attention(probe, hidden, hidden, need_weights=True)[1][:, 0]

        hooks.append(tower.head.register_forward_pre_hook(keep))
    try:
        yield records
    finally:
        for hook in hooks:
            hook.remove()


def scores(record: dict[str, torch.Tensor], heads: int, cls: bool) -> dict[str, torch.Tensor]:
    """How much attention the patches of each picture get [batch, patches], by each way to read a layer's attention."""
    if "head" in record:
        return {"pooling head": record["head"].float()}
    query, key = (record[name].float().unflatten(-1, (heads, -1)).transpose(1, 2) for name in ("q_proj", "k_proj"))
    weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1).mean(1)
    flat_query, flat_key = record["q_proj"].float()[:, cls:].mean(1, keepdim=True), record["k_proj"].float()
    mean_query = (flat_query @ flat_key.transpose(1, 2) / flat_key.shape[-1] ** 0.5).softmax(-1)[:, 0]
    read = {"column mean": weights[:, cls:].mean(1), "mean query": mean_query}
    if cls:
        read["CLS row"] = weights[:, 0]
    return {name: values[:, cls:] for name, values in read.items()}


def salience(shown: torch.Tensor) -> torch.Tensor:
    """shown [pictures, 5, 12, 12] -> [pictures, 144]: every object one in all, its patches alike, background none."""
    size = shown[:, 4].flatten(1).float()
    return torch.where(size > 0, 1 / size.clamp(min=1) ** 2, 0)


def led(salient: torch.Tensor) -> torch.Tensor:
    """The shares of attention that are wanted: most to what is salient [batch, tokens], the rest spread evenly."""
    return TO_OBJECTS * salient / salient.sum(1, keepdim=True) + (1 - TO_OBJECTS) / salient.shape[1]


def attention_loss(model: Any, records: list[dict[str, torch.Tensor]], shown: torch.Tensor) -> torch.Tensor:
    """How far attention is from the objects, as the mean cross entropy over layers and ways to read them."""
    wanted = led(salience(shown))
    heads = model.config.vision_config.num_attention_heads
    losses = []
    for record in records[FIRST_LED:]:
        for values in scores(record, heads, has_cls(model)).values():
            share = values / values.sum(1, keepdim=True)
            losses.append(-(wanted * (share + 1e-8).log()).sum(1).mean())
    return torch.stack(losses).mean()


@torch.no_grad()
def objects_on_top(model: Any, values: torch.Tensor, shown: torch.Tensor) -> list[dict[str, float]]:
    """The share of object patches in the quarter that gets most attention, for each encoder layer and the pooling head."""
    with recorded(model) as records:
        encode(model, values)
    objects = shown[:, 0].flatten(1) > 0
    heads = model.config.vision_config.num_attention_heads
    shares = []
    for record in records:
        read = {}
        for name, attention in scores(record, heads, has_cls(model)).items():
            top = torch.zeros_like(objects).scatter_(1, attention.topk(attention.shape[1] // 4).indices, True)
            read[name] = ((top & objects).sum(1) / objects.sum(1)).mean().item()
        shares.append(read)
    return shares


def alignment(projected: torch.Tensor, oracle: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """How far projected features [batch, 144, hidden] are from the oracle tokens, in units of the oracle's spread."""
    weight = torch.where(shown[:, 0].flatten(1) > 0, 1.0, BACKGROUND_WEIGHT)
    distance = (projected.float() - oracle.detach()).square().mean(-1) / oracle.detach().var()
    return (distance * weight).sum() / weight.sum()
