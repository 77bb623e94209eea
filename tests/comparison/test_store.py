"""The result store: durable, shared between processes, honest about what it cannot do."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tokenzoo import FailedError
from tokenzoo.comparison.store import Store, cell_key, default_path

WRITER = """
import sys
from tokenzoo.comparison.store import Store
with Store(sys.argv[1]) as store:
    for index in range(60):
        store.put({"kind": "accuracy", "model": "m", "method": sys.argv[2], "task": str(index), "seed": 0}, {"n": index})
"""


def identity(method="aim", task="counting", **more):
    return {"kind": "accuracy", "model": "embedded:llava", "method": method, "task": task, "seed": 0, **more}


def test_a_result_is_found_by_all_it_depends_on(tmp_path):
    with Store(tmp_path / "results.sqlite") as store:
        store.put(identity(versions={"torch": "2.13"}), {"right": 3})
        assert store.get(identity(versions={"torch": "2.13"})) == {"right": 3}
        assert store.get(identity(versions={"torch": "2.14"})) is None
        assert store.get(identity()) is None


def test_the_key_ignores_the_order_of_entries():
    assert cell_key({"a": 1, "b": [2, {"c": 3}]}) == cell_key({"b": [2, {"c": 3}], "a": 1})


def test_cells_are_listed_oldest_first_and_filtered(tmp_path):
    with Store(tmp_path / "results.sqlite") as store:
        for method in ("none", "aim", "aim:retention=0.5"):
            store.put(identity(method), {})
        assert [cell.method for cell in store.cells()] == ["none", "aim", "aim:retention=0.5"]
        assert [cell.method for cell in store.cells(method="aim")] == ["aim", "aim:retention=0.5"]
        assert list(store.cells(task="reading")) == []


def test_two_processes_write_at_once(tmp_path):
    path = tmp_path / "results.sqlite"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in ("one", "two", "three")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    with Store(path) as store:
        assert len(list(store.cells())) == 180


def test_what_was_written_survives_a_kill(tmp_path):
    path = tmp_path / "results.sqlite"
    killed = WRITER + "    import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    assert subprocess.run([sys.executable, "-c", killed, str(path), "one"]).returncode == -9
    with Store(path) as store:
        assert len(list(store.cells())) == 60


ENDLESS = """
import itertools, sys
from tokenzoo.comparison.store import Store
with Store(sys.argv[1]) as store:
    for index in itertools.count():
        identity = {"kind": "accuracy", "model": "m", "method": "aim", "task": str(index), "seed": 0}
        store.put(identity, {"n": index, "long": "x" * 9000})
        print(index, flush=True)
"""


@pytest.mark.parametrize("after", [1, 7, 40, 150])
def test_a_kill_in_the_middle_of_a_write_loses_nothing_and_leaves_nothing_half(tmp_path, after):
    path = tmp_path / "results.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", ENDLESS, str(path)], stdout=subprocess.PIPE, text=True)
    said = [int(writer.stdout.readline()) for _ in range(after)]
    writer.kill()
    said += map(int, writer.stdout.read().split())
    writer.wait()
    with Store(path) as store:
        kept = [cell.result["n"] for cell in store.cells()]
        assert said == list(range(len(said))) and kept[: len(said)] == said and len(kept) <= len(said) + 1
        assert all(len(cell.result["long"]) == 9000 for cell in store.cells())


FILLING = """
import resource, sys
from tokenzoo.comparison.store import Store, StoreError
from tokenzoo.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
""" + ENDLESS.replace("import itertools, sys", "import itertools")


def test_a_full_disk_is_said_and_what_was_finished_is_kept(tmp_path):
    path = tmp_path / "results.sqlite"
    done = subprocess.run([sys.executable, "-c", FILLING, str(path)], capture_output=True, text=True, timeout=60)
    said = done.stderr.strip().splitlines()[-1]
    assert "StoreError: Cannot write to the result store" in said and str(path) in said
    finished = list(map(int, done.stdout.split()))
    with Store(path) as store:
        assert finished and [cell.result["n"] for cell in store.cells()] == finished
        store.put(identity(), {"n": -1})  # there is room again
        assert store.get(identity()) == {"n": -1}


@pytest.mark.parametrize("content", [None, b"this is no database, but long enough to be looked at" * 40])
def test_a_store_that_cannot_be_used_is_one_line(tmp_path, content):
    path = tmp_path / "results.sqlite"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(FailedError, match=r"Cannot use the result store .*Choose one with --store"):
        Store(path)


def test_the_default_path_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("TOKENZOO_STORE", str(tmp_path / "mine.sqlite"))
    assert default_path() == tmp_path / "mine.sqlite"
