"""Vision tower and projector in closed form, for convention `exact`.

Every encoder layer runs, whatever `vision_feature_layer` is: transformers computes all of them and picks one output.
CLIP and InternViT prepend a class token; SigLIP's pooling head runs where the config says so; Qwen2.5-VL attends within
windows in most layers. Where patches leave inside the encoder, a layer's attention sees what is there and its MLP what is left.
Qwen3-VL's DeepStack projects all tokens of some layers besides, whatever is dropped before the projector. Gemma 4's padding
of small pictures to the size of the largest is not priced: the pictures' sizes do not tell it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from tokenzoo.cost.architecture import ModelArchitecture, Projector, Resampler, VisionTower
from tokenzoo.cost.exact import attention, elementwise
from tokenzoo.cost.operations import Operation, Step, linear
from tokenzoo.errors import UserError
from tokenzoo.method.reduction import ActsAfter
from tokenzoo.method.workload import EncoderCut, Source, Workload, patches_behind

Grid = tuple[int, int]


def square_grid(tokens: int) -> Grid:
    """The (height, width) nearest to a square with exactly `tokens` tokens."""
    height = next(side for side in range(math.isqrt(tokens), 0, -1) if tokens % side == 0) if tokens else 0
    return (height, tokens // height) if height else (0, 0)


def view_grids(workload: Workload, grids: Sequence[Grid] | None = None) -> list[Grid]:
    """The grid of every view before the projector, in tokens; without `grids` each is taken as near to a square."""
    counts = [tokens for source in workload.sources for tokens in source.before_projector]
    if grids is None:
        grids = [square_grid(tokens) for tokens in counts]
    elif [height * width for height, width in grids] != counts:
        raise UserError(f"The grids {list(grids)} do not have the {counts} tokens of the workload's views.")
    remaining = iter(grids)
    return [
        grid for source in workload.sources for grid in encoder_grids(source, [next(remaining) for _ in source.before_projector])
    ]


def encoder_grids(source: Source, grids: Sequence[Grid]) -> list[Grid]:
    """The grids of a source's views in what the encoder's own merging leaves, where its tokens were pooled once more."""
    pooled = math.isqrt(source.merged or 1)
    return [(height * pooled, width * pooled) for height, width in grids]


def vision_tower(
    model: ModelArchitecture, grids: Sequence[Grid], width: int, cuts: Sequence[tuple[EncoderCut, ...]] = ()
) -> list[Operation]:
    """The operations of the vision tower on these views (of the whole batch); [] where the architecture has no tower.

    `cuts`: where patches of each view leave inside the encoder; () where none do.
    """
    tower = model.vision
    if tower is None or not grids:
        return []
    if model.resampler:  # its tokens are no patches
        grids = [(tower.image_size // tower.patch,) * 2] * len(grids)
    views = [_Tokens(tower, grid, own) for grid, own in zip(grids, cuts or [()] * len(grids), strict=True)]
    patches = sum(view.patches for view in views)
    pixels = tower.channels * tower.temporal_patch * tower.patch**2
    operations = [linear("patches", patches, pixels, tower.hidden, width, parallel=False)]
    for layer in range(tower.layers):
        spans = [span for view in views for span in view.spans(layer)]
        entering = sum([view.rows(layer - 1, "layer") for view in views])
        rows = sum([view.rows(layer, "attention") for view in views])
        operations += _layer(tower, entering, rows, spans, width)
    if tower.kind == "gemma4":
        operations += [_pooling(tower, view.patches, width) for view in views]
    if tower.pooling_head:
        left = [view.rows(tower.layers - 1, "layer") for view in views]
        operations += _pooling_head(tower, sum(left), left, width)
    for _ in range(tower.deepstack):
        operations += projector(model, sum(height * width_ for height, width_ in grids), width)
    return operations


def projector(model: ModelArchitecture, tokens: int, width: int) -> list[Operation]:
    """The projector on the `tokens` tokens that really enter it; a resampler behind it makes the tokens of all patches."""
    shape = model.projector
    if shape is None or not tokens:
        return []
    after: list[Operation] = []
    if model.resampler is not None and model.vision is not None:
        views, patches = tokens // model.resampler.latents, (model.vision.image_size // model.vision.patch) ** 2
        after, tokens = _resampler(model.resampler, shape.outputs, views, patches, width), views * patches
    first = ("projector 1", "projector gate") if shape.gated else ("projector 1",)
    return [
        *(linear(name, tokens, shape.inputs, shape.hidden or shape.outputs, width, parallel=False) for name in first),
        *_second(shape, tokens, width),
        *after,
    ]


def _resampler(shape: Resampler, hidden: int, views: int, patches: int, width: int) -> list[Operation]:
    """In each layer the latents attend to the patches and to themselves; a gated MLP, four times as wide, follows."""
    latents, rows = views * shape.latents, views * (patches + shape.latents)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    step = Step(shape.latents, patches + shape.latents, views, width)
    layer = [
        elementwise("resampler norms", 4 * (latents + rows) * hidden, 2 * (latents + rows) * hidden, width, parallel=False),
        linear("resampler q", latents, hidden, queries, width, parallel=False),
        *(linear(f"resampler {name}", rows, hidden, keys, width, parallel=False) for name in ("k", "v")),
        *attention(step, shape.heads, shape.head_dim, keys, parallel=False),
        linear("resampler out", latents, queries, hidden, width, parallel=False),
        *(linear(f"resampler {name}", latents, hidden, 4 * hidden, width, parallel=False) for name in ("gate", "up")),
        elementwise("resampler activation", 5 * latents * 4 * hidden, 3 * latents * 4 * hidden, width, parallel=False),
        linear("resampler down", latents, 4 * hidden, hidden, width, parallel=False),
        elementwise("resampler adds", 2 * latents * hidden, 6 * latents * hidden, width, parallel=False),
    ]
    return layer * shape.layers


def _second(shape: Projector, tokens: int, width: int) -> list[Operation]:
    """The activation and the second layer, where the projector has one."""
    if not shape.hidden:
        return []
    return [
        elementwise("activation", 4 * tokens * shape.hidden, 2 * tokens * shape.hidden, width, parallel=False),
        linear("projector 2", tokens, shape.hidden, shape.outputs, width, parallel=False),
    ]


class _Tokens:
    """One view inside the tower: patches, rows (with the class token) and the spans that attend to each other."""

    def __init__(self, tower: VisionTower, grid: Grid, cuts: tuple[EncoderCut, ...]) -> None:
        self.tower, self.grid, self.cuts = tower, grid, cuts
        self.patches = grid[0] * grid[1] * tower.merge**2

    def rows(self, layer: int, after: ActsAfter) -> int:
        """The rows behind a half of a layer."""
        return patches_behind(self.cuts, self.patches, layer, after) + self.tower.class_token

    def spans(self, layer: int) -> list[int]:
        tower = self.tower
        if not tower.window or layer in tower.full_attention_layers:
            return [self.rows(layer - 1, "layer")]
        side = tower.window // tower.merge // tower.patch
        heights, widths = (_pieces(length, side) for length in self.grid)
        return [height * width * tower.merge**2 for height in heights for width in widths]


def _pieces(length: int, side: int) -> list[int]:
    return [min(side, length - start) for start in range(0, length, side)]


def _pooling(tower: VisionTower, patches: int, width: int) -> Operation:
    """Gemma 4 averages patches by a product with a matrix [tokens, patches]."""
    tokens = patches // tower.merge**2
    moved = width * (tokens * patches + (tokens + patches) * tower.hidden)
    return Operation("pooling", flops=2 * tokens * patches * tower.hidden, bytes=moved, parallel=False)


def _pooling_head(tower: VisionTower, rows: int, spans: Sequence[int], width: int) -> list[Operation]:
    """SigLIP's head: one learnt query for each view attends to all its rows, and an MLP follows."""
    hidden, inner, views = tower.hidden, tower.intermediate, len(spans)
    return [
        linear("head q", views, hidden, hidden, width, parallel=False),
        *(linear(f"head {name}", rows, hidden, hidden, width, parallel=False) for name in ("k", "v")),
        *_attended(tower, spans, width, queries=1),
        linear("head out", views, hidden, hidden, width, parallel=False),
        elementwise("head norm", 7 * views * hidden, 2 * views * hidden, width, parallel=False),
        linear("head fc1", views, hidden, inner, width, parallel=False),
        elementwise("head activation", 5 * views * inner, 2 * views * inner, width, parallel=False),
        linear("head fc2", views, inner, hidden, width, parallel=False),
        elementwise("head add", views * hidden, 3 * views * hidden, width, parallel=False),
    ]


