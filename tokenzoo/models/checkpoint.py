"""Loading a vision-language model: the embedded ones by name, a directory, or a Hub id, all through ``from_pretrained``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from tokenzoo import errors
from tokenzoo.errors import UserError
from tokenzoo.models.inputs import with_processor, without_processor
from tokenzoo.models.media import read_image, read_video
from tokenzoo.models.question import Question

CHECKPOINTS = Path(__file__).parents[1] / "bench" / "checkpoints"
EMBEDDED = ("embedded:llava", "embedded:onevision")

__all__ = ["EMBEDDED", "Checkpoint", "load", "read_image", "read_video"]


@dataclass
class Checkpoint:
    """A model and what turns questions into its inputs.

    ``processor`` is None where it cannot be built (LLaVA-OneVision and Qwen2-VL without torchvision); ``image_processor`` and
    ``tokenizer`` then do its work.
    """

    name: str
    model: Any
    tokenizer: Any
    processor: Any = None
    image_processor: Any = None

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.model.config.get_text_config().num_hidden_layers

    def inputs(self, questions: Sequence[Question]) -> dict[str, torch.Tensor]:
        """Left padded inputs for a batch of questions, on the model's device and in its dtype."""
        if self.processor is not None:
            made = with_processor(self.processor, questions)
        else:
            made = without_processor(self.model, self.tokenizer, self.image_processor, questions)
        made.pop("token_type_ids", None)
        placed = {name: value.to(self.model.device) for name, value in made.items()}
        return {name: value.to(self.model.dtype) if value.is_floating_point() else value for name, value in placed.items()}

    def decode(self, ids: torch.Tensor) -> list[str]:
        """Token ids [batch, tokens] as text, special tokens left out."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def load(
    model: str,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
) -> Checkpoint:
    """Load a model and its processor.

    :param model: "embedded:llava", "embedded:onevision", a directory with a config.json, or a Hub id
    :param dtype: as ``from_pretrained`` takes it; float32 on the CPU and the checkpoint's own elsewhere if not given
    :param device: "cuda" where there is one, else "cpu", if not given
    :raises UserError: if the model cannot be found or reached, or is no image-text-to-text model
    """
    source = _locate(model)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "auto")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    with _explained(model, source):
        config = AutoConfig.from_pretrained(source, **options)
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, attn_implementation=attn_implementation, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    loaded = loaded.to(device).eval()
    if _complete_processor(config.model_type):
        return Checkpoint(model, loaded, tokenizer, processor=AutoProcessor.from_pretrained(source, **options))
    image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **options)
    return Checkpoint(model, loaded, tokenizer, image_processor=image_processor)


def takes_videos(model: str) -> bool:
    """Whether a model has a placeholder for videos, by its config alone; raises UserError as `load` does."""
    source = _locate(model)
    with _explained(model, source):
        return getattr(AutoConfig.from_pretrained(source), "video_token_id", None) is not None


@contextmanager
def _explained(model: str, source: str) -> Iterator[None]:
    """Say in one line why a model cannot be loaded."""
    try:
        yield
    except OSError as error:
        if Path(source).is_dir():
            raise UserError(f"Cannot load '{model}': {_first_line(error)}") from error
        raise UserError(
            f"Cannot reach the Hub for '{model}': {_first_line(error)} Pass a local directory or one of {', '.join(EMBEDDED)}."
        ) from error
    except ValueError as error:
        raise UserError(f"Cannot load '{model}': {_first_line(error)}") from error


def _complete_processor(model_type: str) -> bool:
    """Whether AutoProcessor can build the whole processor here."""
    from transformers.utils import is_torchvision_available

    return is_torchvision_available() or model_type == "llava"


def _locate(model: str) -> str:
    if model.startswith("embedded"):
        if model not in EMBEDDED:
            raise errors.unknown("embedded model", model, EMBEDDED, "tokenzoo list")
        return str(CHECKPOINTS / model.partition(":")[2])
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"No config.json in '{model}': a model directory is one that save_pretrained wrote.")
        return str(path)
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        choices = f"a directory, a Hub id such as org/name, or one of {', '.join(EMBEDDED)}"
        raise UserError(f"No model directory '{model}'. Pass {choices}.")
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
