"""Model inputs for a batch of questions: through the model's own processor, or put together without it.

`AutoProcessor` cannot build the processors of LLaVA-OneVision and Qwen2-VL where torchvision is missing, because their video
halves need it. The tokenizer and the PIL image processor do not, and give the same tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from tokenzoo.errors import UserError
from tokenzoo.models.media import first_line, shown_at
from tokenzoo.models.question import Question

#: The types of models whose inputs can be put together without their processor.
WITHOUT_PROCESSOR = ("llava_onevision", "qwen2_vl", "qwen2_5_vl")
#: Frames a second of a video whose frames do not tell when they are shown, where a processor has no rate of its own.
FRAME_RATE = 2.0
DEFAULT_TEMPLATE = "USER: {media}{prompt} ASSISTANT:"


def messages(question: Question) -> list[dict[str, Any]]:
    """A question as one chat turn: pictures, then the video, then the text."""
    content: list[dict[str, Any]] = [{"type": "image"}] * len(question.images)
    content += [{"type": "video"}] if question.video else []
    return [{"role": "user", "content": [*content, {"type": "text", "text": question.prompt}]}]


def prompt_text(question: Question, templated: Any, image_token: str, video_token: str) -> str:
    """The question in the model's chat format, with one placeholder per picture and video.

    Raises UserError where the chat template breaks or leaves a picture out: the model would answer unseen.

    :param templated: the processor or tokenizer; a plain LLaVA-1.5 format is used if it has no chat template
    """
    if getattr(templated, "chat_template", None):
        try:
            text = str(templated.apply_chat_template(messages(question), add_generation_prompt=True, tokenize=False))
        except Exception as error:  # a template is a program of the checkpoint's own and may raise anything
            raise UserError(f"The chat template of this model is broken: {first_line(error)}.") from error
        for token, count in ((image_token, len(question.images)), (video_token, 1 if question.video else 0)):
            if text.count(token) != count:
                raise UserError(
                    f"The chat template of this model writes {text.count(token)} '{token}' for {count} pictures or videos."
                )
        return text
    media = f"{image_token}\n" * len(question.images) + (f"{video_token}\n" if question.video else "")
    return DEFAULT_TEMPLATE.format(media=media, prompt=question.prompt)


def with_processor(
    processor: Any, questions: Sequence[Question], image_options: dict[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    """Inputs from a complete processor, left padded; `image_options` are for its image processor."""
    processor.tokenizer.padding_side = "left"
    image_token = getattr(processor, "image_token", "<image>")
    video_token = getattr(processor, "video_token", "<video>")
    texts = [prompt_text(question, processor, image_token, video_token) for question in questions]
    media: dict[str, Any] = {}
    images = [list(question.images) for question in questions]
    if any(images):
        media["images"] = images if all(images) else [image for row in images for image in row]
    videos = [np.stack([np.asarray(frame) for frame in question.video]) for question in questions if question.video]
    if videos:
        rate = getattr(processor.video_processor, "fps", None) or FRAME_RATE
        shown = [metadata(question.video, rate) for question in questions if question.video]
        media |= {"videos": videos, "video_metadata": shown, "do_sample_frames": False}  # the frames are chosen already
    if image_options:
        media["images_kwargs"] = image_options
    try:
        return dict(processor(text=texts, padding=True, return_tensors="pt", **_special(processor.tokenizer, texts), **media))
    except ValueError as error:
        what = "The processor of this model does not take these questions in one batch"
        raise UserError(f"{what}: {first_line(error)}.") from error


def _special(tokenizer: Any, texts: Sequence[str]) -> dict[str, bool]:
    """A template that writes the token at a prompt's beginning leaves none to add."""
    begins = tokenizer.bos_token and all(text.startswith(tokenizer.bos_token) for text in texts)
    return {"add_special_tokens": False} if begins else {}


def metadata(video: Sequence[Image.Image], rate: float) -> dict[str, Any]:
    """When each frame is shown, as a processor is told it: as frames of a video of so many frames a second.

    Frames that do not tell are taken as `rate` frames a second, as if the model's own processor had chosen them.
    """
    seconds = shown_at(video)
    if seconds is None:
        count = len(video)
        return {"total_num_frames": count, "fps": rate, "frames_indices": list(range(count)), "duration": count / rate}
    last, apart = seconds[-1] - seconds[0], len(seconds) - 1
    return {
        "total_num_frames": round(1000 * last * len(seconds) / apart),
        "fps": 1000.0,
        "frames_indices": [round(1000 * second) for second in seconds],
        "duration": seconds[-1],
    }


