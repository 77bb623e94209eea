"""Golden cases of methods that select before the LLM by encoder signals or by similarity, through the plugins as shipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_cases import GoldenCases
from tokenzoo_plugins.divprune import DivPrune
from tokenzoo_plugins.evs import EVS
from tokenzoo_plugins.fastervlm import FasterVLM
from tokenzoo_plugins.hiprune import HiPrune
from tokenzoo_plugins.scope import SCOPE
from tokenzoo_plugins.visionzip import VisionZip, zip_views
from tokenzoo_plugins.vispruner import VisPruner
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

import tokenzoo
from tokenzoo import Architecture, Reduction, TokenReducer, ops
from tokenzoo.method.visual_tokens import VisualTokens
from tokenzoo.testing import decide, tiny_model, visual_tokens
from tokenzoo.testing.models import VIDEO

METHODS = ("divprune", "evs", "fastervlm", "hiprune", "scope", "visionzip", "vispruner")
GOLDEN = GoldenCases("golden_more")
cases, golden = GOLDEN.cases, GOLDEN.arrays


class Given:
    """An encoder of which the signals are given, one view after another."""

    def __init__(self, attention: Any, keys: Any = None, features: Any = None, cls: Any = None) -> None:
        """`attention` [views, heads, tokens] of the layer that is asked for, or {layer: of this layer}."""
        self.given, self.key, self.output, self.cls = attention, keys, features, cls

    def attention(self, layer: int, queries: str, early: bool) -> torch.Tensor:
        attention = self.given[layer] if isinstance(self.given, dict) else self.given
        return attention.transpose(0, 1).flatten(1)

    def keys(self, layer: int, early: bool) -> torch.Tensor:
        return self.key.flatten(0, 1)

    def features(self, layer: int, early: bool) -> torch.Tensor:
        return self.output.flatten(0, 1)

    def cls_features(self, layer: int) -> torch.Tensor:
        return self.cls


def views_of(features: torch.Tensor, name: str, encoder: Given | None, cls: bool = True, early: bool = True) -> VisualTokens:
    """The event that the host makes of features [views, tokens, width] of a golden case."""
    arrays = golden(name)
    count, tokens = features.shape[:2]
    side = int(arrays["side"]) if "side" in arrays else 0
    grid = (side, side) if side else tuple(arrays["grid"].tolist()) if "grid" in arrays else (1, tokens)
    tiles = tuple(arrays["grid_wh"].tolist()[::-1]) if side else None
    more = {"encoder": encoder, "has_cls": cls, "early": early, "tiles": tiles}
    return visual_tokens(features.flatten(0, 1), [grid] * count, **more)


def made(method: TokenReducer, tokens: VisualTokens) -> torch.Tensor:
    """The features that the method leaves, in their order."""
    result = decide(method, tokens)
    if result is None:
        return tokens.features
    return result.features if isinstance(result, Reduction) else tokens.features[result]


def expected(arrays: dict[str, Any]) -> torch.Tensor:
    """What went to the LLM: the sequence of an anyres image, else the views one after another."""
    return arrays["out_sequence"] if "out_sequence" in arrays else arrays["out"].reshape(-1, arrays["out"].shape[-1])


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def through_the_model(kind: str, pixels: torch.Tensor, method: TokenReducer) -> torch.Tensor:
    """What the method leaves of each image before the projector, in a LLaVA with the golden's encoder: [images, kept, width]."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "image_size": 24, "patch_size": 3}
    vision: Any = CLIPVisionConfig(**sizes, num_hidden_layers=4)
    if kind == "siglip":
        vision = SiglipVisionConfig(**sizes, num_hidden_layers=3, vision_use_head=False)
    text = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=8)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=7,
        image_seq_length=64,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default" if kind == "clip" else "full",
    )
    model = LlavaForConditionalGeneration(config).eval()
    weights = {key.removeprefix("w__"): value for key, value in golden(f"{kind}_tiny_weights").items() if key.startswith("w__")}
    model.model.vision_tower.load_state_dict(weights)
    seen: list[torch.Tensor] = []

    class Watch:
        @tokenzoo.hookimpl
        def tokenzoo_before_projector(self, tokens: VisualTokens) -> None:
            seen.append(tokens.features)

    prompt = torch.tensor([[1] + [7] * 64 + [2]]).expand(len(pixels), -1)
    with torch.no_grad(), tokenzoo.apply(model, method, observers=[Watch()]):
        model(input_ids=prompt, pixel_values=pixels)
    return torch.stack(seen)


