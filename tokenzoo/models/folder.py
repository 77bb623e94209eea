"""A checkpoint's folder, looked at before it is loaded: each file that is broken is named, with what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenzoo.errors import UserError
from tokenzoo.models.media import first_line

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"


def check_folder(folder: Path) -> None:
    """Raise UserError for the first file that cannot be what `save_pretrained` wrote."""
    if not (folder / "config.json").is_file():
        raise UserError(f"No config.json in '{folder}': a model directory is one that save_pretrained wrote.")
    for path in sorted(folder.glob("*.json")):
        read_json(path)
    config = read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise UserError(f"'{folder / 'config.json'}' names no model_type, so nothing can load it.")
    for path in _weights(folder):
        _check_weights(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; raises UserError naming the file where it holds anything else."""
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not JSON: {first_line(error)}.") from None
    if not isinstance(data, dict):
        raise UserError(f"'{path}' holds a {type(data).__name__} where a JSON object belongs.")
    return data


def _weights(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        files = read_json(folder / INDEX).get("weight_map")
        if not isinstance(files, dict) or not all(isinstance(name, str) for name in files.values()):
            raise UserError(f"'{folder / INDEX}' has no weight_map from names to files.")
        missing = sorted({name for name in files.values() if not (folder / name).is_file()})
        if missing:
            raise UserError(f"'{folder / missing[0]}' is missing: {INDEX} names it. Download the checkpoint again.")
        return [folder / name for name in sorted(set(files.values()))]
    others = [path.name for ending in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(ending)]
    if others:
        raise UserError(
            f"'{folder / others[0]}' may run code when it is read (a pickle), so it is not. Save the model as safetensors."
        )
    raise UserError(f"No {WEIGHTS} in '{folder}': the weights are missing.")


def _check_weights(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:  # for torch it would be imported
            file.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(f"'{path}' is no whole safetensors file: {first_line(error)}.") from None
