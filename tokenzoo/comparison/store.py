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
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenzoo.errors import FailedError

BUSY_SECONDS = 60
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


def default_path() -> Path:
    """`$TOKENZOO_STORE`, else results.sqlite in the user's data directory."""
    if "TOKENZOO_STORE" in os.environ:
        return Path(os.environ["TOKENZOO_STORE"])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "tokenzoo" / "results.sqlite"


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
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            self._connection.row_factory = sqlite3.Row
            self._retry("PRAGMA journal_mode=WAL")
            self._retry(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"Cannot use the result store '{self.path}': {error}. Choose one with --store.") from None

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
        except sqlite3.Error as error:
            raise StoreError(f"Cannot read the result store '{self.path}': {error}. Choose one with --store.") from None
        return json.loads(found["result"]) if found else None

    def put(self, identity: dict[str, Any], result: dict[str, Any]) -> None:
        """Store a finished cell; `identity` names kind, model, method, task and seed, and whatever else matters."""
        values = (
            cell_key(identity), identity["kind"], identity["model"], identity["method"], identity["task"],
            identity["seed"], time.time(), json.dumps(identity, sort_keys=True), json.dumps(result),
        )  # fmt: skip
        try:
            self._connection.execute(f"INSERT OR REPLACE INTO cells VALUES ({', '.join('?' * len(values))})", values)
        except sqlite3.Error as error:
            raise StoreError(f"Cannot write to the result store '{self.path}': {error}.") from None

    def cells(self, kind: str = "", model: str = "", method: str = "", task: str = "") -> Iterator[Cell]:
        """The finished cells, oldest first; an argument that is given must be part of the cell's name."""
        conditions = {"kind": kind, "model": model, "method": method, "task": task}
        wanted = {column: value for column, value in conditions.items() if value}
        where = " AND ".join(f"instr({column}, ?)" for column in wanted) or "1"
        query = f"SELECT * FROM cells WHERE {where} ORDER BY finished, key"
        for row in self._connection.execute(query, tuple(wanted.values())):
            values = dict(row)
            yield Cell(**values | {name: json.loads(values[name]) for name in ("identity", "result")})