# --- VisionZip ------------------------------------------------------------------------------------------------------


def visionzip(arrays: dict[str, Any], patches: int) -> VisionZip:
    dominant, contextual = int(arrays["dominant"]), int(arrays["contextual"])
    total = dominant + contextual
    return VisionZip(retention=total / patches, contextual=contextual / total)


MORE_THAN_THE_PATCHES = "visionzip_edge_all"  # 17 tokens of 16 patches and CLS: a reduction cannot grow, so no budget asks for it


@pytest.mark.parametrize(
    "name", [name for name in cases("visionzip_*", but=(MORE_THAN_THE_PATCHES,)) if "e2e" not in name and "clsfree" not in name]
)
def test_visionzip(name: str) -> None:
    arrays = golden(name)
    x = arrays["hidden_states"]
    encoder = Given(arrays["cls_attn"], arrays["key"][:, 1:], cls=x[:, 0])
    ours = made(visionzip(arrays, x.shape[1] - 1), views_of(x[:, 1:], name, encoder))
    assert close(ours, expected(arrays))


@pytest.mark.parametrize("name", cases(MORE_THAN_THE_PATCHES))
def test_visionzip_of_as_many_targets_as_there_are_patches_left(name: str) -> None:
    arrays = golden(name)
    x, score = arrays["hidden_states"], arrays["cls_attn"].mean(1)
    kept, _, merged, _ = zip_views(x[:, 1:], score, arrays["key"][:, 1:], int(arrays["dominant"]) - 1, int(arrays["contextual"]))
    assert kept[0].tolist() == (arrays["kept"][0, 1:] - 1).tolist()
    assert close(torch.cat([x[:, :1], x[:, 1:][:, kept[0]], merged], 1), arrays["out"])


@pytest.mark.parametrize("name", cases("visionzip_clsfree_[0-9]*"))
def test_visionzip_without_cls(name: str) -> None:
    arrays = golden(name)
    encoder = Given(arrays["attn"].mean(2), arrays["key"])
    ours = made(visionzip(arrays, arrays["features"].shape[1]), views_of(arrays["features"], name, encoder, cls=False))
    assert close(ours, expected(arrays))


@pytest.mark.parametrize("name", cases("visionzip_clsfree_port*"))
def test_visionzip_behind_a_merger(name: str) -> None:
    """As LightCompress' port for Qwen2.5-VL: merged tokens stay in their targets' places."""
    arrays = golden(name)
    x = arrays["features"][None]
    encoder = Given(arrays["score"][None, None], arrays["key"][None])
    tokens = views_of(x, name, encoder, cls=False, early=False)
    result = decide(visionzip(arrays, x.shape[1]), tokens)
    assert result.anchors.tolist() == arrays["kept"].tolist()
    assert close(result.features, arrays["out"])


@pytest.mark.parametrize("name", cases("visionzip_e2e_clip"))
def test_visionzip_from_pixels(name: str) -> None:
    arrays = golden(name)
    assert close(through_the_model("clip", arrays["pixel_values"], visionzip(arrays, 64)), arrays["out"])


# --- FasterVLM, VisPruner, SCOPE ------------------------------------------------------------------------------------


def retention(arrays: dict[str, Any], patches: int) -> float:
    return min(1.0, int(arrays["T"]) / patches)


@pytest.mark.parametrize("name", cases("fastervlm_*"))
def test_fastervlm(name: str) -> None:
    arrays = golden(name)
    x = arrays["features"]
    tokens = views_of(x, name, Given(arrays["cls_attn"]))
    assert close(tokens.encoder.attention(0, "cls", True).mean(0).view(len(x), -1), arrays["score"])
    assert torch.equal(made(FasterVLM(retention=retention(arrays, x.shape[1])), tokens), expected(arrays))


def vispruner(arrays: dict[str, Any], patches: int) -> VisPruner:
    method = VisPruner(retention=retention(arrays, patches), important=float(arrays["important_ratio"]))
    assert int(int(arrays["T"]) * method.important) == int(arrays["T_imp"])
    return method


