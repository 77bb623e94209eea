"""Loading a vision-language model: the embedded ones by name, a directory, or a Hub id, all through ``from_pretrained``."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.utils import cached_file, is_accelerate_available, logging

from tokenzoo import errors
from tokenzoo.errors import UserError
from tokenzoo.models.inputs import WITHOUT_PROCESSOR, with_processor, without_processor
from tokenzoo.models.media import first_line, read_image, read_video
from tokenzoo.models.names import (
    CHECKPOINTS,
    DTYPES,
    EMBEDDED,
    config_of,
    knows,
    locate,
    shows_videos,
    stay_offline_without_hub,
)
from tokenzoo.models.question import Question
from tokenzoo.models.resolution import smaller, smaller_square

__all__ = ["CHECKPOINTS", "DTYPES", "EMBEDDED", "Checkpoint", "knows", "load", "read_image", "read_video"]

#: The device that stands for all of them.
SPREAD = "auto"


@dataclass
class Checkpoint:
    """A model and what turns questions into its inputs.

    ``processor`` is None where it cannot be built (LLaVA-OneVision, Qwen2-VL and Qwen2.5-VL without torchvision);
    ``image_processor`` and ``tokenizer`` then do its work. ``folder`` holds the files it was loaded from, None where it was
    made in memory. ``picture_scale`` is what each side of a picture or frame is multiplied by before the processor sees it.
    ``elsewhere`` is what another process told of the model where it runs there: ``model`` has a config then, no weights.
    """

    name: str
    model: Any
    tokenizer: Any
    processor: Any = None
    image_processor: Any = None
    folder: Path | None = None
    picture_scale: float = 1.0
    elsewhere: dict[str, Any] | None = None

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self.model.config.get_text_config().num_hidden_layers

    def inputs(self, questions: Sequence[Question]) -> dict[str, torch.Tensor]:
        """Left padded inputs for a batch of questions, on the model's device and in its dtype.

        Raises UserError for a question that this model cannot be asked.
        """
        for question in questions:
            self.check(question)
        options: dict[str, Any] = {}
        if self.picture_scale != 1 and self.model.config.model_type == "llava":
            options = smaller_square(self.model.config, self.processor.image_processor, self.picture_scale)
        elif self.picture_scale != 1:
            questions = smaller(questions, self.picture_scale)
        if self.processor is not None:
            made = with_processor(self.processor, questions, options)
        else:
            made = without_processor(self.model, self.tokenizer, self.image_processor, questions)
        if "token_type_ids" not in inspect.signature(type(self.model).forward).parameters:  # Gemma's model needs them
            made.pop("token_type_ids", None)
        placed = {name: value.to(self.model.device) for name, value in made.items()}
        return {name: value.to(self.model.dtype) if value.is_floating_point() else value for name, value in placed.items()}

    def scaled(self, scale: float) -> Checkpoint:
        """The same model, asked about pictures and frames whose sides are `scale` times as long."""
        return self if scale == self.picture_scale else replace(self, picture_scale=scale)

    def words(self, questions: Sequence[Question]) -> dict[str, Any]:
        """What `tokenzoo.apply` is told beside the inputs: the questions' words, and whether the pictures are smaller ones."""
        prompts = [question.prompt for question in questions]
        return {"questions": prompts, "tokenizer": self.tokenizer, "scaled": self.picture_scale != 1}

    def check(self, question: Question) -> None:
        """Raise UserError where the model takes no videos, or the question holds a word that stands for a picture."""
        if question.video and not self.takes_videos:
            raise UserError(
                f"Question '{question.id}' is about a video, which '{self.name}' does not take. Choose another --model."
            )
        if question.video and question.images and self.model.config.model_type == "smolvlm":
            raise UserError(f"Question '{question.id}' shows pictures and a video: '{self.name}' takes one or the other.")
        for word in self._placeholders():
            if word in question.prompt:
                raise UserError(f"Question '{question.id}' contains '{word}', which stands for a picture here. Reword it.")

    @cached_property
    def takes_videos(self) -> bool:
        """Whether the model can be shown videos, by its config."""
        return shows_videos(self.model.config.to_dict())

    def decode(self, ids: torch.Tensor) -> list[str]:
        """Token ids [batch, tokens] as text, special tokens left out."""
        return [text.strip() for text in self.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _placeholders(self) -> set[str]:
        """The words that stand for pictures: those of the config, and those that the processor replaces."""
        kinds = ("image", "video")
        ids = [getattr(self.model.config, f"{kind}_token_id", None) for kind in kinds]
        words = [self.tokenizer.convert_ids_to_tokens(token) for token in ids if token is not None]
        return {word for word in (*words, *(getattr(self.processor, f"{kind}_token", None) for kind in kinds)) if word}


def load(
    model: str,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | None = None,
    device: str | None = None,
    trust_remote_code: bool = False,
    allow_missing: bool = False,
) -> Checkpoint:
    """Load a model and its processor.

    :param model: "embedded:llava", "embedded:onevision", a directory with a config.json, or a Hub id
    :param dtype: one of `DTYPES`; float32 on the CPU and the checkpoint's own elsewhere if not given
    :param device: "cuda" where there is one, else "cpu", if not given; "auto" spreads it over all there are, by accelerate
    :param allow_missing: take a checkpoint without some of the weights: they are random then
    :raises UserError: if the model cannot be found or reached, is no image-text-to-text model, or its files are broken
    """
    if isinstance(dtype, str) and dtype not in DTYPES:
        raise errors.unknown("dtype", dtype, DTYPES, "tokenzoo compare --help")
    source = locate(model)
    stay_offline_without_hub(source)
    accelerated = torch.cuda.is_available()
    device = check_device(device or ("cuda" if accelerated else "cpu"))
    dtype = dtype or ("float32" if device == "cpu" or (device == SPREAD and not accelerated) else "auto")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    with _explained(model, source):
        config = AutoConfig.from_pretrained(source, **options)
        found = _with_processor(Checkpoint(model, SimpleNamespace(config=config), None), source, options)  # before the weights
        stays = device == SPREAD or getattr(config, "quantization_config", None) is not None  # where from_pretrained puts it
        placed = {"device_map": device} if stays else {}
        with_report: Any = AutoModelForImageTextToText.from_pretrained
        loaded, about = with_report(
            source, dtype=dtype, attn_implementation=attn_implementation, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **placed, **options,
        )  # fmt: skip
        _check_complete(model, about, allow_missing)
        found.model = (loaded if stays else loaded.to(device)).eval()
        return found


def outline(model: str, elsewhere: dict[str, Any]) -> Checkpoint:
    """A model that runs in another process, which told `elsewhere` of it: config, tokenizer and processor, no weights.

    Raises UserError as `load` does.
    """
    source = locate(model)
    with _explained(model, source):
        config = AutoConfig.from_pretrained(source)
        return _with_processor(Checkpoint(model, SimpleNamespace(config=config), None, elsewhere=elsewhere), source, {})


def _with_processor(found: Checkpoint, source: str, options: dict[str, Any]) -> Checkpoint:
    """The checkpoint with its folder, its tokenizer, and its processor or what does its work."""
    found.tokenizer = AutoTokenizer.from_pretrained(source, **options)
    found.folder = Path(str(cached_file(source, "config.json"))).parent
    try:
        found.processor = AutoProcessor.from_pretrained(source, **options)
    except ImportError as error:  # halves for videos need torchvision, SmolVLM's needs num2words
        kind = found.model.config.model_type
        if kind not in WITHOUT_PROCESSOR:
            raise UserError(
                f"The processor of a '{kind}' model needs a package that is missing. Run 'pip install torchvision"
                f"{' num2words' * (kind == 'smolvlm')}'."
            ) from error
        found.image_processor = AutoImageProcessor.from_pretrained(source, backend="pil", **options)
    return found


def check_device(device: str) -> str:
    """Return the name of a device that torch has, or `SPREAD`; raises UserError for any other."""
    if device == SPREAD:
        if not is_accelerate_available():
            raise UserError("Device 'auto' spreads a model by accelerate, which is missing. Run 'pip install accelerate'.")
        return device
    try:
        kind = torch.device(device)
        torch.empty(0, device=kind)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError):
        raise UserError(f"There is no device '{device}' here. Choose cpu{', cuda' * torch.cuda.is_available()}.") from None
    if kind.type == "meta":
        raise UserError("Device 'meta' computes nothing. Choose cpu or cuda.")
    return device


