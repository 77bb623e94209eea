"""A checkpoint folder of every family as the Hub has it: tiny random weights, config, processor, tokenizer, chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tokenzoo.bench.vocabulary import WORDS
from tokenzoo.testing.models import FAMILIES, VOCABULARY, tiny_model

LAYERS = 6
#: What stands in a template for a picture and a video.
LLAVA = {"image": "<image>", "video": "<video>"}
QWEN = {kind: f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video")}
GEMMA4 = {"image": "<|image|>", "video": "<|video|>"}
PLACEHOLDERS: dict[str, dict[str, str]] = {
    **dict.fromkeys(FAMILIES, LLAVA),
    **dict.fromkeys((family for family in FAMILIES if family.startswith("qwen")), QWEN),
    "internvl": {"image": "<IMG_CONTEXT>", "video": "<video>"},
    "gemma3": {"image": "<start_of_image>", "video": ""},
    **dict.fromkeys(("gemma4", "gemma4-moe"), GEMMA4),
}
#: The tokens with ids 90 to 95, as tiny_model's configs have them: image, video, two around a picture, two more.
_LLAVA_TOKENS = ("<image>", "<video>", "<spare-1>", "<spare-2>", "<spare-3>", "<spare-4>")
_QWEN_TOKENS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<spare-1>", "<spare-2>")
_IDEFICS_TOKENS = ("<image>", "<video>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<spare-1>")
SPECIAL: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(FAMILIES, _LLAVA_TOKENS),
    **{family: _QWEN_TOKENS for family, placeholders in PLACEHOLDERS.items() if placeholders is QWEN},
    **dict.fromkeys(("idefics2", "idefics3", "smolvlm"), _IDEFICS_TOKENS),
    "internvl": ("<IMG_CONTEXT>", "<video>", "<img>", "</img>", "<spare-1>", "<spare-2>"),
    "gemma3": ("<image_soft_token>", "<spare-1>", "<start_of_image>", "<end_of_image>", "<spare-2>", "<spare-3>"),
    **dict.fromkeys(("gemma4", "gemma4-moe"), ("<|image|>", "<|video|>", "<|image>", "<image|>", "<|audio|>", "<|audio>")),
}
_GEMMA4_NAMES = {"image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>"}
_GEMMA4_NAMES |= {"audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<|audio>"}
#: The names by which a tokenizer's special tokens are asked for.
NAMED: dict[str, dict[str, str]] = {
    "internvl": {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    },
    "gemma3": {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
    **dict.fromkeys(("gemma4", "gemma4-moe"), _GEMMA4_NAMES),
}
#: Families whose template writes the token at the beginning that the tokenizer adds as well, as on the Hub.
BEGIN = ("gemma3", "idefics2", "idefics3")
#: Families whose processor has a half for videos, which needs torchvision; SmolVLM's needs num2words besides.
WITH_VIDEO_HALF = (
    "llava-next-video", "llava-onevision", "video-llava", "qwen2-vl", "qwen2.5-vl", "qwen3-vl", "qwen3-vl-mha", "qwen3-vl-moe",
    "qwen3.5", "qwen3.5-moe", "internvl", "smolvlm", "gemma4", "gemma4-moe",
)  # fmt: skip


def build_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Whole words; ids as in `tokenzoo.testing.models`: padding 0, beginning 1, end 2, text from 3, pictures from 90."""
    text = [word for word in WORDS if word != "\n" and not word.startswith("<")]
    words = ["<pad>", "<s>", "</s>", "<unk>", "\n", "Frame1", *text]
    ids = {word: index for index, word in enumerate([*words[:90], *SPECIAL[family]])}
    assert len(ids) == VOCABULARY
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\w-]+|\n|[<>?:.]"), "removed", invert=True)
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL[family]])
    if family in BEGIN:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A $B", [("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", padding_side="left",
        extra_special_tokens=NAMED.get(family, {}), model_max_length=4096, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    fast.chat_template = chat_template(family)
    return fast


