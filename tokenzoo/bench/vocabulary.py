"""The embedded models' vocabulary: whole words, one token each. No torch and no tokenizers here."""

from __future__ import annotations

from tokenzoo.bench.scenes import CELL_NAMES, COLORS, DIGITS, SHAPES

PAD, BOS, EOS, UNKNOWN, IMAGE, VIDEO = SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>")
DIRECTIONS = ("left-of", "right-of", "above", "below")
PHASE_NAMES = ("beginning", "middle", "end")

WORDS = (
    *SPECIAL,
    *("user", "assistant", ":", "?", ".", ",", "\n"),
    *SHAPES,
    *COLORS,
    *DIGITS,
    *CELL_NAMES,
    *DIRECTIONS,
    *PHASE_NAMES,
    "first",
    *("yes", "no", "what", "which", "where", "when", "how", "many", "is", "are", "does", "did", "do", "the", "a", "an"),
    *("there", "it", "in", "at", "on", "of", "to", "or", "and", "by", "with", "from", "into", "color", "shape"),
    *("digit", "object", "objects", "things", "thing", "picture", "image", "video", "frame", "scene", "left", "right"),
    *("directly", "between", "next", "near", "appear", "appears", "disappear", "disappears", "last", "before", "after"),
    *("change", "changes", "changed", "become", "becomes", "turn", "turns", "move", "moves", "moved", "start"),
    *("nothing", "position", "number", "written", "same", "different", "only", "most", "other", "than", "not"),
)
"""Every word, its index being its token id."""


def word_ids() -> dict[str, int]:
    """Token id of each word."""
    return {word: index for index, word in enumerate(WORDS)}