def takes_videos(model: str) -> bool:
    """Whether a model has a placeholder for videos, by its config alone; raises UserError as `load` does."""
    config = config_of(model)
    if config is None:
        stay_offline_without_hub(model)
        with _explained(model, model):
            config = AutoConfig.from_pretrained(model).to_dict()
    return shows_videos(config)


def _check_complete(model: str, about: Any, allow_missing: bool) -> None:
    for what, names in (("lacks", about["missing_keys"]), ("has unexpected", about["unexpected_keys"])):
        if names and not allow_missing:
            first = sorted(map(str, names))[0]
            raise UserError(
                f"The checkpoint '{model}' {what} weights: '{first}'{f' and {len(names) - 1} more' if len(names) > 1 else ''}. "
                f"Missing ones would be random. Pass --allow-missing to load it all the same."
            )
    if about["mismatched_keys"]:
        raise UserError(
            f"Weights of '{model}' have other shapes than its config.json says: {sorted(about['mismatched_keys'])[0]}."
        )


@contextmanager
def _explained(model: str, source: str) -> Iterator[None]:
    """Say in one line why a model cannot be loaded; only calls of transformers stand in such a block."""
    bars = logging.is_progress_bar_enabled()
    level = logging.get_verbosity()
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if Path(source).is_dir():
            raise UserError(f"Cannot load '{model}': {first_line(error)}.") from error
        raise UserError(
            f"Cannot reach the Hub for '{model}': {first_line(error)}. Pass a local directory or one of {', '.join(EMBEDDED)}."
        ) from error
    except Exception as error:
        raise UserError(f"Cannot load '{model}': {first_line(error)}.") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