def chat_template(family: str) -> str:
    """One turn: the pictures and the text in the order they are given."""
    parts = "".join(
        f"{{% elif part['type'] == '{kind}' %}}{placeholder}" for kind, placeholder in PLACEHOLDERS[family].items() if placeholder
    )
    return ("<s>" if family in BEGIN else "") + (
        "{% for message in messages %}{{ message['role'] }}: {% for part in message['content'] %}"
        f"{{% if part['type'] == 'text' %}}{{{{ part['text'] }}}}{parts}"
        "{% endif %}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )


def _images(name: str, **settings: Any) -> Any:
    """An image processor that needs no torchvision; saved, it is the same as the one that does."""
    return getattr(transformers, f"{name}ImageProcessorPil")(**settings)


def _videos(name: str, **settings: Any) -> Any:
    return getattr(transformers, f"{name}VideoProcessor")(**settings)


def build_processor(family: str, config: Any) -> Any:
    """The family's own processor for the sizes of a tiny model."""
    tokenizer, vision = build_tokenizer(family), config.vision_config
    whole = {"tokenizer": tokenizer, "chat_template": tokenizer.chat_template}
    if PLACEHOLDERS[family] is QWEN:
        generation = "3" if family.startswith("qwen3") else "2_5_" if family == "qwen2.5-vl" else "2"
        patches = {"patch_size": 4, "merge_size": 2, "temporal_patch_size": 2}
        images = _images("Qwen2VL", size={"shortest_edge": 16 * 16, "longest_edge": 48 * 48}, **patches)
        frames = {"shortest_edge": 4 * 16 * 16, "longest_edge": 8 * 32 * 32}
        videos = _videos("Qwen3VL" if generation == "3" else "Qwen2VL", size=frames, **patches)
        return getattr(transformers, f"Qwen{generation}VLProcessor")(image_processor=images, video_processor=videos, **whole)
    if config.model_type == "gemma4":
        sizes = {"patch_size": vision.patch_size, "pooling_kernel_size": vision.pooling_kernel_size, "max_soft_tokens": 70}
        images, videos = _images("Gemma4", **sizes), _videos("Gemma4", **sizes)
        sound = transformers.Gemma4AudioFeatureExtractor()
        return transformers.Gemma4Processor(sound, images, video_processor=videos, image_seq_length=70, **whole)
    side = vision.image_size if isinstance(vision.image_size, int) else vision.image_size[0]
    square = {"height": side, "width": side}
    if family in ("idefics2", "idefics3", "smolvlm"):
        if family == "idefics2":
            images = _images("Idefics2", size={"shortest_edge": side, "longest_edge": 2 * side}, do_image_splitting=True)
            latents = config.perceiver_config.resampler_n_latents
            return transformers.Idefics2Processor(images, tokenizer, image_seq_len=latents, chat_template=tokenizer.chat_template)
        edges = {"size": {"longest_edge": 2 * side}, "max_image_size": {"longest_edge": side}}
        whole["image_seq_len"] = (side // vision.patch_size) ** 2 // config.scale_factor**2
        if family == "idefics3":
            return transformers.Idefics3Processor(_images("Idefics3", **edges), **whole)
        sampling = {"max_frames": 64, "fps": 1, "video_size": {"longest_edge": side}}
        videos = _videos("SmolVLM", max_image_size={"longest_edge": side}, video_sampling=sampling)
        return transformers.SmolVLMProcessor(_images("SmolVLM", **edges), video_processor=videos, **whole)
    if family == "internvl":
        images = _images("GotOcr2", size=square, crop_to_patches=True, min_patches=1, max_patches=4)
        videos = _videos("InternVL", size=square)
        return transformers.InternVLProcessor(images, video_processor=videos, image_seq_length=config.image_seq_length, **whole)
    if family == "gemma3":
        return transformers.Gemma3Processor(_images("Gemma3", size=square), image_seq_length=config.mm_tokens_per_image, **whole)
    clip = {"size": {"shortest_edge": side}, "crop_size": square}
    whole |= {"patch_size": vision.patch_size, "vision_feature_select_strategy": config.vision_feature_select_strategy}
    if family == "llava":
        return transformers.LlavaProcessor(_images("CLIP", **clip), num_additional_image_tokens=1, **whole)
    if family == "video-llava":
        videos = _videos("VideoLlava", **clip)
        images = transformers.VideoLlavaImageProcessor(**clip)
        return transformers.VideoLlavaProcessor(images, video_processor=videos, num_additional_image_tokens=1, **whole)
    pinpoints = config.image_grid_pinpoints
    if family == "llava-onevision":
        images = _images("LlavaOnevision", size=square, image_grid_pinpoints=pinpoints)
        del whole["patch_size"]
        return transformers.LlavaOnevisionProcessor(
            images, video_processor=_videos("LlavaOnevision", size=square),
            num_image_tokens=(side // vision.patch_size) ** 2, vision_aspect_ratio=config.vision_aspect_ratio, **whole,
        )  # fmt: skip
    images = _images("LlavaNext", image_grid_pinpoints=pinpoints, **clip)
    whole["num_additional_image_tokens"] = 1
    if family == "llava-next":
        return transformers.LlavaNextProcessor(images, **whole)
    videos = _videos("LlavaNextVideo", **clip)
    return transformers.LlavaNextVideoProcessor(video_processor=videos, image_processor=images, **whole)


def save(family: str, folder: Path, model: Any = None) -> Path:
    """Write the family's checkpoint to a folder, as save_pretrained of its classes does; return the folder.

    `model`: another than the tiny one, of the same picture sizes.
    """
    model = model or tiny_model(family, layers=LAYERS)
    model.config.name_or_path = ""
    model.save_pretrained(folder)
    build_processor(family, model.config).save_pretrained(folder)
    return folder
