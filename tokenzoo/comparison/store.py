"""Results that survive: each finished cell is one row of an SQLite file, written the moment it is finished.

A cell is what one method measured on one task of one model (or one timing of several methods, interleaved). Its key is
a digest of everything its result depends on, so a rerun finds it again and any change of method, model, task, seed or
version makes a new one. SQLite's write-ahead log lets several processes write at once, and a killed process loses
nothing that was written.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from tokenzoo.errors import FailedError

BUSY_SECONDS = 60
#: "TKNZ" in the file's header says that it is ours; the schema's version is kept beside it.
APPLICATION, VERSION = 0x544B4E5A, 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS cells (
    key TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    model TEXT NOT NULL,
    method TEXT NOT NULL,
    task TEXT NOT NULL,
    seed INTEGER NOT NULL,
    finished REAL NOT NULL,
    identity TEXT NOT NULL,
    result TEXT NOT NULL
)
"""

#: What no version of the table was without, and what later ones added with the value that older cells get.
KEPT = ("key", "identity", "result")
COLUMNS = {"kind": "'accuracy'", "model": "''", "method": "''", "task": "''", "seed": "0", "finished": "0"}
NAMES = ("key", "kind", "model", "method", "task", "seed", "finished", "identity", "result")


class StoreError(FailedError):
    """The store cannot be read or written: no fault of a method."""


@dataclass(frozen=True)
class Cell:
    """One stored result: what it was measured on (`identity`) and what was measured (`result`)."""

    key: str
    kind: str
    model: str
    method: str
    task: str
    seed: int
    finished: float
    identity: dict[str, Any]
    result: dict[str, Any]


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def default_path() -> Path:
    """`$TOKENZOO_STORE`, else results.sqlite in the user's data directory."""
    if "TOKENZOO_STORE" in os.environ:
        return Path(os.environ["TOKENZOO_STORE"])
    return Path(platformdirs.user_data_dir("tokenzoo", appauthor=False)) / "results.sqlite"


def cell_key(identity: dict[str, Any]) -> str:
    """The digest of an identity: equal identities, whatever the order of their entries, have equal keys."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


class Store:
    """Finished cells in one SQLite file. Open it where it is used; it may be open in other processes as well.

    Raises StoreError where the file cannot be read or written or is none of ours.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path) if path is not None else default_path()
        try:
            self._connection = self._opened()
            self._connection.row_factory = sqlite3.Row
            self._check()
        except (OSError, ValueError, sqlite3.Error) as error:
            raise StoreError(f"Cannot use the result store '{self.path}': {error}. Choose one with --store.") from None

    def _opened(self) -> sqlite3.Connection:
        """The file for reading and writing; for reading alone where it, or its folder, allows no more."""
        options: dict[str, Any] = {"timeout": BUSY_SECONDS, "isolation_level": None}
        self.writable = not self.path.exists() or (os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK))
        if not self.writable:
            return sqlite3.connect(f"{self.path.resolve().as_uri()}?mode=ro&immutable=1", uri=True, **options)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file() and self.path.stat().st_size and not _is_sqlite(self.path):
            raise ValueError("it is no SQLite file")  # SQLite itself would take a very short file for an empty one
        return sqlite3.connect(self.path, **options)

    def _check(self) -> None:
        """Make the table in a new file, bring that of an older version up to date, and refuse other programs' files."""
        tables = {row["name"] for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if application not in (0, APPLICATION) or (tables and "cells" not in tables):
            raise ValueError("it belongs to another program")
        if application == APPLICATION and version > VERSION:
            raise ValueError("a newer tokenzoo wrote it")
        present = {row["name"] for row in self._connection.execute("PRAGMA table_info(cells)")}
        if present and not set(KEPT) <= present:
            raise ValueError("it belongs to another program")
        if not self.writable:
            return
        self._retry("PRAGMA journal_mode=WAL")
        self._retry(SCHEMA)
        for name in COLUMNS:
            if present and name not in present:
                self._retry(f"ALTER TABLE cells ADD COLUMN {name} NOT NULL DEFAULT {COLUMNS[name]}")
        self._retry(f"PRAGMA application_id = {APPLICATION}")
        self._retry(f"PRAGMA user_version = {VERSION}")

    def _retry(self, statement: str) -> None:
        """Switching to the write-ahead log does not wait for the busy timeout, so wait here."""
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                self._connection.execute(statement)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """The result that was stored for this identity, None where it is not finished."""
        try:
            found = self._connection.execute("SELECT result FROM cells WHERE key = ?", (cell_key(identity),)).fetchone()
            return json.loads(found["result"]) if found else None
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"Cannot read the result store '{self.path}': {error}. Choose one with --store.") from None

    def put(self, identity: dict[str, Any], result: dict[str, Any]) -> None:
        """Store a finished cell; `identity` names kind, model, method, task and seed, and whatever else matters."""
        values = (
            cell_key(identity), identity["kind"], identity["model"], identity["method"], identity["task"],
            identity["seed"], time.time(), json.dumps(identity, sort_keys=True), json.dumps(result),
        )  # fmt: skip
        try:
            self._connection.execute(
                f"INSERT OR REPLACE INTO cells ({', '.join(NAMES)}) VALUES ({', '.join('?' * len(NAMES))})", values
            )
        except sqlite3.Error as error:
            raise StoreError(f"Cannot write to the result store '{self.path}': {error}.") from None

    def drop_pieces(self, identity: dict[str, Any]) -> None:
        """Forget the pieces of a cell that is whole now."""
        whole = {name: value for name, value in identity.items() if name != "kind"}
        try:
            for key, text in self._connection.execute(
                "SELECT key, identity FROM cells WHERE kind = 'piece' AND model = ? AND method = ? AND task = ? AND seed = ?",
                tuple(identity[name] for name in ("model", "method", "task", "seed")),
            ).fetchall():
                piece = json.loads(text)
                if {name: value for name, value in piece.items() if name not in ("kind", "piece")} == whole:
                    self._connection.execute("DELETE FROM cells WHERE key = ?", (key,))
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"Cannot write to the result store '{self.path}': {error}.") from None

    def cells(self, kind: str = "", model: str = "", method: str = "", task: str = "") -> Iterator[Cell]:
        """The finished cells, oldest first; an argument that is given must be part of the cell's name."""
        conditions = {"kind": kind, "model": model, "method": method, "task": task}
        wanted = {column: value for column, value in conditions.items() if value}
        where = " AND ".join(f"instr({column}, ?)" for column in wanted) or "1"
        query = f"SELECT {', '.join(NAMES)} FROM cells WHERE {where} ORDER BY finished, key"
        try:
            for row in self._connection.execute(query, tuple(wanted.values())):
                values = dict(row)
                yield Cell(**values | {name: json.loads(values[name]) for name in ("identity", "result")})
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"Cannot read the result store '{self.path}': {error}. Choose one with --store.") from None
