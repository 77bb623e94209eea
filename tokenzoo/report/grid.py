"""The one printer of tables on a terminal: columns that fit its width, and no digit lost where they do not.

Where a table is wider than the line, long text is folded first. Then the columns stand in several blocks one below the other,
each with the first column again. What fits in no way, and text too wide for columns, is printed as one record after another.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.text import Text

from tokenzoo.text import printable

#: What the first column, and other columns of text, are folded to before the columns part into blocks.
KEY, PROSE = 20, 16
#: Columns of a heading that is broken into lines.
HEADING = 8

Line = str | Text


@dataclass(frozen=True)
class Head:
    """A column: the lines of its heading, and whether it holds text (aligned left, may be folded) or numbers."""

    lines: tuple[Line, ...]
    text: bool = False

    @classmethod
    def over(cls, title: str, cells: Sequence[str]) -> Head:
        """A heading over numbers, broken into lines where a line would make the column wider than they do."""
        return cls(tuple(folded(title, max([HEADING, *map(cell_len, [*title.split(), *cells])]))))

    @property
    def width(self) -> int:
        return max((cell_len(str(line)) for line in self.lines), default=0)


def grid(heads: Sequence[Head], rows: Sequence[Sequence[Line]], width: int, gap: int = 2, indent: int = 0) -> Text:
    """The table as text whose lines are at most `width` columns wide. The first column says what a row is."""
    room = max(width - indent, 1)
    table = [[_shown(cell) for cell in row] for row in rows]
    natural = [max([head.width, *(cell_len(row[index].plain) for row in table)]) for index, head in enumerate(heads)]
    least = [
        max(head.width, min(wide, PROSE if index else KEY)) if head.text else wide
        for index, (head, wide) in enumerate(zip(heads, natural, strict=True))
    ]
    blocks = _blocks(heads, least, room, gap)
    if not blocks:
        return _indented(_records(heads, table, room), indent)
    lines: list[Text] = []
    for block in blocks:
        widths = _widths([least[index] for index in block], [natural[index] for index in block], room - gap * (len(block) - 1))
        lines += _block([heads[index] for index in block], [[row[index] for index in block] for row in table], widths, gap)
    return _indented(lines, indent)


def folded(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns, broken after a space or what parts a method's name or a path, else anywhere."""
    lines = [""]
    for piece in re.findall(r"[^\s,:+/=]*[,:+/=]*\s*", " ".join(text.split())):
        if cell_len(lines[-1] + piece.rstrip()) > width:
            lines.append("")
        *full, rest = chop_cells(piece, width) or [""]
        lines += [lines.pop() + "".join(full[:1]), *full[1:], rest] if full else [lines.pop() + rest]
    return [line.rstrip() for line in lines if line.strip()] or [""]


def _shown(cell: Line) -> Text:
    """The cell in characters that the terminal has."""
    return Text(printable(cell.plain), cell.style) if isinstance(cell, Text) else Text(printable(cell))


def _blocks(heads: Sequence[Head], least: Sequence[int], room: int, gap: int) -> list[list[int]]:
    """Which columns stand together: the first one always. Empty where no columns will do."""
    everything = list(range(len(heads)))
    if sum(least) + gap * (len(least) - 1) <= room:
        return [everything]
    if all(head.text for head in heads) or any(least[0] + gap + wide > room for wide in least[1:]):
        return []
    fewest = _parted(least, room, gap)
    for narrower in range(max(least[1:]) + gap + least[0], room):  # as many blocks, of equal width as far as that goes
        parted = _parted(least, narrower, gap)
        if len(parted) == len(fewest):
            return parted
    return fewest


def _parted(least: Sequence[int], room: int, gap: int) -> list[list[int]]:
    """As many columns in each block as fit."""
    blocks: list[list[int]] = []
    left = -1
    for index, wide in enumerate(least[1:], 1):
        if wide + gap > left:
            blocks.append([0])
            left = room - least[0]
        blocks[-1].append(index)
        left -= wide + gap
    return blocks


def _widths(least: Sequence[int], natural: Sequence[int], room: int) -> list[int]:
    """What is left of the line is given to the columns that could use it, one by one."""
    widths = list(least)
    while sum(widths) < room and widths != list(natural):
        for index, wide in enumerate(natural):
            widths[index] += int(widths[index] < wide and sum(widths) < room)
    return widths


def _block(heads: Sequence[Head], rows: Sequence[Sequence[Text]], widths: Sequence[int], gap: int) -> list[Text]:
    height = max(len(head.lines) for head in heads)
    titles: list[list[Line]] = [[*[""] * (height - len(head.lines)), *head.lines] for head in heads]
    lines: list[Text] = []
    if any(head.width for head in heads):
        lines = [_line(cells, heads, widths, gap, "bold") for cells in zip(*titles, strict=True)]
    for row in rows:
        parts: list[list[Line]] = [
            [Text(part, cell.style) for part in folded(cell.plain, wide)] if head.text else [cell]
            for cell, head, wide in zip(row, heads, widths, strict=True)
        ]
        height = max(map(len, parts))
        filled = [[*part, *[""] * (height - len(part))] for part in parts]
        lines += [_line(cells, heads, widths, gap) for cells in zip(*filled, strict=True)]
    return lines


def _line(cells: Sequence[Line], heads: Sequence[Head], widths: Sequence[int], gap: int, style: str = "") -> Text:
    line = Text()
    for index, (cell, head, wide) in enumerate(zip(cells, heads, widths, strict=True)):
        shown = _shown(cell)
        blank = " " * (wide - cell_len(shown.plain))
        line.append(" " * gap if index else "")
        line.append("" if head.text else blank)
        line.append(shown.plain, shown.style or style)
        line.append(blank if head.text else "")
    line.rstrip()
    return line


def _records(heads: Sequence[Head], rows: Sequence[Sequence[Text]], room: int) -> list[Text]:
    """Each row as its first cell, and below it a line or more for each other cell that says something."""
    lines = []
    for row in rows:
        lines += [Text(part, "bold") for part in folded(row[0].plain, room)]
        for head, cell in zip(heads[1:], row[1:], strict=True):
            if cell.plain:
                title = " ".join(str(line) for line in head.lines if str(line))
                said = folded(f"{title}: {cell.plain}" if title else cell.plain, max(room - 2, 1))
                lines += [Text(f"  {part}", cell.style) for part in said]
    return lines


def _indented(lines: Sequence[Text], indent: int) -> Text:
    return Text("\n").join(Text(" " * indent).append_text(line) for line in lines)
