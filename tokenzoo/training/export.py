"""Save a trained model as a directory in the Hub's format: weights in bfloat16, config, tokenizer, processor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import CLIPImageProcessorPil, LlavaOnevisionImageProcessorPil, LlavaProcessor, PreTrainedTokenizerFast

from tokenzoo.bench.scenes import PATCH_SIZE, SIZE
from tokenzoo.bench.vocabulary import BOS, EOS, IMAGE, PAD, UNKNOWN, VIDEO, word_ids
from tokenzoo.training.encoder import MEAN, STD

#: ``<s>user <image>\n question assistant``; the answer is the next token
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}<video>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %} "
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Whole lower-case words; punctuation is dropped, a line break is a word."""
    tokenizer = Tokenizer(models.WordLevel(word_ids(), unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\w-]+|\n"), "removed", invert=True)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN, padding_side="left",
        extra_special_tokens={"image_token": IMAGE, "video_token": VIDEO},
        model_max_length=2048, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = CHAT_TEMPLATE
    return fast


def export(model: Any, folder: Path) -> None:
    """Write a LLaVA or LLaVA-OneVision shape to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=weights)
    _name_as_on_the_hub(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "bfloat16"
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = build_tokenizer()
    normalise: dict[str, Any] = dict(image_mean=[MEAN] * 3, image_std=[STD] * 3)
    if model.config.model_type == "llava":
        square = {"height": SIZE, "width": SIZE}
        LlavaProcessor(
            CLIPImageProcessorPil(size=square, crop_size=square, **normalise), tokenizer, patch_size=PATCH_SIZE,
            vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=CHAT_TEMPLATE,
        ).save_pretrained(folder)  # fmt: skip
    else:
        _save_onevision_processor(folder, tokenizer, normalise)


def _name_as_on_the_hub(path: Path) -> None:
    """Give the encoder's weights llava-hf's names, which every loader reads; transformers 5.23 leaves a level of them out."""
    weights = load_file(path)
    short, long = "vision_tower.", "vision_tower.vision_model."
    named = {
        long + name.removeprefix(short) if name.startswith(short) and not name.startswith(long) else name: value
        for name, value in weights.items()
    }
    save_file(named, path, {"format": "pt"})


def _save_onevision_processor(folder: Path, tokenizer: PreTrainedTokenizerFast, normalise: dict) -> None:
    """Its processor class needs torchvision (for video), so its files are written part by part."""
    tokenizer.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    images = LlavaOnevisionImageProcessorPil(size=size, image_grid_pinpoints=[[SIZE, SIZE]], **normalise)
    images.save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    settings["processor_class"] = "LlavaOnevisionProcessor"
    path.write_text(json.dumps(settings, indent=2) + "\n")
    video = dict(normalise, size=size, do_resize=True, do_rescale=True, do_normalize=True, do_convert_rgb=True)
    video |= dict(video_processor_type="LlavaOnevisionVideoProcessor", processor_class="LlavaOnevisionProcessor")
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")
    processor = dict(
        processor_class="LlavaOnevisionProcessor", num_image_tokens=(SIZE // PATCH_SIZE) ** 2,
        vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_9", image_token=IMAGE, video_token=VIDEO,
    )  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