def _attended(tower: VisionTower, spans: Sequence[int], width: int, queries: int | None = None) -> list[Operation]:
    """Attention within each span, of all its rows or of so many queries."""
    head = tower.hidden // tower.heads
    scores: dict[str, list[int]] = {}
    for span, times in sorted(Counter(spans).items()):
        step = Step(queries or span, span, times, width)
        for operation in attention(step, tower.heads, head, tower.hidden):
            total = scores.setdefault(operation.name, [0, 0, 0])
            for index, value in enumerate((operation.flops, operation.elementwise, operation.bytes)):
                total[index] += value
    return [Operation(name, flops, element, moved, parallel=False) for name, (flops, element, moved) in scores.items()]


def _layer(tower: VisionTower, entering: int, rows: int, spans: Sequence[int], width: int) -> list[Operation]:
    """A layer that `entering` rows enter, of which `rows` are left for its MLP."""
    hidden, inner = tower.hidden, tower.intermediate
    names = ("gate", "up", "down") if tower.gated else ("fc1", "fc2")
    return [
        elementwise("norms", 7 * (entering + rows) * hidden, 2 * (entering + rows) * hidden, width, parallel=False),
        *(linear(name, entering, hidden, hidden, width, parallel=False) for name in ("q", "k", "v")),
        *_attended(tower, spans, width),
        linear("out", entering, hidden, hidden, width, parallel=False),
        *(linear(name, rows, hidden, inner, width, parallel=False) for name in names[:-1]),
        elementwise("activation", 5 * rows * inner, len(names) * rows * inner, width, parallel=False),
        linear(names[-1], rows, inner, hidden, width, parallel=False),
        elementwise("adds", (entering + rows) * hidden, 3 * (entering + rows) * hidden, width, parallel=False),
    ]
