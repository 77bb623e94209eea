"""Inputs for the tiny models, built by hand: one batch per case that a host or a method can get wrong."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from tokenzoo.errors import UnsupportedError, unknown
from tokenzoo.host.family import image_argument
from tokenzoo.testing.models import IMAGE, PAD, TEXT, VIDEO, VISION_END, VISION_START

#: Each case in words.
CASES = {
    "single": "one sample with one image",
    "left": "three samples with one image each, texts of unequal length, padded left",
    "right": "the same padded right (forward only: generation pads left)",
    "images": "two images in one sample, none in the next, one in the last, padded left",
    "video": "one sample with one video, and one of only text, padded left",
    "mixed": "one sample with a video before an image, and one of only an image, padded left",
}
#: The pictures of each sample of a case, in order.
PICTURES: dict[str, list[list[str]]] = {
    "single": [["image"]],
    "left": [["image"], ["image"], ["image"]],
    "right": [["image"], ["image"], ["image"]],
    "images": [["image", "image"], [], ["image"]],
    "video": [["video"], []],
    "mixed": [["video", "image"], ["image"]],
}
#: The model types that tell videos from images.
VIDEO_TYPES = (
    "llava_onevision",
    "llava_next_video",
    "video_llava",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "gemma4",
)
#: Sizes of the pictures (height, width) in pixels or, for the Qwen models, in patches; they differ on purpose.
_SIZES = ((40, 80), (90, 60), (64, 64))
_GRIDS = ((8, 12), (12, 8), (8, 8))
_FRAMES = 4
#: Rows and columns of tokens of pictures of Gemma 4.
_CELLS = ((4, 6), (6, 4), (4, 4))
#: Tiles of each picture of a model whose pictures are cut into tiles of one size.
_TILES = (3, 1, 2)


@dataclass
class _Visual:
    """The images or videos of a whole batch: for each its runs of placeholders, and the model's keyword arguments."""

    runs: list[list[int]]
    arguments: dict[str, Any]


def cases_of(model_type: str) -> list[str]:
    """The cases that models of this type can take."""
    wanted = ("image", "video") if model_type in VIDEO_TYPES else ("image",)
    return [case for case, samples in PICTURES.items() if all(kind in wanted for sample in samples for kind in sample)]


def cases(model: Any) -> list[str]:
    """The cases a model can take: all, but those with videos only where it takes videos."""
    return cases_of(model.config.model_type)


def tiny_inputs(model: Any, case: str, seed: int = 0) -> dict[str, Any]:
    """Return the keyword arguments of a forward or `generate` call for one of the cases, on the model's device, in its dtype.

    The same numbers whatever the device.
    """
    if case not in CASES:
        raise unknown("case", case, CASES, "python -c 'import tokenzoo.testing as t; print(t.CASES)'")
    if case not in cases(model):
        raise UnsupportedError(f"{type(model).__name__} takes no videos. Choose another case.")
    generator = torch.Generator().manual_seed(seed)
    samples, build = PICTURES[case], _BUILDERS[model.config.model_type]
    runs: dict[str, list[list[int]]] = {}
    arguments: dict[str, Any] = {}
    for kind in ("image", "video"):
        counts = [sample.count(kind) for sample in samples]
        if any(counts):
            visual = build(model, kind, counts, generator)
            runs[kind], arguments = list(visual.runs), arguments | visual.arguments
    inputs = _padded(_token_rows(model, samples, runs, generator), left=case != "right")
    if _qwen_like(model) or model.config.model_type == "gemma4":
        ids = inputs["input_ids"]
        inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    if model.config.model_type == "gemma3":
        inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return _placed(model, {**inputs, **arguments})


