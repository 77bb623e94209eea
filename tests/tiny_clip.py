"""A CLIP model in a directory, of the tiny models' vision width and with a tokenizer, for methods that need one."""

from __future__ import annotations

import tempfile
from functools import cache

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from tokenzoo import TokenReducer
from tokenzoo.zoo.plugins import load_zoo

WORDS = ["?", "what", "stands", "in", "picture", "a", "b", "c"]


@cache
def tiny_clip(vision_width: int = 32) -> str:
    """The directory; made once a process."""
    folder = tempfile.mkdtemp()
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 16, "hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 5}
    vision = {**sizes, "hidden_size": vision_width, "intermediate_size": 32, "image_size": 48, "patch_size": 8}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    return folder


def build(method: str) -> list[TokenReducer]:
    """The method with its defaults, and with what it cannot do without."""
    (made,) = load_zoo().build(method).reducers
    return [made.replace(text_tower=tiny_clip()) if "text_tower" in made.parameters else made]