def without_processor(model: Any, tokenizer: Any, image_processor: Any, questions: Sequence[Question]) -> dict:
    """Inputs for LLaVA-OneVision, Qwen2-VL and Qwen2.5-VL from a tokenizer and a PIL image processor, left padded."""
    config = model.config
    image_token = tokenizer.convert_ids_to_tokens(config.image_token_id)
    video_token = tokenizer.convert_ids_to_tokens(config.video_token_id)
    images = [image for question in questions for image in question.images]
    videos = [question.video for question in questions if question.video]
    if config.model_type == "llava_onevision":
        media, image_lengths, video_lengths = _onevision(model, image_processor, images, videos, questions)
    else:
        media, image_lengths, video_lengths = _qwen(image_processor, images, videos)
        if videos and config.model_type == "qwen2_5_vl":
            media["second_per_grid_ts"] = torch.tensor([_seconds_per_row(image_processor, video) for video in videos])
    remaining_images, remaining_videos = iter(image_lengths), iter(video_lengths)
    texts = []
    for question in questions:
        text = prompt_text(question, tokenizer, image_token, video_token)
        text = _expand(text, image_token, remaining_images)
        texts.append(_expand(text, video_token, remaining_videos))
    tokenizer.padding_side = "left"
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False, **_special(tokenizer, texts)))
    inputs |= media
    if config.model_type != "llava_onevision":
        ids = inputs["input_ids"]
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    return inputs


def _expand(text: str, token: str, lengths: Any) -> str:
    """Repeat each of a text's placeholders as often as it has visual tokens."""
    pieces = text.split(token)
    return pieces[0] + "".join(token * next(lengths) + piece for piece in pieces[1:])


def _onevision(
    model: Any, image_processor: Any, images: list, videos: list, questions: Sequence[Question]
) -> tuple[dict, list[int], list[int]]:
    """pixel_values [images, tiles, 3, side, side]; pixel_values_videos [videos, frames, 3, side, side]."""
    media: dict[str, Any] = {}
    image_lengths: list[int] = []
    if images:
        nested = [list(question.images) for question in questions if question.images]
        media = dict(image_processor(images=nested, return_tensors="pt"))
        image_lengths = _onevision_image_lengths(model, media)
    video_lengths = []
    if videos:
        counts = {len(video) for video in videos}
        if len(counts) > 1:
            raise UserError(f"Videos of {sorted(counts)} frames in one batch: give all the same number, or batch size 1.")
        size = (image_processor.size["width"], image_processor.size["height"])
        frames = [frame.convert("RGB").resize(size, Image.Resampling(image_processor.resample)) for v in videos for frame in v]
        pixels = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).permute(0, 3, 1, 2) * (1 / 255)
        mean, std = (torch.tensor(value)[:, None, None] for value in (image_processor.image_mean, image_processor.image_std))
        media["pixel_values_videos"] = ((pixels - mean) / std).unflatten(0, (len(videos), -1))
        vision = model.config.vision_config
        pooled = -(-(vision.image_size // vision.patch_size) // 2)
        video_lengths = [len(video) * pooled**2 + 1 for video in videos]
    return media, image_lengths, video_lengths


def _onevision_image_lengths(model: Any, media: dict) -> list[int]:
    """Visual tokens of each picture: the model packs features of one number each, so no formula is repeated here."""
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    single = [count == 1 for count in media["batch_num_images"].tolist() for _ in range(count)]
    tiles = [len(picture) if alone else 1 for picture, alone in zip(media["pixel_values"], single, strict=True)]
    blanks = [torch.zeros(count, side * side, 1) for count in tiles]
    _, lengths = model.model.pack_image_features(
        blanks,
        media["image_sizes"],
        image_newline=torch.zeros(1),
        vision_aspect_ratio=model.config.vision_aspect_ratio,
    )
    return [int(length) for length in lengths]


def _qwen(image_processor: Any, images: list, videos: list) -> tuple[dict, list[int], list[int]]:
    """Rows of flattened patches and their grids (time, height, width); two frames share a row of a video."""
    media: dict[str, Any] = {}
    merged = image_processor.merge_size**2
    if images:
        media = dict(image_processor(images=images, return_tensors="pt"))
    rows, grids = [], []
    for video in videos:
        frames = list(video)
        frames += [frames[-1]] * (-len(frames) % image_processor.temporal_patch_size)
        still = image_processor(images=frames, return_tensors="pt")
        grid = still["image_grid_thw"]
        # a still is written as if shown temporal_patch_size times: take each frame once, and stack them in time
        depth, side = image_processor.temporal_patch_size, image_processor.patch_size
        patches = still["pixel_values"].reshape(len(frames), -1, 3, depth, side, side)[:, :, :, 0]
        patches = patches.unflatten(0, (-1, depth)).permute(0, 2, 3, 1, 4, 5)
        rows.append(patches.flatten(0, 1).flatten(1))
        grids.append(torch.tensor([len(frames) // depth, *grid[0, 1:].tolist()]))
    if videos:
        media |= {"pixel_values_videos": torch.cat(rows), "video_grid_thw": torch.stack(grids)}
    lengths = [[int(grid.prod()) // merged for grid in media.get(name, ())] for name in ("image_grid_thw", "video_grid_thw")]
    return media, lengths[0], lengths[1]


def _seconds_per_row(image_processor: Any, video: Any) -> float:
    """How long the frames are shown that share a row of patches."""
    shown = metadata(video, FRAME_RATE)
    return image_processor.temporal_patch_size * shown["total_num_frames"] / (len(shown["frames_indices"]) * shown["fps"])
