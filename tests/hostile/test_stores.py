"""Stores that are old, foreign, read-only or broken: used where that is possible, one line where it is not."""

from __future__ import annotations

import os
import sqlite3
import stat

import pytest

from tokenzoo import cli
from tokenzoo.comparison.store import Store, StoreError

IDENTITY = {"kind": "accuracy", "model": "m", "method": "aim", "task": "t", "seed": 0}
RESULT = {"answers": [], "visual_per_layer": [1.0], "unreduced": 1, "flops": 1, "llm_flops": 1, "kv_bytes": 1}


def made(path):
    with Store(path) as store:
        store.put(IDENTITY, RESULT)
    return path


def executed(path, *statements):
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return path


def test_an_older_table_is_brought_up_to_date_and_nothing_is_lost(tmp_path):
    path = made(tmp_path / "results.sqlite")
    executed(path, "ALTER TABLE cells DROP COLUMN finished", "ALTER TABLE cells DROP COLUMN seed", "PRAGMA application_id = 0")
    with Store(path) as store:
        assert store.get(IDENTITY) == RESULT
        store.put({**IDENTITY, "task": "u"}, RESULT)
        assert [cell.task for cell in store.cells()] == ["t", "u"]


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE bookmarks (url TEXT)"],
        ["CREATE TABLE cells (row INTEGER, column INTEGER, formula TEXT)"],
        ["PRAGMA application_id = 1196437808", "CREATE TABLE gpkg_contents (a TEXT)"],
    ],
)
def test_the_file_of_another_program_is_refused_and_left_alone(tmp_path, statements):
    path = executed(tmp_path / "other.sqlite", *statements)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="it belongs to another program"):
        Store(path)
    assert path.read_bytes() == before


def test_a_newer_table_is_refused(tmp_path):
    path = executed(made(tmp_path / "results.sqlite"), "PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="a newer tokenzoo wrote it"):
        Store(path)


def test_a_store_that_may_only_be_read(tmp_path, monkeypatch):
    path = made(tmp_path / "results.sqlite")
    path.chmod(stat.S_IRUSR)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with Store(path) as store:
        assert store.get(IDENTITY) == RESULT and len(list(store.cells())) == 1
        with pytest.raises(StoreError, match="Cannot write to the result store"):
            store.put(IDENTITY, RESULT)


CONTENTS = [b"x", b"SQLite format 3\0", b"SQLite format 3\0" + b"\xff" * 5000, b"\0" * 4096, b"{}", b"PK\x03\x04" + b"1" * 999]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("command", [["results"], ["compare", "--methods", "fastv"]])
def test_what_is_no_store_is_one_line(tmp_path, capsys, content, command):
    path = tmp_path / "results.sqlite"
    path.write_bytes(content)
    assert cli.run([*command, "--store", str(path)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.strip().count("\n") == 0 and "result store" in said.err


@pytest.mark.parametrize("where", ["/dev/null", "/dev/null/x", "/proc/x.sqlite", "/", ".", "/sys/results.sqlite"])
def test_places_where_there_can_be_none(capsys, where):
    assert cli.run(["compare", "--methods", "fastv", "--store", where]) in (1, 2)
    assert capsys.readouterr().err.strip().count("\n") == 0


@pytest.mark.parametrize("column", ["identity", "result"])
@pytest.mark.parametrize("value", ["", "{", "nul", "[" * 9])
def test_a_broken_cell_is_one_line(tmp_path, capsys, column, value):
    path = executed(made(tmp_path / "results.sqlite"), f"UPDATE cells SET {column} = '{value}'")
    assert cli.run(["results", "--store", str(path)]) == 1
    assert "Cannot read the result store" in capsys.readouterr().err
