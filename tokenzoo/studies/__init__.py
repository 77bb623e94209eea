"""The findings of AIM's paper, measured here: `tokenzoo study NAME`."""

from __future__ import annotations

#: name -> what it asks.
STUDIES = {
    "tradeoff": "retention against accuracy and FLOPs, with and without pruning inside the LLM",
    "overhead": "what the methods themselves cost: FLOPs and milliseconds",
    "layers": "pruning early or late: the grid of l1 and l2",
    "text-tokens": "hiding text tokens from layer k on, against hiding visual ones",
    "agreement": "the order of methods here, against published tables' (Kendall's tau-b)",
}
