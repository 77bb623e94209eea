"""What methods are told of encoder and decoder equals what the stock model itself says (eager attention, hidden states)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from transformers import AttentionInterface

import tokenzoo
from tokenzoo import TokenReducer, UnsupportedError
from tokenzoo.application import family_of
from tokenzoo.testing.inputs import take_sample, tiny_inputs
from tokenzoo.testing.models import tiny_model

LAYERS = 6
SEEN: list[torch.Tensor] = []


def remembering(module, query, key, value, attention_mask, scaling, **options):
    """Stock eager attention without a causal mask, its weights written down."""
    weights = (query @ key.transpose(-1, -2) * scaling).softmax(-1)
    SEEN.append(weights)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("remembering", remembering)


@dataclass
class Asks(TokenReducer):
    """Writes down what it is told, drops one token."""

    layer: int = 0
    at: str = "early"
    name: ClassVar[str] = "asks"
    told: dict[str, Any] = field(default_factory=dict)

    def early(self, source, architecture):
        return self.at == "early"

    def left(self, views, source, architecture):
        return sum(views) - 1

    def encoder_layers(self, architecture):
        return (self.layer,)

    def reduce(self, tokens):
        self.told.update(
            everything=tokens.encoder_attention(self.layer, "all"),
            keys=tokens.encoder_keys(self.layer),
            features=tokens.encoder_features(self.layer),
            query_key=tokens.encoder_query_key(self.layer),
        )
        if tokens.has_cls:
            self.told.update(cls=tokens.encoder_attention(self.layer, "cls"), cls_features=tokens.cls_features(self.layer))
        return torch.arange(1, len(tokens.features))


def told(family, case, **options):
    """What the method was told, the stock tower's attention maps and layer outputs, of the first sample of a case."""
    model = tiny_model(family, layers=LAYERS)
    inputs = take_sample(tiny_inputs(model, case), case, 0)
    method = Asks(**options)
    with tokenzoo.apply(model, method), torch.no_grad():
        model(**inputs)
    vision = next(getattr(model.model, name) for name in ("visual", "vision_tower", "vision_model") if hasattr(model.model, name))
    vision.set_attn_implementation("remembering")
    outputs: list[torch.Tensor] = []
    layers = family_of(model).encoder_layers(model)
    handles = [
        layer.register_forward_hook(lambda m, a, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    SEEN.clear()
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return model, method.told, list(SEEN), outputs


@pytest.mark.parametrize("layer", [0, 2])
def test_clips_attention_keys_and_features(layer):
    _, seen, maps, outputs = told("llava", "single", layer=layer)
    torch.testing.assert_close(seen["cls"], maps[layer][0, :, 0, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["everything"], maps[layer][0].mean(1)[:, 1:], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["features"], outputs[layer][0, 1:])
    torch.testing.assert_close(seen["cls_features"], outputs[layer][:, 0])
    keys = seen["query_key"][1][0, 1:].unflatten(-1, (4, -1)).mean(1)
    torch.testing.assert_close(seen["keys"], keys)


@pytest.mark.parametrize("layer", [0, 3])
def test_siglips_column_mean_of_every_tile(layer):
    _, seen, maps, outputs = told("llava-onevision", "single", layer=layer)
    views = len(outputs[layer])
    torch.testing.assert_close(seen["everything"], maps[layer].mean(2).transpose(0, 1).flatten(1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["features"], outputs[layer].flatten(0, 1))
    assert seen["everything"].shape[1] == views * 36 and "cls" not in seen


def joined(values, side):
    """The mean of each side x side block of square views [views, n * n, channels], block by block."""
    views, count, channels = values.shape
    n = int(count**0.5)
    grid = values.reshape(views, n, n, channels)
    blocks = [
        grid[:, row : row + side, column : column + side].flatten(1, 2).mean(1)
        for row in range(0, n, side)
        for column in range(0, n, side)
    ]
    return torch.stack(blocks, 1)


@pytest.mark.parametrize("layer", [0, 3])
@pytest.mark.parametrize(
    ("family", "case", "cls"),
    [
        ("internvl", "single", 1),
        ("smolvlm", "single", 0),
        ("idefics3", "single", 0),
        ("gemma3", "single", 0),
        ("llava-next-video", "video", 1),
    ],
)
def test_several_patches_that_become_one_token_before_the_projector(family, case, cls, layer):
    """Pixel shuffles (InternVL, Idefics3, SmolVLM) and pooled frames (LLaVA-NeXT-Video)."""
    _, seen, maps, outputs = told(family, case, layer=layer)
    maps = [weights for weights in maps if weights.shape[-1] == outputs[0].shape[1]]  # the encoder's, not the decoder's
    shape = seen["features"].shape[0]
    views = slice(0, shape // len(joined(outputs[layer][:1, cls:], 2)[0]))  # a method sees one source: a tile, or all frames
    features = joined(outputs[layer][-1:, cls:] if views.stop == 1 else outputs[layer][:, cls:], 2)
    weights = maps[layer][-1:] if views.stop == 1 else maps[layer]
    torch.testing.assert_close(seen["features"], features.flatten(0, 1), atol=1e-5, rtol=1e-4)
    column = joined(weights.mean(2)[..., cls:].transpose(1, 2), 2).flatten(0, 1).T
    torch.testing.assert_close(seen["everything"], column, atol=1e-5, rtol=1e-4)
    if cls:
        row = joined(weights[:, :, 0, 1:].transpose(1, 2), 2).flatten(0, 1).T
        torch.testing.assert_close(seen["cls"], row, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("family", "layer"),
    [("qwen2-vl", 1), ("qwen3-vl", 1), ("qwen3.5", 1), ("qwen2.5-vl", 0), ("qwen2.5-vl", 1), ("qwen2.5-vl", 2)],
)
@pytest.mark.parametrize("case", ["single", "video"])
def test_qwens_column_mean_of_every_merge_unit(family, case, layer):
    """Windowed and full attention, windows put back into raster order, the four patches of a token averaged."""
    model, seen, maps, outputs = told(family, case, layer=layer)
    per_layer = len(maps) // 3 if family != "qwen2.5-vl" else None
    patches = len(outputs[layer])
    if per_layer:
        own = maps[per_layer * layer : per_layer * (layer + 1)]
    else:  # windowed layers make one map a window, the full one (index 1) one a frame
        sums, start, own = 0, 0, []
        bounds = []
        for number, weights in enumerate(maps):
            sums += weights.shape[-1]
            if sums == patches:
                bounds.append((start, number + 1))
                start, sums = number + 1, 0
        own = maps[slice(*bounds[layer])]
    frames = patches // (int(seen["everything"].shape[1]) * 4 // _frames(case))
    length = patches // frames
    column = torch.cat([weights[0].sum(1) for weights in own], dim=-1) / length  # [heads, patches], in the tower's order
    units = column.T.reshape(-1, 4, column.shape[0]).mean(1)
    if family == "qwen2.5-vl":
        units = units[torch.argsort(_window_index(model, case))]
    torch.testing.assert_close(seen["everything"], units.T, atol=1e-5, rtol=1e-4)


def _frames(case):
    return 3 if case == "video" else 1


def _window_index(model, case):
    from transformers.vision_utils import get_vision_window_index

    inputs = take_sample(tiny_inputs(model, case), case, 0)
    grid = inputs.get("video_grid_thw", inputs.get("image_grid_thw"))
    visual = model.model.visual
    return get_vision_window_index(
        grid, spatial_merge_size=2, window_size=visual.window_size, patch_size=visual.patch_size, kwargs={}
    )[0]


def test_before_the_llm_signals_are_pooled_and_tiled_as_the_model_does():
    model, seen, maps, outputs = told("llava-onevision", "video", layer=3, at="late")
    pooled = model.model.apply_pooling(outputs[3])
    torch.testing.assert_close(seen["features"], pooled.flatten(0, 1), atol=1e-5, rtol=1e-4)
    weights = model.model.apply_pooling(maps[3].mean(2).transpose(1, 2))
    torch.testing.assert_close(seen["everything"], weights.flatten(0, 1).T, atol=1e-5, rtol=1e-4)


def test_tiled_features_stand_where_their_tokens_do():
    model, seen, _, outputs = told("llava-next", "single", layer=2, at="late")
    inputs = take_sample(tiny_inputs(model, "single"), "single", 0)
    newline = torch.full((outputs[2].shape[-1],), torch.nan)
    (packed, *_), _ = model.model.pack_image_features([outputs[2][:, 1:]], inputs["image_sizes"], "default", newline)
    torch.testing.assert_close(seen["features"], packed[~packed.isnan().any(-1)])


@pytest.mark.parametrize("family", ["llava-next", "llava-onevision"])
@pytest.mark.parametrize("sample", [0, 1, 2])
def test_tiles_are_read_as_the_model_puts_them_together(family, sample):
    """Of one row of tiles, one column, and a square: what the model packs stands in reading order."""

    @dataclass
    class Places(Asks):
        name: ClassVar[str] = "places"

        def reduce(self, tokens):
            everything = torch.arange(len(tokens.features))
            self.told.update(places=tokens.reading_place(everything), order=tokens.in_reading_order(everything.flip(0)))
            return everything[1:]

    model, method = tiny_model(family, layers=LAYERS), Places()
    inputs = take_sample(tiny_inputs(model, "left"), "left", sample)
    with tokenzoo.apply(model, method), torch.no_grad():
        model(**inputs)
    places, newline = method.told["places"], torch.tensor([torch.nan])
    cells = 16 if family == "llava-next" else 36
    numbers = torch.arange(len(places)).float().view(-1, cells, 1)
    options = ("default", newline) if family == "llava-next" else (newline, "anyres_max_9")
    (packed, *_), _ = model.model.pack_image_features([numbers], inputs["image_sizes"], *options)
    read = places[packed[~packed.isnan()].long()]
    assert len(read) > cells and bool((read.diff() > 0).all())
    assert torch.equal(method.told["order"], places.argsort())


@pytest.mark.parametrize(("family", "layer"), [("llava", -2), ("llava-onevision", -1)])
def test_saliency_is_the_cls_row_or_the_mean_of_the_last_layer(family, layer):
    @dataclass
    class Saliency(Asks):
        name: ClassVar[str] = "saliency"

        def encoder_layers(self, architecture):
            return (architecture.saliency_layer,)

        def reduce(self, tokens):
            queries = "cls" if family == "llava" else "all"
            self.told.update(ours=tokens.encoder_saliency(), stock=tokens.encoder_attention(layer, queries))
            return torch.arange(1, len(tokens.features))

    model, method = tiny_model(family, layers=LAYERS), Saliency()
    with tokenzoo.apply(model, method), torch.no_grad():
        model(**take_sample(tiny_inputs(model, "single"), "single", 0))
    assert torch.equal(method.told["ours"], method.told["stock"])


def test_cls_is_refused_where_there_is_none():
    @dataclass
    class WantsCls(Asks):
        name: ClassVar[str] = "wants-cls"

        def reduce(self, tokens):
            return tokens.encoder_attention(self.layer, "cls")

    model = tiny_model("llava-onevision", layers=LAYERS)
    with tokenzoo.apply(model, WantsCls()), pytest.raises(UnsupportedError, match="no CLS token"):
        model(**take_sample(tiny_inputs(model, "single"), "single", 0))


@dataclass
class Inside(TokenReducer):
    """Writes down what it is told after layer 2, drops one token."""

    name: ClassVar[str] = "inside"
    told: dict[str, Any] = field(default_factory=dict)

    def kept(self, entered, layers):
        return {2: entered - 1}

    def score(self, layer):
        rows = torch.arange(len(layer.hidden_states))
        self.told.update(
            attention=layer.attention(rows),
            upcoming=layer.next_attention(rows),
            states=layer.hidden_states,
            inputs=layer.inputs,
            embeddings=layer.embeddings(),
            norm=layer.final_norm(layer.hidden_states),
            positions=layer.positions(),
            after=layer.text_after,
            visual=layer.visual,
        )
        return layer.visual.float()


@pytest.mark.parametrize(
    "family", ["llava", "llava-onevision", "qwen2.5-vl", "qwen3-vl", "qwen3-vl-mha", "qwen3-vl-moe", "gemma3"]
)
def test_the_decoders_attention_states_and_positions(family):
    model = tiny_model(family, "eager", layers=LAYERS)
    inputs = take_sample(tiny_inputs(model, "left"), "left", 1)
    method = Inside()
    entering: list[torch.Tensor] = []  # DeepStack adds to a layer's output before the next layer gets it
    decoder = model.model.language_model
    handles = [
        layer.register_forward_pre_hook(lambda m, a, k: entering.append(a[0] if a else k["hidden_states"]), with_kwargs=True)
        for layer in decoder.layers
    ]
    with torch.no_grad():
        stock = model(**inputs, output_attentions=True)
        for handle in handles:
            handle.remove()
        with tokenzoo.apply(model, method):
            model(**inputs)
    seen = method.told
    torch.testing.assert_close(seen["attention"], stock.attentions[2][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["upcoming"], stock.attentions[3][0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["states"], entering[3][0])
    torch.testing.assert_close(seen["inputs"], entering[2][0])
    torch.testing.assert_close(seen["embeddings"], entering[0][0])
    torch.testing.assert_close(seen["norm"], decoder.norm(entering[3])[0])
    assert seen["positions"].shape[-1] == len(seen["states"])
    assert (seen["after"] > seen["visual"].max()).all() and len(seen["after"])


@pytest.mark.parametrize("family", ["llava", "qwen2.5-vl"])
def test_embeddings_are_those_of_the_rows_that_are_left(family):
    """After a reduction inside the LLM, in a padded batch."""
    seen = []

    @dataclass
    class Later(TokenReducer):
        name: ClassVar[str] = "later"

        def kept(self, entered, layers):
            return {3: entered // 4}

        def score(self, layer):
            seen.append((layer.embeddings(), len(layer.hidden_states)))
            return layer.visual.float()

    model = tiny_model(family, layers=LAYERS)
    entered = []
    hook = model.model.language_model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad(), tokenzoo.apply(model, [Inside(), Later()]) as run:
        model(**tiny_inputs(model, "left"))
    hook.remove()
    for sample, (embeddings, rows) in enumerate(seen):
        left = run.trace.samples[sample].rows(3)
        own = entered[0][sample, len(entered[0][sample]) - len(run.trace.samples[sample].entry) :]
        assert rows == len(left)
        torch.testing.assert_close(embeddings, own[left])
