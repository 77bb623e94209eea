"""Golden cases of methods that act before the LLM, through the plugin as shipped: the published code's picks are ours.

Cases of `golden_more`; each array is told in its README.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_cases import GoldenCases
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenzoo_plugins.cdpruner import CDPruner, load_clip, relevance_to
from tokenzoo_plugins.gprune import GPrune
from tokenzoo_plugins.holov import HoloV
from tokenzoo_plugins.mmtok import MMTok, keywords
from tokenzoo_plugins.vidcom2 import VidCom2, distinct_channels, likeness
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from tokenzoo import Reduction, VisualTokens
from tokenzoo.testing.authors import decide, visual_tokens

METHODS = ["cdpruner", "gprune", "holov", "mmtok", "vidcom2"]
GOLDEN = GoldenCases("golden_more")
cases, golden = GOLDEN.cases, GOLDEN.arrays


def close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=tolerance)


# --- VidCom2 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases("vidcom2_*"))
def test_vidcom2(name: str) -> None:
    """The grid case too: its newlines are the host's, so indices of tokens are compared."""
    arrays = golden(name)
    frames, tokens = int(arrays["T"]), int(arrays["P"])
    video = visual_tokens(arrays["x"], [(1, tokens)] * frames, kind="video")
    method = VidCom2(retention=float(arrays["R"]), rounding="released")
    x = distinct_channels(arrays["x"])
    assert close(likeness(x, x.mean(0)).view(frames, tokens), arrays["video_score"])
    assert close(method.scales(-arrays["video_score"].mean(1)), arrays["scales"])
    kept = decide(method, video)
    assert kept.tolist() == arrays["kept"].tolist()
    assert torch.bincount(video.view[kept], minlength=frames).tolist() == arrays["counts"].tolist()
    assert "grid" in arrays or close(arrays["x"][kept], arrays["out"])


@pytest.mark.parametrize("name", cases("vidcom2_*"))
def test_vidcom2_with_an_exact_budget_keeps_at_most_one_token_a_frame_more_or_less(name: str) -> None:
    arrays = golden(name)
    frames, tokens, share = int(arrays["T"]), int(arrays["P"]), float(arrays["R"])
    video = visual_tokens(arrays["x"], [(1, tokens)] * frames, kind="video")
    kept = decide(VidCom2(retention=share), video)
    assert len(kept) == round(share * frames * tokens)
    assert (torch.bincount(video.view[kept], minlength=frames) - arrays["counts"]).abs().max() <= 1


def views_of(x: torch.Tensor, grid: tuple[int, int] | None = None, **more: Any) -> VisualTokens:
    """The views x [views, tokens, width] as the host shows them."""
    return visual_tokens(x.flatten(0, 1), [grid or (1, x.shape[1])] * len(x), **more)


