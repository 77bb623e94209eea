"""PruneSID against what its released code returned (tests/golden_more), through the plugin as shipped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from golden_cases import GoldenCases
from tokenzoo_plugins.prunesid import PruneSID

from tokenzoo import Architecture, Reduction, ops
from tokenzoo.testing.authors import decide, visual_tokens

GOLDEN = GoldenCases("golden_more")
cases, golden = GOLDEN.cases, GOLDEN.values


class Clip:
    """An encoder of which the CLS token's attention [views, heads, tokens] and features [views, tokens] are given."""

    def __init__(self, attention: torch.Tensor, cls: torch.Tensor) -> None:
        self.given, self.cls = attention, cls

    def attention(self, layer: int, queries: str, early: bool) -> torch.Tensor:
        assert queries == "cls" and early
        return self.given.transpose(0, 1).flatten(1)

    def cls_features(self, layer: int) -> torch.Tensor:
        return self.cls


def signals(arrays: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """The CLS token's attention and the features, CLS first; of a picture by the golden's weights in CLIP's class."""
    if "pixel_values" not in arrays:
        return arrays["cls_attn"], arrays["hidden_states"]
    weights = {key.removeprefix("w__"): value for key, value in golden("clip_tiny_weights").items() if key.startswith("w__")}
    sizes = {key: value for key, value in golden("clip_tiny_weights").items() if not key.startswith("w__")}
    width, patch = weights[next(key for key in weights if key.endswith("patch_embedding.weight"))].shape[::3]
    layers = 1 + max(int(key.split("layers.")[1].split(".")[0]) for key in weights if "layers." in key)
    config = transformers.CLIPVisionConfig(
        hidden_size=width,
        patch_size=patch,
        image_size=arrays["pixel_values"].shape[-1],
        intermediate_size=len(weights[next(key for key in weights if key.endswith("fc1.weight"))]),
        num_hidden_layers=layers,
        num_attention_heads=int(sizes.get("heads", 4)),
    )
    model = transformers.CLIPVisionModel(config).eval()
    model.set_attn_implementation("eager")
    missing = model.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys and not [key for key in missing.missing_keys if "position_ids" not in key]
    with torch.no_grad():
        output = model(arrays["pixel_values"], output_attentions=True, output_hidden_states=True)
    return output.attentions[-2][:, :, 0, 1:], output.hidden_states[-2]


@pytest.mark.parametrize("name", [name for name in cases("prunesid_*") if "qwen" not in name])
def test_prunesid(name: str) -> None:
    """Tiles follow each other here (`out_views`); the released code writes them to the wrong places of the grid."""
    arrays = golden(name)
    attention, hidden = signals(arrays)
    views, patches, count = len(hidden), hidden.shape[1] - 1, arrays["T"]
    for view in range(views):
        directions = ops.principal_directions(hidden[view, 1:].sigmoid().T, count // 4, arrays["seed"])
        assert torch.equal(directions.abs().argmax(1), arrays["group"][view])
    tokens = visual_tokens(
        hidden[:, 1:].flatten(0, 1),
        [(1, patches)] * views,
        early=True,
        has_cls=True,
        encoder=Clip(attention, hidden[:, 0]),
        architecture=Architecture("by hand", 1, 1, 1, 1, 1, 1, encoder_layers=1, has_cls=True),
    )
    result = decide(PruneSID(retention=count / patches, seed=arrays["seed"]), tokens)
    assert isinstance(result, Reduction)
    order = result.anchors.view(views, count) - torch.arange(views)[:, None] * patches + 1
    assert torch.equal(order[:, 1:], arrays["order"][:, 1:]) and not arrays["order"][:, 0].any()
    out = arrays["out_views"] if "out_views" in arrays else arrays["out"]
    assert torch.allclose(result.features.view(out.shape), out, atol=1e-5)


@pytest.mark.parametrize("name", cases("prunesid_qwen_*"))
def test_prunesid_without_cls(name: str) -> None:
    arrays = golden(name)
    method = PruneSID(retention=arrays["need_token_num"] / 576, seed=arrays["seed"])
    directions = ops.principal_directions(arrays["features"].sigmoid().T, arrays["T"] // 4, arrays["seed"])
    assert torch.allclose(directions.abs(), arrays["V_abs"], atol=1e-4)
    assert torch.equal(directions.abs().argmax(1), arrays["group"])
    tokens = visual_tokens(arrays["features"], tuple(arrays["grid_hw"].tolist()))
    kept = decide(method, tokens)
    assert tokens.count == arrays["T"] and kept.tolist() == arrays["order"].tolist()


def test_no_case_is_left_out() -> None:
    assert GOLDEN.named("prunesid_*") == GOLDEN.tested
