"""Digests of large files, remembered: a checkpoint of 15 GB is read in full once, not at every comparison."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import platformdirs

#: What a model is loaded from; notes, pictures and git's own files are not.
LOADED = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")


def folder_digest(folder: Path) -> str:
    """A digest of every file in a checkpoint's folder that loading may read: weights in full, configs, tokenizer, template."""
    return files_digest(path for path in sorted(folder.iterdir()) if path.suffix in LOADED and path.is_file())


def files_digest(paths: Iterable[Path]) -> str:
    """A digest of files' names and whole contents.

    Each file's digest is kept in the user's cache directory beside its path, size and times; while those stay the same the
    file is not read again.
    """
    remembered = _remembered()
    known = dict(remembered)
    digest = hashlib.sha256()
    for path in paths:
        status = path.stat()
        key = f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        if key not in known:
            known[key] = _digest(path)
        digest.update(f"{path.name}:{known[key]}\n".encode())
    if known != remembered:
        _remember(known)
    return digest.hexdigest()[:16]


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _cache() -> Path:
    return Path(platformdirs.user_cache_dir("tokenzoo")) / "digests.json"


def _remembered() -> dict[str, str]:
    try:
        known = json.loads(_cache().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(known: dict[str, str]) -> None:
    """Written whole or not at all; where the directory cannot be written, the next run reads the files again."""
    with suppress(OSError):
        _cache().parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=_cache().parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(known, file)
        os.replace(name, _cache())
