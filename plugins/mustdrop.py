"""MustDrop: drop tokens where they are worth nothing, in the encoder, in the LLM and in its cache (Liu et al., 2024,
arXiv 2411.10803)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from tokenzoo import ActsAfter, Architecture, PositionPolicy, Reduction, Source, TokenReducer
from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

    from tokenzoo import CachedLayer, DecoderLayer, EncoderLayer, VisualTokens

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@dataclass
class MustDrop(TokenReducer):
    """Merge flat windows in the encoder, drop what the text looks past in four stages inside the LLM, then from its cache.

    **In the encoder**, after its first layer: windows of 3 x 3 patches whose nine tokens have a mean pairwise cosine of `similar`
    or more become their mean. Where views differ, each merges as many as the one with the fewest, its most alike. They
    come first, by descending cosine, then all other tokens as they stood. **Keys**: the ceil(`keys` · n) of n tokens that the
    CLS token attends to most in the encoder's last layer (mean over heads; without CLS all queries' mean) are never dropped.

    **Inside the LLM**, after layers 2, 6, 10 and 14 of 32 (`layer_list`; null: the same shares of the depth): of the attention
    weights, mean over heads, in the rows of the text behind the pictures, a token has the sum g and the largest m. Dropped is
    what has g < `total` · (sum of all g) and m < `single`, and is no key. **The KV caches** of
    the layers from the first to the last of those are cut to the tokens that are left after the last one. Positions are
    renumbered throughout.

    On purpose: a border of patches that fill no window stays; where no text stands behind the pictures, the last row counts.
    """

    similar: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False, description="Mean cosine of windows that merge.")] = 0.8
    keys: Annotated[Share, Field(description="Share of the tokens that are never dropped.")] = 0.08
    total: Annotated[float, Field(ge=0, allow_inf_nan=False, description="Share of all attention below which one drops.")] = 0.001
    single: Annotated[float, Field(ge=0, allow_inf_nan=False, description="Attention of one row below which one drops.")] = 0.001
    layer_list: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...] | None, Field(description="Layers after which tokens drop (null: by depth).")
    ] = None
    position: Annotated[PositionPolicy, Field(description="Position ids of what is left: 0..n-1, or each its own.")] = "renumber"

    name: ClassVar[str] = "mustdrop"
    knob: ClassVar[str] = ""
    text_aware: ClassVar[bool] = True
    encoder_acts_after: ClassVar[ActsAfter] = "layer"

    # --- in the encoder -----------------------------------------------------------------------------------------

    def encoder_kept(self, patches: int, architecture: Architecture) -> dict[int, None]:
        return {0: None}

    def encoder_pick(self, layer: EncoderLayer, count: int | None) -> Reduction:
        x = layer.hidden_states.float()
        views, patches = x.shape[:2]
        windows, rest = self.windows(patches, x.device)
        inside = x[:, windows]  # [views, windows, 9, width]
        unit = torch.nn.functional.normalize(inside, dim=-1)
        alike = (unit.sum(2).square().sum(-1) - unit.square().sum((2, 3))) / 72
        merged = int((alike >= self.similar).sum(1).min()) if len(windows) else 0
        order = alike.argsort(dim=1, descending=True, stable=True)
        chosen, others = order[:, :merged], order[:, merged:]
        stay = torch.cat([windows[others].flatten(1), rest.expand(views, -1)], 1).sort(1).values
        view = torch.arange(views, device=x.device)[:, None]
        features = torch.cat([inside[view, chosen].mean(2).to(layer.hidden_states.dtype), layer.hidden_states[view, stay]], 1)
        anchors = torch.cat([windows[chosen][:, :, 0], stay], 1)
        goes = torch.arange(anchors.shape[1], device=x.device).expand(views, -1)
        assignment = torch.empty(views, patches, dtype=torch.long, device=x.device).scatter(1, stay, goes[:, merged:])
        into = goes[:, :merged, None].expand(-1, -1, 9)
        return Reduction(features, anchors, assignment.scatter(1, windows[chosen].flatten(1), into.flatten(1)))

    def windows(self, patches: int, device: Any) -> tuple[Tensor, Tensor]:
        """The patches of each whole window of a square view [windows, 9], and those of none [rest]."""
        side = math.isqrt(patches)
        if side * side != patches or side < 3:
            everything = torch.arange(patches, device=device)
            return everything[:0].view(0, 9), everything
        grid, fit = torch.arange(patches, device=device).view(side, side), side // 3 * 3
        tiled = grid[:fit, :fit].unflatten(1, (-1, 3)).unflatten(0, (-1, 3)).transpose(1, 2).flatten(2).flatten(0, 1)
        return tiled, torch.cat([grid[:fit, fit:].flatten(), grid[fit:].flatten()])

    # --- before the LLM: which tokens are keys --------------------------------------------------------------------

    def left(self, views: tuple[int, ...], source: Source, architecture: Architecture) -> None:
        return None  # nothing goes, but the encoder is to be read

    def encoder_layers(self, architecture: Architecture) -> tuple[int, ...]:
        return (architecture.encoder_layers - 1,)

    def reduce(self, tokens: VisualTokens) -> Tensor:
        assert tokens.architecture is not None
        queries: Any = "cls" if tokens.has_cls else "all"
        attention = tokens.encoder_attention(tokens.architecture.encoder_layers - 1, queries).mean(0)
        everything = torch.arange(len(tokens.features), device=tokens.features.device)
        places = everything if tokens.anchors is None else tokens.anchors
        is_key = torch.zeros(sum(height * width for height, width in tokens.grids), dtype=torch.bool, device=places.device)
        for view in tokens.views():
            is_key[places[view[self.key_set(attention[view])]]] = True
        tokens.memory["mustdrop"] = is_key.view(len(tokens.grids), -1)
        return everything

    def key_set(self, attention: Tensor) -> Tensor:
        """The keys of a view, of which the attention on each token is given."""
        return attention.argsort(descending=True, stable=True)[: math.ceil(self.keys * len(attention))]

    # --- inside the LLM -----------------------------------------------------------------------------------------

    def stages(self, layers: int) -> tuple[int, ...]:
        return tuple(round(share * layers / 32) for share in (2, 6, 10, 14)) if self.layer_list is None else self.layer_list

    def kept(self, entered: int, layers: int) -> dict[int, None]:
        return dict.fromkeys(self.stages(layers))

    def pick(self, layer: DecoderLayer, count: int | None) -> Tensor:
        rows: Any = layer.text_after if len(layer.text_after) else "last"
        weights = layer.attention(rows).mean(0)[:, layer.visual]
        seen, most = weights.sum(0), weights.amax(0)
        dropped = (seen < self.total * seen.sum()) & (most < self.single)
        return (~dropped | self.is_key(layer)).nonzero()[:, 0]

    def is_key(self, layer: DecoderLayer) -> Tensor:
        """Which of the visual tokens are never dropped."""
        places, keys = layer.places(), torch.zeros_like(layer.visual, dtype=torch.bool)
        for number, memory in enumerate(layer.source_memories):
            if "mustdrop" in memory:
                own, found = places.look_up(number, memory["mustdrop"])
                keys |= own & found
        return keys

    @property
    def layer_positions(self) -> PositionPolicy:
        return self.position

    # --- the KV cache -------------------------------------------------------------------------------------------

    def cached(self, entered: int, layers: int) -> dict[int, None]:
        stages = self.stages(layers)
        return dict.fromkeys(range(min(stages), max(stages) + 1)) if stages else {}

    def pick_cached(self, layer: CachedLayer, count: int | None) -> Tensor:
        return layer.alive(max(self.stages(layer.num_layers)) + 1)

    def cached_flops(self, tokens: int, architecture: Architecture) -> int:
        return 0

    @property
    def cache_positions(self) -> PositionPolicy:
        return self.position
