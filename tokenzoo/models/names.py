"""What a model's name means, and what its config says, before torch is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenzoo import errors
from tokenzoo.errors import UserError
from tokenzoo.paths import is_folder

CHECKPOINTS = Path(__file__).parents[1] / "bench" / "checkpoints"
#: What weights may be loaded as; "auto": as the checkpoint has them.
DTYPES = ("auto", "float32", "float16", "bfloat16")
#: Seconds in which the Hub must answer.
PATIENCE = 5
#: The types of models without a token for videos whose processor writes each frame as a picture.
FRAMES_AS_PICTURES = ("internvl", "smolvlm")
EMBEDDED = ("embedded:llava", "embedded:onevision")


def locate(model: str) -> str:
    """The folder that an embedded model or a directory is in, a Hub id as it is; raises UserError for anything else."""
    if model.startswith("embedded"):
        if model not in EMBEDDED:
            raise errors.unknown("embedded model", model, EMBEDDED, "tokenzoo compare --help")
        return str(CHECKPOINTS / model.partition(":")[2])
    try:
        path = Path(model).expanduser()
    except RuntimeError:
        raise UserError(f"No model directory '{model}': there is no such user.") from None
    if is_folder(path):
        from tokenzoo.models.folder import check_folder

        check_folder(path)
        return str(path)
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        choices = f"a directory, a Hub id such as org/name, or one of {', '.join(EMBEDDED)}"
        raise UserError(f"No model directory '{model}'. Pass {choices}.")
    return model


def config_of(model: str) -> dict[str, Any] | None:
    """A model's config.json; None for a Hub id that was not downloaded yet. Raises UserError as `locate` does."""
    from tokenzoo.models.folder import read_json

    source = locate(model)
    path = Path(source) / "config.json"
    if not is_folder(source):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            cached = try_to_load_from_cache(source, "config.json")
        except HFValidationError as error:
            raise UserError(f"'{model}' is no Hub id: {' '.join(str(error).split()).rstrip('.')}.") from None
        if not isinstance(cached, str):
            return None
        path = Path(cached)
    return read_json(path)


def stay_offline_without_hub(source: str) -> None:
    """Try once to reach the Hub for an id; where it cannot be, look at downloaded files alone: each would be retried for long."""
    import urllib.error
    import urllib.request

    from huggingface_hub import constants, is_offline_mode

    if is_folder(source) or is_offline_mode():
        return
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=PATIENCE).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except (OSError, ValueError):
        constants.HF_HUB_OFFLINE = True


def shows_videos(config: dict[str, Any]) -> bool:
    """Whether a model takes videos, by its config: it has a token for them, or takes their frames as pictures."""
    token = config.get("video_token_id", config.get("video_token_index"))
    return token is not None or config.get("model_type") in FRAMES_AS_PICTURES


def knows(model: str) -> str:
    """What an embedded model can be asked about, as a sentence; "" for any other model."""
    if model not in EMBEDDED:
        return ""
    return f"{model} knows only drawn scenes of coloured shapes and digits: what it says of other pictures means nothing."