def by_view(kept: torch.Tensor, x: torch.Tensor) -> list[list[int]]:
    """Kept indices of all views' tokens as those of each view."""
    return [[int(i) % x.shape[1] for i in kept if int(i) // x.shape[1] == view] for view in range(len(x))]


class Encoder:
    """An encoder of which attention [tokens] or features [tokens, width] are given."""

    def __init__(self, attention: torch.Tensor | None = None, features: torch.Tensor | None = None) -> None:
        self.given_attention, self.given_features = attention, features

    def attention(self, layer: int, queries: str, early: bool) -> torch.Tensor:
        return self.given_attention[None]

    def features(self, layer: int, early: bool) -> torch.Tensor:
        return self.given_features


# --- G-Prune --------------------------------------------------------------------------------------------------------


def gprune(arrays: dict[str, Any]) -> GPrune:
    names = ("similarity", "temperature")
    return GPrune(
        retention=float(arrays["keep_ratio"]),
        iterations=int(arrays["iterations"]),
        **{name: float(arrays[name]) for name in names},
    )


@pytest.mark.parametrize("name", cases("gprune_all", "gprune_base576", "gprune_settings"))
def test_gprune(name: str) -> None:
    arrays = golden(name)
    method, x = gprune(arrays), arrays["x"][None]
    assert torch.allclose(method.information(x)[0], arrays["score"].float(), rtol=1e-4)
    kept = decide(method, views_of(x))
    assert (kept is None and len(arrays["idx"]) == x.shape[1]) or kept.tolist() == arrays["idx"].tolist()


@pytest.mark.parametrize("name", cases("gprune_views_*"))
def test_gprune_of_base_and_grid(name: str) -> None:
    """Two graphs; the newlines between the grid's rows are the host's."""
    arrays = golden(name)
    base, grid = arrays["base"].float(), arrays["grid"].float()
    tokens = visual_tokens(torch.cat([base, grid.flatten(0, 1)]), [(1, len(base)), tuple(grid.shape[:2])])
    kept = decide(gprune(arrays), tokens)
    assert kept[kept < len(base)].tolist() == arrays["idx_base"].tolist()
    assert (kept[kept >= len(base)] - len(base)).tolist() == arrays["idx_grid"].tolist()
    assert GPrune().entry_positions == "keep"


# --- HoloV ----------------------------------------------------------------------------------------------------------


def holov(arrays: dict[str, Any], **more: Any) -> HoloV:
    share = int(arrays["num_tokens"]) / arrays["x"].shape[1]
    return HoloV(retention=share, crops=int(arrays["num_crops"]), **more)


@pytest.mark.parametrize("name", cases("holov_*"))
def test_holov(name: str) -> None:
    arrays = golden(name)
    for x, attention, idx in zip(arrays["x"], arrays["attention"], arrays["idx"].tolist(), strict=True):
        tokens = views_of(x[None], encoder=Encoder(attention), has_cls=True)
        result = decide(holov(arrays), tokens)
        real = [index for index in idx if index >= 0]
        kept = result.anchors if isinstance(result, Reduction) else result
        assert kept[: len(real)].tolist() == real and len(kept) == len(idx)
        if len(real) < len(idx):  # the published zero vectors, at the last token's position
            assert not result.features[len(real) :].any() and set(kept[len(real) :].tolist()) == {len(x) - 1}
            assert torch.equal(result.features[: len(real)], x[real])


@pytest.mark.parametrize("name", cases("holov_*"))
def test_holovs_strips_follow_the_published_rule_and_scores(name: str) -> None:
    """Deviation from the paper, not from its code: a strip's published score is 1,090 times its mean attention (1 token: 1)."""
    arrays = golden(name)
    x, crops = arrays["x"][0], arrays["crop_scores"].shape[1]
    if name.startswith(("holov_llava64", "holov_crops5", "holov_qwen")):  # num_crops is what the rule gives
        assert len(HoloV().strips(len(x), int(arrays["num_tokens"]))) == int(arrays["num_crops"])
    means = torch.stack([strip.mean() for strip in arrays["attention"][0].tensor_split(crops)])
    factor = 1090 if len(x) >= 2 * crops else 1
    assert torch.allclose(means * factor, arrays["crop_scores"][0], rtol=1e-4)


def test_holov_can_redistribute_what_overflows() -> None:
    arrays = golden("holov_overflow_zeros")
    x, attention = arrays["x"][0], arrays["attention"][0]
    tokens = views_of(x[None], encoder=Encoder(attention), has_cls=True)
    kept = decide(holov(arrays, overflow="redistribute", order="raster"), tokens)
    assert isinstance(kept, torch.Tensor) and len(kept) == len(arrays["idx"][0])
    assert kept.tolist() == sorted(kept.tolist()) and {i for i in arrays["idx"][0].tolist() if i >= 0} <= set(kept.tolist())


# --- MMTok ----------------------------------------------------------------------------------------------------------


class Text:
    """Text of which the words' embeddings are given."""

    question = None

    def __init__(self, embeddings: torch.Tensor) -> None:
        self.embeddings = embeddings

    def after(self) -> torch.Tensor:
        return self.embeddings


@pytest.mark.parametrize(
    "name", cases("mmtok_llava64", "mmtok_small12", "mmtok_one_text_token", "mmtok_alpha08_batch2", "mmtok_anyres_2x2")
)
def test_mmtok(name: str) -> None:
    """Every view alone, as published; that tiles are views of their own is the golden's, not the host's."""
    arrays = golden(name)
    x, features = arrays["x"], arrays["features"][:, 1:]
    names = ("alpha", "text_temperature", "vision_temperature")
    method = MMTok(retention=int(arrays["num_tokens"]) / x.shape[1], **{name: round(float(arrays[name]), 6) for name in names})
    tokens = views_of(x, encoder=Encoder(features=features.flatten(0, 1)), text=Text(arrays["text_embeds"]))
    assert by_view(decide(method, tokens), x) == arrays["idx"].tolist()


#: MMTok leaves out the padding of a picture that was squared. Hugging Face's LLaVA-1.5 processor crops and pads nothing,
#: and what it cut is not known to the host, so there is nothing to leave out.
NOT_APPLICABLE = cases("mmtok_padding_*")


@pytest.mark.parametrize("name", cases("mmtok_text_cleanup"))
def test_mmtok_keeps_the_words_that_say_something(name: str) -> None:
    arrays = golden(name)
    for question, words in zip(arrays["question"].tolist(), arrays["keywords"].tolist(), strict=True):
        assert " ".join(keywords(question)) == " ".join(words.split())


# --- CDPruner -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", cases("cdpruner_[!l]*", "cdpruner_llava64"))
def test_cdpruner(name: str) -> None:
    """Of given CLIP vectors; every view alone, their relevance scaled together."""
    arrays = golden(name)
    x = arrays["x"]
    tokens = views_of(x)
    method = CDPruner(retention=int(arrays["num_tokens"]) / x.shape[1])
    tokens.left = tuple(method.left(tuple(tokens.view_counts()), None, None))
    kept = method.likeliest(tokens, relevance_to(arrays["image_embeds"].flatten(0, 1), arrays["text_embeds"]))
    assert by_view(kept, x) == arrays["idx"].tolist()


def clip_folder(arrays: dict[str, Any], folder: Path) -> Path:
    """The golden's CLIP as save_pretrained writes it; its tokenizer knows the words w0, w1, ... by their numbers."""
    weights = {key.removeprefix("w__"): value for key, value in arrays.items() if key.startswith("w__")}
    width = arrays["hidden_state"].shape[-1]
    hidden = weights["text_model.embeddings.token_embedding.weight"].shape
    config = CLIPConfig(
        text_config={
            "vocab_size": hidden[0],
            "hidden_size": hidden[1],
            "intermediate_size": weights["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
            "num_hidden_layers": int(arrays["text_layers"]),
            "num_attention_heads": int(arrays["text_heads"]),
            "max_position_embeddings": int(arrays["max_position_embeddings"]),
            "hidden_act": "quick_gelu",
            "eos_token_id": 2,
        },
        vision_config={"hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2},
        projection_dim=len(arrays["visual_projection"]),
    )
    config.vision_config.layer_norm_eps = float(arrays["post_layernorm_eps"])
    model = CLIPModel(config)
    weights |= {f"vision_model.post_layernorm.{part}": arrays[f"post_layernorm_{part}"] for part in ("weight", "bias")}
    weights["visual_projection.weight"] = arrays["visual_projection"]
    known = model.state_dict()
    assert set(weights) <= set(known)
    model.load_state_dict({**known, **weights})
    model.save_pretrained(folder)
    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(hidden[0])}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", cases("cdpruner_longtext", "cdpruner_shorttext"))
def test_cdpruner_with_its_text_tower(name: str, tmp_path: Path) -> None:
    """The whole path from the encoder's features and the question's words, read from a directory."""
    arrays = golden(name)
    folder = clip_folder(arrays, tmp_path)
    clip = load_clip(str(folder), torch.device("cpu"))
    question = " ".join(f"w{number}" for number in arrays["text_input_ids"][0].tolist())
    text = torch.nn.functional.normalize(clip.text_vectors(clip.ids(question)), dim=-1)
    assert close(text, torch.nn.functional.normalize(arrays["text_embeds"], dim=-1))
    tokens = views_of(
        arrays["x"],
        encoder=Encoder(features=arrays["hidden_state"][0, 1:]),
        text=type("Asked", (), {"question": question})(),
        has_cls=True,
    )
    method = CDPruner(retention=int(arrays["num_tokens"]) / arrays["x"].shape[1], text_tower=str(folder))
    assert decide(method, tokens).tolist() == arrays["idx"][0].tolist()


# --- all of them ----------------------------------------------------------------------------------------------------


def test_no_golden_case_is_left_untested() -> None:
    assert GOLDEN.named(*(f"{method}_*" for method in METHODS)) == GOLDEN.tested
