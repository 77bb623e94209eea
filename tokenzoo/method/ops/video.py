"""Where a video changes: similarity of consecutive frames, runs of similar frames, windows in which places stand still."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from tokenzoo.lazy import torch

if TYPE_CHECKING:
    from torch import Tensor

#: Frames [start, stop) that belong together.
Run = tuple[int, int]


def frame_similarity(frames: Tensor) -> Tensor:
    """Cosine of each frame with the one before it, place by place: frames [T, ..., d] -> [T - 1, ...], float32."""
    frames = frames.float()
    return torch.nn.functional.cosine_similarity(frames[:-1], frames[1:], dim=-1)


def frame_segments(similarity: Tensor, threshold: float, least: int) -> list[Run]:
    """Cut a video between frames whose similarity [T - 1] is below `threshold`, and at least into `least` segments.

    Further cuts are made where frames are least similar, at the first of equals. No more segments than frames.
    """
    values = similarity.tolist()
    ranked = sorted(range(len(values)), key=values.__getitem__)
    count = max(sum(value < threshold for value in values), min(least - 1, len(values)))
    borders = [0, *sorted(cut + 1 for cut in ranked[:count]), len(values) + 1]
    return list(pairwise(borders))


def static_windows(unchanged: Tensor, longest: int = 1024) -> list[Run]:
    """Divide a video into windows such that most tokens are static in theirs (HoliTom, arXiv 2505.21334).

    `unchanged` [T - 1, P]: whether place l of frame t is as in frame t + 1. A window of w frames gains (w - 1) times the
    places that never change in it; the windows, of at most `longest` frames, have the largest sum of gains. Of equally
    good divisions the one whose last window is shorter.
    """
    steps = len(unchanged)
    since = torch.zeros(unchanged.shape[1:], dtype=torch.long, device=unchanged.device)  # steps for which a place stood still
    runs = []
    for step in unchanged:
        since = torch.where(step, since + 1, 0)
        runs.append(since)
    widths = torch.arange(1, min(steps + 1, longest), device=unchanged.device)
    still = torch.stack([(run >= widths[:, None]).sum(1) for run in runs]).tolist() if runs else []
    best, width = [0, 0], [0, 1]  # of the first n frames: the largest gain, and the width of the last window
    for end in range(1, steps + 1):
        gains = [(best[end], 1)]
        gains += [(best[end - w] + w * still[end - 1][w - 1], w + 1) for w in range(1, min(end + 1, longest))]
        gain, shortest = max(gains, key=lambda found: (found[0], -found[1]))
        best.append(gain)
        width.append(shortest)
    windows, end = [], steps + 1
    while end > 0:
        windows.append((end - width[end], end))
        end -= width[end]
    return windows[::-1]
