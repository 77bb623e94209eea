"""Reading a user's pictures and videos, without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from tokenzoo.errors import UserError
from tokenzoo.paths import is_file, is_folder

#: Where a frame of a video keeps the second at which it is shown, among what is known of the picture.
SECONDS = "tokenzoo_seconds"
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_image(path: str | Path) -> Image.Image:
    """A picture file as RGB; raises `UserError` if it is missing or no picture."""
    if not is_file(path):
        raise UserError(f"No image file '{path}'.")
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
        raise UserError(f"Cannot read image '{path}': {first_line(error)}.") from error


def read_video(path: str | Path, frames: int = 8) -> tuple[Image.Image, ...]:
    """Frames spread evenly over a video file, or over a folder of pictures in the order of their names.

    :param frames: how many; a shorter video gives all of its own
    :raises UserError: if it is missing, unreadable or has no frame
    """
    path = Path(path)
    if is_folder(path):
        pictures = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in PICTURE_SUFFIXES)
        if not pictures:
            raise UserError(f"No pictures in the folder '{path}' (looked for {', '.join(PICTURE_SUFFIXES)}).")
        return tuple(read_image(pictures[index]) for index in _spread(len(pictures), frames))
    if not is_file(path):
        raise UserError(f"No video file '{path}'.")
    return _decode(path, frames)


class Pictures(Sequence[Image.Image]):
    """Picture files that are opened each time they are looked at: a thousand photographs do not fit into memory.

    :param where: begins the message where a file turns out to be no picture
    :raises UserError: if one of the files is missing
    """

    def __init__(self, paths: Sequence[Path], where: str) -> None:
        self.paths, self.where = tuple(paths), where
        for path in paths:
            if not is_file(path):
                raise UserError(f"{where}: No image file '{path}'.")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: Any) -> Any:
        with _said_of(self.where):
            return read_image(self.paths[index])


class Frames(Sequence[Image.Image]):
    """The frames of a video that is decoded each time it is looked at; parameters and errors as `read_video` and `Pictures`."""

    def __init__(self, path: Path, frames: int, where: str) -> None:
        self.path, self.frames, self.where = path, frames, where
        self._count: int | None = None
        if not is_file(path) and not is_folder(path):
            raise UserError(f"{where}: No video file '{path}'.")

    def _read(self) -> tuple[Image.Image, ...]:
        with _said_of(self.where):
            read = read_video(self.path, self.frames)
        self._count = len(read)
        return read

    def __len__(self) -> int:
        return len(self._read()) if self._count is None else self._count

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self._read())

    def __getitem__(self, index: Any) -> Any:
        return self._read()[index]


@contextmanager
def _said_of(where: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _decode(path: Path, frames: int) -> tuple[Image.Image, ...]:
    """Two passes: the count in a file's header is often missing or wrong, and keeping every frame needs too much memory."""
    import av

    try:
        with av.open(str(path)) as container:
            total = sum(1 for _ in container.decode(video=0))
        if not total:
            raise UserError(f"No frames in video '{path}'.")
        wanted = set(_spread(total, frames))
        with av.open(str(path)) as container:
            decoded = enumerate(container.decode(video=0))
            return tuple(_picture(frame) for index, frame in decoded if index in wanted)
    except (av.FFmpegError, IndexError, ValueError, OSError) as error:
        raise UserError(f"Cannot read video '{path}': {first_line(error)}.") from error


def _picture(frame: Any) -> Image.Image:
    """A decoded frame, which knows when it is shown."""
    picture = frame.to_image().convert("RGB")
    if frame.time is not None:
        picture.info[SECONDS] = float(frame.time)
    return picture


def shown_at(video: Sequence[Image.Image]) -> list[float] | None:
    """The second at which each frame is shown; None where the pictures do not tell, or do not follow each other."""
    seconds = [picture.info.get(SECONDS) for picture in video]
    known = [second for second in seconds if isinstance(second, float)]
    return known if len(known) == len(seconds) > 1 and all(map(float.__lt__, known, known[1:])) else None


def _spread(total: int, wanted: int) -> list[int]:
    """``wanted`` distinct indices from first to last, fewer if there are not so many."""
    return sorted({int(index) for index in np.linspace(0, total - 1, min(wanted, total)).round()})


def first_line(error: BaseException) -> str:
    """What an error says, on one line without its full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
