"""The shapes of the embedded models, initialised for training from scratch."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from tokenzoo.bench.scenes import PATCH_SIZE, SIZE
from tokenzoo.bench.vocabulary import BOS, EOS, IMAGE, PAD, VIDEO, WORDS, word_ids

HIDDEN = 128
DECODER_LAYERS = 12
ENCODER_LAYERS = 5  #: CLIP's last but one layer is read, as in LLaVA-1.5; SigLIP has one layer fewer and its last is read
HEADS = 4
INITIAL_STD = 0.06


def _decoder_sizes() -> dict:
    return dict(
        vocab_size=len(WORDS),
        hidden_size=HIDDEN,
        intermediate_size=384,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=2048,
        pad_token_id=WORDS.index(PAD),
        bos_token_id=WORDS.index(BOS),
        eos_token_id=WORDS.index(EOS),
        tie_word_embeddings=False,
    )


def _encoder_sizes(layers: int) -> dict:
    return dict(
        hidden_size=HIDDEN,
        intermediate_size=512,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="gelu_pytorch_tanh",
    )


def _initialise(model: torch.nn.Module) -> None:
    """Normal weights, the ones that write into the residual stream scaled down by depth."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            writes = name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "fc2.weight"))
            torch.nn.init.normal_(parameter, 0, INITIAL_STD / (math.sqrt(2 * DECODER_LAYERS) if writes else 1))


def build_llava() -> LlavaForConditionalGeneration:
    """LLaVA-1.5 shape: CLIP encoder with a CLS token, two-layer projector, Llama decoder."""
    config = LlavaConfig(  # type: ignore[call-arg]
        vision_config=CLIPVisionConfig(**_encoder_sizes(ENCODER_LAYERS)),
        text_config=LlamaConfig(num_key_value_heads=HEADS, **_decoder_sizes()),
        image_token_index=WORDS.index(IMAGE),
        image_seq_length=(SIZE // PATCH_SIZE) ** 2,
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        pad_token_id=WORDS.index(PAD),
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    _initialise(model)
    return model


def build_onevision() -> LlavaOnevisionForConditionalGeneration:
    """LLaVA-OneVision shape: SigLIP encoder, projector, 2 x 2 pooling of frames, Qwen2 decoder with two key/value heads.

    A picture is always its base view and one tile of the same size (``image_grid_pinpoints``), 144 + 144 tokens and a newline
    after each of the tile's twelve rows: the path that the stock model takes for a single picture.
    """
    config = LlavaOnevisionConfig(  # type: ignore[call-arg]
        vision_config=SiglipVisionConfig(vision_use_head=True, **_encoder_sizes(ENCODER_LAYERS - 1)),
        text_config=Qwen2Config(num_key_value_heads=HEADS // 2, **_decoder_sizes()),
        image_token_index=WORDS.index(IMAGE),
        video_token_index=WORDS.index(VIDEO),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_grid_pinpoints=[[SIZE, SIZE]],
        vision_aspect_ratio="anyres_max_9",
        pad_token_id=WORDS.index(PAD),
        tie_word_embeddings=False,
    )
    model = LlavaOnevisionForConditionalGeneration(config)
    _initialise(model)
    torch.nn.init.normal_(model.model.image_newline, 0, INITIAL_STD)
    return model


BUILD = {"llava": build_llava, "onevision": build_onevision}


def continue_from(model: Any, folder: Path, later: int = 0) -> None:
    """Take over a checkpoint's weights, its words by their spelling; what it lacks keeps its initial value.

    :param later: the decoder's layers move so many down, and so does all that they read. Fresh layers, which write nothing yet,
        come first; as many of the last are left out
    """
    old = type(model).from_pretrained(folder, dtype=torch.float32).state_dict()
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    known = [(word_id, words[word]) for word, word_id in word_ids().items() if word in words]
    own = model.state_dict()
    for layer in model.model.language_model.layers[:later]:
        nn.init.zeros_(layer.self_attn.o_proj.weight)
        nn.init.zeros_(layer.mlp.down_proj.weight)
    for old_name, value in old.items():
        name = re.sub(r"(language_model\.layers\.)(\d+)", lambda found: f"{found[1]}{int(found[2]) + later}", old_name)
        if name not in own:
            continue
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            for new_id, old_id in known:
                own[name][new_id] = value[old_id]
        else:
            own[name].copy_(value)