@pytest.mark.parametrize("name", [name for name in cases("vispruner_*") if "e2e" not in name])
def test_vispruner(name: str) -> None:
    """`oddR_ceil`: the released code with its crash repaired; `edge_TgtN`: more than there are, so all stay."""
    arrays = golden(name)
    x = arrays["features"]
    tokens = views_of(x, name, Given(arrays["cls_attn"], features=x))
    assert torch.equal(made(vispruner(arrays, x.shape[1]), tokens), expected(arrays))


@pytest.mark.parametrize("name", cases("vispruner_e2e_*"))
def test_vispruner_from_pixels(name: str) -> None:
    """SigLIP: attention of the last layer, features of the one before."""
    arrays = golden(name)
    ours = through_the_model(name.removeprefix("vispruner_e2e_"), arrays["pixel_values"], vispruner(arrays, 64))
    assert close(ours, arrays["out"])


def scope(arrays: dict[str, Any], patches: int) -> SCOPE:
    combine = "add" if int(arrays["combine_add"]) else "multiply"
    return SCOPE(retention=retention(arrays, patches), alpha=float(arrays["alpha"]), combine=combine)


@pytest.mark.parametrize("name", [name for name in cases("scope_*") if "e2e" not in name])
def test_scope(name: str) -> None:
    arrays = golden(name)
    cls = "cls_attn" in arrays
    attention = arrays["cls_attn"] if cls else arrays["attn"].mean(2)
    x = arrays["hidden_states"][:, 1:] if cls else arrays["features"]
    method = scope(arrays, x.shape[1])
    tokens = views_of(x, name, Given(attention, features=x), cls)
    assert torch.equal(made(method, tokens), expected(arrays))
    weight = attention.sum(1) ** method.alpha
    weighed = {"bonus": weight} if method.combine == "add" else {"weight": weight}
    order = ops.max_coverage(ops.cosine_similarity(x), int(arrays["T"]), **weighed)
    assert torch.equal(order, arrays["selection"])


@pytest.mark.parametrize("name", cases("scope_e2e_clip"))
def test_scope_from_pixels(name: str) -> None:
    arrays = golden(name)
    assert close(through_the_model("clip", arrays["pixel_values"], scope(arrays, 64)), arrays["out"])


# --- HiPrune --------------------------------------------------------------------------------------------------------

OBJECT, DEEP = 1, 7


def hiprune(arrays: dict[str, Any], patches: int, object_layer: int = OBJECT + 1) -> HiPrune:
    method = HiPrune(retention=retention(arrays, patches), alpha=float(arrays["alpha"]), object_layer=object_layer)
    assert round(int(arrays["T"]) * method.alpha / 5) == int(arrays["n_anchor"])
    return method


def two_layers(tokens: VisualTokens, middle: torch.Tensor, deep: torch.Tensor) -> VisualTokens:
    """The two layers' scores [views, tokens] as attention of one head."""
    tokens.encoder = Given({OBJECT: middle[:, None], DEEP: deep[:, None]})
    tokens.architecture = Architecture("by hand", 1, 1, 1, 1, 1, 1, encoder_layers=8, feature_layer=DEEP)
    return tokens


@pytest.mark.parametrize("name", [name for name in cases("hiprune_*") if "e2e" not in name and "qwen" not in name])
def test_hiprune(name: str) -> None:
    arrays = golden(name)
    x, cls = arrays["features"], "clsfree" not in arrays
    middle, deep = (arrays[f"attn_{layer}"].mean((1, 2))[:, int(cls) :] for layer in ("object", "deep"))
    assert close(middle, arrays["object_score"]) and close(deep, arrays["deep_score"])
    tokens = two_layers(views_of(x, name, None, cls), middle, deep)
    assert torch.equal(made(hiprune(arrays, x.shape[1]), tokens), expected(arrays))


