"""Inputs for the tiny models, built by hand: one batch per case that a host or a method can get wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tokenzoo.errors import UnsupportedError, unknown
from tokenzoo.testing.models import IMAGE, PAD, TEXT, VIDEO, VISION_END, VISION_START

#: Each case in words.
CASES = {
    "single": "one sample with one image",
    "left": "three samples with one image each, texts of unequal length, padded left",
    "right": "the same padded right (forward only: generation pads left)",
    "images": "two images in one sample, none in the next, one in the last, padded left",
    "video": "one sample with one video, and one of only text, padded left",
}
#: Images, or videos, of each sample of a case.
COUNTS = {"single": [1], "left": [1, 1, 1], "right": [1, 1, 1], "images": [2, 0, 1], "video": [1, 0]}
VIDEO_FAMILIES = ("llava_onevision", "qwen2_vl", "qwen2_5_vl")
#: Sizes of the pictures (height, width) in pixels or, for the Qwen models, in patches; they differ on purpose.
_SIZES = ((40, 80), (90, 60), (64, 64))
_GRIDS = ((8, 12), (12, 8), (8, 8))
_FRAMES = 4


@dataclass
class _Visual:
    """The images or videos of a whole batch: their tokens, their kinds, and the model's keyword arguments."""

    tokens: list[int]
    arguments: dict[str, Any]


def cases(model: Any) -> list[str]:
    """The cases a model can take: all, but video only where it takes videos."""
    return [case for case in CASES if case != "video" or model.config.model_type in VIDEO_FAMILIES]


def tiny_inputs(model: Any, case: str, seed: int = 0) -> dict[str, Any]:
    """Return the keyword arguments of a forward or `generate` call for one of the cases."""
    if case not in CASES:
        raise unknown("case", case, CASES, "python -c 'import tokenzoo.testing as t; print(t.CASES)'")
    if case not in cases(model):
        raise UnsupportedError(f"{type(model).__name__} takes no videos. Choose another case.")
    generator = torch.Generator().manual_seed(seed)
    kind = "video" if case == "video" else "image"
    counts = COUNTS[case]
    visual = _BUILDERS[model.config.model_type](model, kind, counts, generator)
    rows = _token_rows(model, kind, counts, list(visual.tokens), generator)
    inputs = _padded(rows, left=case != "right")
    if model.config.model_type.startswith("qwen2"):
        ids = inputs["input_ids"]
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    return {**inputs, **visual.arguments}


def take_sample(inputs: dict[str, Any], case: str, index: int) -> dict[str, Any]:
    """Return one sample of a batch that `tiny_inputs` made, alone and without padding."""
    mask = inputs["attention_mask"][index].bool()
    first = sum(COUNTS[case][:index])
    pictures = slice(first, first + COUNTS[case][index])
    sample = {}
    for name, value in inputs.items():
        if name in ("input_ids", "attention_mask", "mm_token_type_ids"):
            sample[name] = value[index : index + 1, mask]
        elif name == "batch_num_images":
            sample[name] = value[index : index + 1]
        elif name.startswith("pixel_values") and value.ndim == 2:  # patches of all pictures in one row
            sizes = next(grids for key, grids in inputs.items() if key.endswith("_grid_thw")).prod(-1).tolist()
            sample[name] = torch.cat([value[:0], *value.split(sizes)[pictures]])
        else:
            sample[name] = value[pictures]
    return sample


def words(inputs: dict[str, Any], first: int = 0) -> dict[str, Any]:
    """`questions` and `tokenizer` of `tokenzoo.apply` for a batch: another question for each sample, counted from `first`."""
    batch = len(inputs["input_ids"])
    return {"questions": [f"what stands in picture {'abc'[first + n]}" for n in range(batch)], "tokenizer": Words()}


class Words:
    """A tokenizer of a tiny model: every word is one token."""

    bos_token_id = 1

    def __call__(self, text: list[str], **options: Any) -> dict[str, torch.Tensor]:
        ids = [TEXT.start + sum(map(ord, word)) % len(TEXT) for word in text]
        return {"input_ids": torch.tensor([[self.bos_token_id, *ids]])}


def _token_rows(model: Any, kind: str, counts: list[int], tokens: list[int], generator: torch.Generator) -> list[list[int]]:
    """Text, then each picture followed by text, for each sample."""
    placeholder = VIDEO if kind == "video" else IMAGE
    bounded = model.config.model_type.startswith("qwen2")

    def text(length: int) -> list[int]:
        return torch.randint(TEXT.start, TEXT.stop, (length,), generator=generator).tolist()

    rows = []
    for sample, count in enumerate(counts):
        row = text(3 + sample)
        for _ in range(count):
            run = [placeholder] * tokens.pop(0)
            row += [VISION_START, *run, VISION_END] if bounded else run
            row += text(5 + 2 * sample)
        rows.append(row + text(4))
    return rows


def _padded(rows: list[list[int]], left: bool) -> dict[str, torch.Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), PAD)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[index, place] = torch.tensor(row)
        mask[index, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def _llava(model: Any, kind: str, counts: list[int], generator: torch.Generator) -> _Visual:
    size = model.config.vision_config.image_size
    pixels = torch.randn(sum(counts), 3, size, size, generator=generator)
    tokens = (size // model.config.vision_config.patch_size) ** 2
    return _Visual([tokens] * sum(counts), {"pixel_values": pixels})


def _anyres(model: Any, kind: str, counts: list[int], generator: torch.Generator) -> _Visual:
    """LLaVA-NeXT and LLaVA-OneVision: as many tokens as the model itself makes of each picture."""
    size = model.config.vision_config.image_size
    if kind == "video":
        pixels = torch.randn(sum(counts), _FRAMES, 3, size, size, generator=generator)
        pooled = -(-(size // model.config.vision_config.patch_size) // 2)
        return _Visual([_FRAMES * pooled**2 + 1] * sum(counts), {"pixel_values_videos": pixels})
    sizes = torch.tensor([_SIZES[index % len(_SIZES)] for index in range(sum(counts))])
    most = 1 + max(-(-height // size) * -(-width // size) for height, width in sizes.tolist())
    arguments: dict[str, Any] = {
        "pixel_values": torch.randn(len(sizes), most, 3, size, size, generator=generator),
        "image_sizes": sizes,
    }
    if model.config.model_type == "llava_onevision":
        arguments["batch_num_images"] = torch.tensor(counts)
    features = model.model.get_image_features(
        **arguments,
        vision_feature_layer=model.config.vision_feature_layer,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        return_dict=True,
    )
    return _Visual([len(part) for part in features.pooler_output], arguments)


def _qwen(model: Any, kind: str, counts: list[int], generator: torch.Generator) -> _Visual:
    vision = model.config.vision_config
    frames = _FRAMES // vision.temporal_patch_size + 1 if kind == "video" else 1
    grids = torch.tensor([(frames, *_GRIDS[index % len(_GRIDS)]) for index in range(sum(counts))])
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(int(grids.prod(-1).sum()), width, generator=generator)
    tokens = (grids.prod(-1) // vision.spatial_merge_size**2).tolist()
    if kind == "video":
        return _Visual(tokens, {"pixel_values_videos": pixels, "video_grid_thw": grids})
    return _Visual(tokens, {"pixel_values": pixels, "image_grid_thw": grids})


_BUILDERS = {
    "llava": _llava,
    "llava_next": _anyres,
    "llava_onevision": _anyres,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
}