def encoded_first(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs with the pictures of Gemma 4's videos encoded, which `generate` does before it calls the model.

    A forward of Gemma 4 hands on how many frames each video has from transformers 5.23 on. `generate` always did.
    """
    if "num_frames_per_video" not in inputs:
        return inputs
    rest, encoded = dict(inputs), {}
    for kind in ("image", "video"):
        encode = getattr(model.model, f"get_{kind}_features")
        given = {name: rest.pop(name) for name in inspect.signature(encode).parameters if name in rest}
        if given:
            encoded[kind] = encode(**given, return_dict=True)
    return {**rest, "mm_encoder_outputs": encoded}


def take_sample(inputs: dict[str, Any], case: str, index: int) -> dict[str, Any]:
    """Return one sample of a batch that `tiny_inputs` made, alone and without padding, its own pictures with it."""
    mask = inputs["attention_mask"][index].bool()
    sample = {}
    for name, value in inputs.items():
        kind = "video" if "video" in name else "image"
        counts = [pictures.count(kind) for pictures in PICTURES[case]]
        pictures = slice(sum(counts[:index]), sum(counts[: index + 1]))
        if name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
            sample[name] = value[index : index + 1, mask]
        elif not counts[index]:
            continue
        elif "num_frames_per_video" in inputs and kind == "video" and name != "num_frames_per_video":  # all frames in one row
            sample[name] = torch.cat(value.split(inputs["num_frames_per_video"].tolist())[pictures])
        elif name == "batch_num_images" or ("pixel_attention_mask" in inputs and name.startswith("pixel")):  # a row a sample
            sample[name] = value[index : index + 1]
        elif name == "pixel_values" and value.ndim == 4:  # as many pictures or tiles as the sample has placeholders for
            images = (inputs["input_ids"] == IMAGE).sum(1) * len(value) // (inputs["input_ids"] == IMAGE).sum()
            sample[name] = value.split(images.tolist())[index]
        elif name.startswith("pixel_values") and value.ndim == 2:  # patches of all pictures in one row
            sizes = inputs[f"{kind}_grid_thw"].prod(-1).tolist()
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


def _placed(model: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    on_device = {name: value.to(model.device) for name, value in arguments.items()}
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in on_device.items()}


def _qwen_like(model: Any) -> bool:
    return model.config.model_type.startswith("qwen")


def _token_rows(
    model: Any, samples: list[list[str]], runs: dict[str, list[list[int]]], generator: torch.Generator
) -> list[list[int]]:
    """Text, then each picture followed by text, for each sample; text between the runs of one picture."""

    def text(length: int) -> list[int]:
        return torch.randint(TEXT.start, TEXT.stop, (length,), generator=generator).tolist()

    rows = []
    for sample, pictures in enumerate(samples):
        row = text(3 + sample)
        for kind in pictures:
            for number, tokens in enumerate(runs[kind].pop(0)):
                run = [VIDEO if kind == "video" else IMAGE] * tokens
                row += text(2 if number else 0) + ([VISION_START, *run, VISION_END] if _qwen_like(model) else run)
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
    tokens = getattr(model.config, "mm_tokens_per_image", None) or (size // model.config.vision_config.patch_size) ** 2
    if kind == "video":  # Video-LLaVA: each frame's CLS token goes along
        pixels = torch.randn(sum(counts), _FRAMES, 3, size, size, generator=generator)
        return _Visual([[_FRAMES * (tokens + 1)]] * sum(counts), {"pixel_values_videos": pixels})
    return _Visual([[tokens]] * sum(counts), {image_argument(model): pixels})


def _anyres(model: Any, kind: str, counts: list[int], generator: torch.Generator) -> _Visual:
    """LLaVA-NeXT and LLaVA-OneVision: as many tokens as the model itself makes of each picture."""
    size = model.config.vision_config.image_size
    if kind == "video":
        pixels = torch.randn(sum(counts), _FRAMES, 3, size, size, generator=generator)
        pooled = -(-(size // model.config.vision_config.patch_size) // 2)
        newline = model.config.model_type == "llava_onevision"
        return _Visual([[_FRAMES * pooled**2 + newline]] * sum(counts), {"pixel_values_videos": pixels})
    sizes = torch.tensor([_SIZES[index % len(_SIZES)] for index in range(sum(counts))])
    most = 1 + max(-(-height // size) * -(-width // size) for height, width in sizes.tolist())
    arguments: dict[str, Any] = {
        "pixel_values": torch.randn(len(sizes), most, 3, size, size, generator=generator),
        "image_sizes": sizes,
    }
    if model.config.model_type == "llava_onevision":
        arguments["batch_num_images"] = torch.tensor(counts)
    features = model.model.get_image_features(
        **_placed(model, arguments),
        vision_feature_layer=model.config.vision_feature_layer,
        vision_feature_select_strategy=model.config.vision_feature_select_strategy,
        return_dict=True,
    )
    return _Visual([[len(part)] for part in features.pooler_output], arguments)


def _tiles(counts: list[int]) -> list[int]:
    return [_TILES[index % len(_TILES)] for index in range(sum(counts))]


def _internvl(model: Any, kind: str, counts: list[int], generator: torch.Generator) -> _Visual:
    """Pictures of several tiles; the third is a video of two frames, with text between them."""
    size, tokens = model.config.vision_config.image_size[0], model.config.image_seq_length
    pixels = torch.randn(sum(_tiles(counts)), 3, size, size, generator=generator)
    runs = [[tokens] * tiles if index % 3 == 2 else [tokens * tiles] for index, tiles in enumerate(_tiles(counts))]
    return _Visual(runs, {"pixel_values": pixels})


def _idefics(model: Any, kind: str, counts: list[int], generator: torch.Generator) -> _Visual:
    """Text before each tile; empty tiles fill up the samples."""
    size, tiles = model.config.vision_config.image_size, _tiles(counts)
    patches = (size // model.config.vision_config.patch_size) ** 2
    resampler = getattr(model.config, "perceiver_config", None)
    tokens = resampler.resampler_n_latents if resampler else patches // model.config.scale_factor**2
    starts = [sum(counts[:sample]) for sample in range(len(counts) + 1)]
    used = [sum(tiles[first:last]) for first, last in pairwise(starts)]
    pixels = torch.randn(len(counts), max(used), 3, size, size, generator=generator)
    for sample, count in enumerate(used):
        pixels[sample, count:] = 0
    mask = torch.ones(len(counts), max(used), size, size, dtype=torch.bool)
    return _Visual([[tokens] * count for count in tiles], {"pixel_values": pixels, "pixel_attention_mask": mask})


def _qwen(model: Any, kind: str, counts: list[int], generator: torch.Generator) -> _Visual:
    vision = model.config.vision_config
    frames = _FRAMES // vision.temporal_patch_size + 1 if kind == "video" else 1
    grids = torch.tensor([(frames, *_GRIDS[index % len(_GRIDS)]) for index in range(sum(counts))])
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(int(grids.prod(-1).sum()), width, generator=generator)
    tokens = (grids.prod(-1) // vision.spatial_merge_size**2).tolist()
    apart = model.config.model_type.startswith("qwen3")  # a timestamp stands before each frame
    runs = [[count // frames] * frames if apart else [count] for count in tokens]
    if kind == "video":
        return _Visual(runs, {"pixel_values_videos": pixels, "video_grid_thw": grids})
    return _Visual(runs, {"pixel_values": pixels, "image_grid_thw": grids})


def _gemma4(model: Any, kind: str, counts: list[int], generator: torch.Generator) -> _Visual:
    """Pictures of any size, their patches padded to the largest; text between the frames of a video."""
    vision, frames = model.config.vision_config, 3 if kind == "video" else 1
    side = vision.pooling_kernel_size
    grids = [_CELLS[index % len(_CELLS)] for index in range(sum(counts))]
    most = max(rows * columns for rows, columns in grids) * side**2
    positions = torch.full((len(grids), most, 2), -1)
    for place, (rows, columns) in zip(positions, grids, strict=True):
        raster = torch.cartesian_prod(torch.arange(rows * side), torch.arange(columns * side)).flip(-1)
        place[: len(raster)] = raster
    positions = positions.repeat_interleave(frames, dim=0)
    pixels = torch.rand(*positions.shape[:2], 3 * vision.patch_size**2, generator=generator)
    pixels[(positions < 0).all(-1)] = 0
    runs = [[rows * columns] * frames for rows, columns in grids]
    if kind == "video":
        each = torch.full((len(grids),), frames)
        return _Visual(runs, {"pixel_values_videos": pixels, "video_position_ids": positions, "num_frames_per_video": each})
    return _Visual(runs, {"pixel_values": pixels, "image_position_ids": positions})


_BUILDERS = {
    "gemma4": _gemma4,
    "llava": _llava,
    "llava_next": _anyres,
    "llava_onevision": _anyres,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "qwen3_vl_moe": _qwen,
    "qwen3_5": _qwen,
    "qwen3_5_moe": _qwen,
    "internvl": _internvl,
    "llava_next_video": _anyres,
    "video_llava": _llava,
    "gemma3": _llava,
    "smolvlm": _idefics,
    "idefics3": _idefics,
    "idefics2": _idefics,
}