@pytest.mark.parametrize("name", cases("hiprune_qwen_*"))
def test_hiprune_for_qwen_keeps_what_it_promises(name: str) -> None:
    """Deviation on purpose: as released, fewer tokens remain. Its scores are sums over the queries, ours are means."""
    arrays = golden(name)
    height, width = arrays["grid_hw"].tolist()
    patches = height * width
    x = torch.arange(patches).float()[:, None]
    middle, deep = (arrays[f"{layer}_score"][None] / (4 * patches) for layer in ("object", "deep"))
    tokens = two_layers(visual_tokens(x, (height, width), early=True), middle, deep)
    kept = made(hiprune(arrays, patches), tokens)[:, 0].long().tolist()
    assert kept == arrays["kept_fixed"].tolist() and len(kept) == round(patches * float(arrays["retain"]))
    assert len(arrays["kept"]) < len(kept) and set(arrays["kept"].tolist()) < set(kept)


@pytest.mark.parametrize("name", cases("hiprune_e2e_clip"))
def test_hiprune_from_pixels(name: str) -> None:
    arrays = golden(name)
    method = hiprune(arrays, 64, int(arrays["object_layer"]))
    assert close(through_the_model("clip", arrays["pixel_values"], method), arrays["out"])


# --- DivPrune and EVS -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases("divprune_*"))
def test_divprune(name: str) -> None:
    arrays = golden(name)
    x, ratio = arrays["x"], float(arrays["ratio"])
    order = ops.farthest_first(1 - ops.cosine_similarity(x), int(arrays["num_tokens"]))
    assert torch.equal(order, arrays["order"])
    frames = int(arrays["frames"]) if "frames" in arrays else 1
    tokens = visual_tokens(x, [(1, len(x) // frames)] * frames)
    assert torch.equal(made(DivPrune(retention=ratio), tokens), arrays["out"] if "out" in arrays else x[arrays["idx"]])


@pytest.mark.parametrize("seed", range(8))
def test_divprune_of_repeated_tokens(seed: int) -> None:
    """Base view and only tile of a small picture differ by rounding alone: it decides nothing."""
    base = torch.randn(36, 32, generator=torch.Generator().manual_seed(seed))
    method = DivPrune(retention=0.25)

    def kept(noise: float) -> list[int]:
        both = torch.cat([base, base]) * (1 + noise * torch.randn(72, 32, generator=torch.Generator().manual_seed(seed)))
        return decide(method, visual_tokens(both, [(6, 6), (6, 6)])).tolist()

    assert kept(2e-7) == kept(1e-7) == kept(0) and max(kept(0)) < 36


@pytest.mark.parametrize("name", cases("evs_*"))
def test_evs(name: str) -> None:
    arrays = golden(name)
    x, grids = arrays["x"].flatten(0, 2), [tuple(arrays["x"].shape[1:3])] * len(arrays["x"])
    method, tokens = EVS(rate=float(arrays["pruning_rate"])), visual_tokens(x, grids, kind="video")
    kept = decide(method, tokens)
    kept = torch.arange(len(x)) if kept is None else kept
    assert tokens.count == int(arrays["num_tokens"])
    assert kept.tolist() == arrays["idx"].tolist()
    assert torch.bincount(tokens.view[kept], minlength=len(grids)).tolist() == arrays["count_per_frame"].tolist()


@pytest.mark.parametrize("name", cases("evs_*"))
def test_evs_leaves_tokens_the_positions_that_the_model_gives_them(name: str) -> None:
    """They are vLLM's. The text behind the video keeps the model's too, where vLLM counts on from the grid's width alone."""
    arrays = golden(name)
    frames, height, width, _ = arrays["x"].shape
    model = tiny_model("qwen2.5-vl", layers=1)
    model.config.vision_config.tokens_per_second = int(arrays["tokens_per_second"])
    before, after = int(arrays["media_base"]), len(arrays["text_after_positions_out"])
    kinds = torch.tensor([[0] * before + [2] * (frames * height * width) + [0] * after])
    positions, _ = model.model.get_rope_index(
        input_ids=torch.where(kinds == 2, VIDEO, 5),
        mm_token_type_ids=kinds,
        video_grid_thw=torch.tensor([[frames, 2 * height, 2 * width]]),
        second_per_grid_ts=arrays["second_per_grid"][None],
    )
    assert torch.equal(positions[:, 0, before + arrays["idx"]], arrays["position_ids_out"])
    assert bool((positions[:, 0, -after:] >= arrays["text_after_positions_out"]).all())


def test_no_golden_case_is_left_untested() -> None:
    assert GOLDEN.named(*(f"{method}_*" for method in METHODS)) == GOLDEN.tested
