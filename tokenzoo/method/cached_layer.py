"""What a method sees of a KV cache: one sample's share of one layer's, after the prefill and before a decoding step reads it.

What costs something is a method and is computed when asked for, never before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tokenzoo.lazy import torch
from tokenzoo.method import ops
from tokenzoo.method.validation import Checks, check_count, check_indices
from tokenzoo.method.workload import Choice

if TYPE_CHECKING:
    from torch import Tensor


class CacheSignals(Protocol):
    """What is known of a layer's cache after the prefill; the host and the stand-ins implement it."""

    scaling: float

    def key(self) -> Tensor: ...
    def value(self) -> Tensor: ...
    def query(self) -> Tensor: ...
    def alive(self, layer: int) -> Tensor: ...


@dataclass
class CachedLayer:
    """One sample's rows in the KV cache of decoder layer `index` of `num_layers`, once the whole prompt is through.

    `rows` [cached] tells which row of the LLM's input each of them is; `visual` and `text` are the indices of the visual and
    of the text tokens among them, ascending. `entered`: how many visual tokens entered the LLM. `memory` is the one that
    `DecoderLayer.memory` was, and lasts through decoding.
    """

    index: int
    num_layers: int
    rows: Tensor
    visual: Tensor
    text: Tensor
    entered: int
    signals: CacheSignals
    memory: dict[str, Any] = field(default_factory=dict)
    source_memories: list[dict[str, Any]] = field(default_factory=list)
    #: Which of the layer's rows are left, in their order; None: all of them.
    kept: Tensor | None = None
    checks: Checks = field(default_factory=Checks)
    #: What the host notes of methods that choose themselves how many tokens stay.
    choices: list[Choice] = field(default_factory=list)

    def keys(self) -> Tensor:
        """The cached keys, after the rotary embedding, [kv heads, cached, head dim]."""
        return self._left(self.signals.key())

    def values(self) -> Tensor:
        """The cached values, [kv heads, cached, head dim]."""
        return self._left(self.signals.value())

    def attention(self) -> Tensor:
        """Attention weights of this layer in the prefill, [heads, last rows, cached], float32: of the prompt's last
        `query_rows` tokens, in their order (fewer where the layer had fewer). Where a method cut this cache before, the
        weights are those of what is left, as they were."""
        query, key = self.signals.query(), self.signals.key()
        rows = torch.arange(key.shape[1] - query.shape[1], key.shape[1], device=key.device)
        weights = ops.attention_weights(query, key, rows, self.signals.scaling)
        return weights if self.kept is None else weights[..., self.kept]

    def alive(self, layer: int | None = None) -> Tensor:
        """Which of the visual tokens cached here decoder layer `layer` had too (None: the last one), as `pick_cached` returns
        them: indices into `visual`."""
        there = self.signals.alive(self.num_layers - 1 if layer is None else layer)
        own = self.rows[self.visual]
        if self.kept is not None:
            return torch.isin(own, there).nonzero()[:, 0]
        ascending, order = own.sort()  # nothing was cut, so all of them are here: no need to wait for their number
        return order[torch.searchsorted(ascending, there)].sort().values

    def _left(self, states: Tensor) -> Tensor:
        return states if self.kept is None else states[:, self.kept]

    def apply(self, picked: Tensor, method: str, count: int | None) -> None:
        """Keep the visual tokens `picked` (indices into `visual`) and the text; they stay in sequence order."""
        where = f"in the cache of layer {self.index}"
        picked = check_indices(picked, len(self.visual), self.rows.device, method, where, self.checks)
        check_count(len(picked), count, method, where)
        left, order = torch.cat([self.text, self.visual[picked]]).sort()
        ascending = (order >= len(self.text)).long().argsort(stable=True)
        self.text, self.visual = ascending[: len(self.text)], ascending[len(self.text) :]
        self.rows, self.kept = self.rows[left], left if self.kept is None else self.kept[left]


class ReadSignals(Protocol):
    """What is known in a decoding step; the host and the stand-ins implement it."""

    def attention(self, layer: int, index: int) -> Tensor: ...


@dataclass
class CacheRead:
    """One sample in a decoding step, before decoder layer `index` of `num_layers` reads its KV cache.

    `visual` [visual]: the visual tokens that it would read, in sequence order, as rows of the LLM's input; layers that would
    read the same ones, and the steps after this one, are given the same tensor. Text, and what was generated, is always read.
    `entered`: how many visual tokens entered the LLM; `generated`: how many tokens were generated before this step. `memory` is
    that of the sample's prefill: what one step wants to tell the next one, or one layer the next one, goes there.
    """

    index: int
    num_layers: int
    visual: Tensor
    entered: int
    generated: int
    signals: ReadSignals
    memory: dict[str, Any] = field(default_factory=dict)
    source_memories: list[dict[str, Any]] = field(default_factory=list)
    #: Which of the cache's visual tokens are read, as indices into them; None: all.
    picked: Tensor | None = None
    checks: Checks = field(default_factory=Checks)

    def attention(self, layer: int) -> Tensor:
        """The new token's attention weights in decoder layer `layer`, which ran before, on the visual tokens that this layer
        would read, [heads, visual], float32; 0 for tokens that are not in that layer's cache."""
        weights = self.signals.attention(layer, self.index)
        return weights if self.picked is None else weights[:, self.picked]

    def apply(self, picked: Tensor, method: str, count: int | None) -> None:
        """Read the visual tokens `picked` alone (indices into those that it would read)."""
        picked = picked.to(self.visual.device)  # a choice that is made once may serve layers on several devices
        known = self.memory.get(_CHECKED)
        if known is None or known[0] is not picked or known[1] is not self.visual or known[2] != count:
            where = f"reading the cache of layer {self.index}"
            checked = check_indices(picked, len(self.visual), self.visual.device, method, where, self.checks)
            check_count(len(checked), count, method, where)
            known = self.memory[_CHECKED] = (picked, self.visual, count, checked, self.visual[checked])
        self.picked = known[3] if self.picked is None else self.picked[known[3]]
        self.visual = known[4]


#: What was checked last: a method usually reads the same tokens in many layers, and hands out the same tensor.
_CHECKED = "tokenzoo.checked"
