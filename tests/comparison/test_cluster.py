"""`compare` on a real Ray cluster of two machines (two nodes here): the table of one process, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tokenzoo import cli
from tokenzoo.comparison.compare import Silent, compare
from tokenzoo.comparison.settings import Settings
from tokenzoo.comparison.store import Store

pytestmark = pytest.mark.ray

#: Six methods and three baselines, pictures on the one model and videos on the other; pieces of one question, two to a cell.
METHODS = "aim,fastv,pdrop,vtw,prumerge,uniform"
OPTIONS = {"model": "embedded", "tasks": "attribute,order", "limit": 2, "batch_size": 1}
SETTINGS = Settings(methods=METHODS, as_published=True, timing=False, **OPTIONS)
CELLS = 2 * 9
COMMAND = [sys.executable, "-m", "tokenzoo", "compare", "--methods", METHODS, "--as-published", "--no-timing", "--format", "json"]
COMMAND += [part for name, value in OPTIONS.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def address():
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    with Store(tmp_path_factory.mktemp("alone") / "results.sqlite") as store:
        return plain(compare(SETTINGS, store)), results(store)


def plain(comparison):
    return json.loads(json.dumps(comparison.as_dict()["sections"]))


def results(store):
    """Every cell's key and result."""
    return {cell.key: cell.result for cell in store.cells()}


def run(address, store, progress=None, **options):
    from tokenzoo.comparison.cluster import Cluster

    with Cluster(address, piece=1) as cluster:
        return compare(SETTINGS, store, progress, cluster=cluster, **options), cluster


def test_the_table_and_the_store_are_those_of_one_process(address, alone, tmp_path):
    with Store(tmp_path / "results.sqlite") as store:
        comparison, cluster = run(address, store)
        assert plain(comparison) == alone[0]
        assert results(store) == alone[1] and len(alone[1]) == CELLS
        done = cluster.done.values()
        assert len(done) == 2 and all(one.pieces for one in done), "both machines worked"
        assert sum(one.pieces for one in done) == 2 * CELLS + 2, "two pieces a cell, and a look at each model"
        again, cluster = run(address, store)
        assert plain(again) == alone[0]
        assert sum(one.pieces for one in cluster.done.values()) == 2, "finished cells are not measured again"


class Killer(Silent):
    """Kills the worker that holds most once a few questions are answered."""

    def __init__(self):
        self.cluster, self.steps, self.killed = None, 0, None

    def advance(self, steps):
        self.steps += steps
        if self.steps >= 4 and self.killed is None:
            busy = [hand for hand in self.cluster.hands.values() if hand.piece is not None and hand.place is not None]
            if busy:
                self.killed = busy[0].place.pid
                os.kill(self.killed, signal.SIGKILL)


def test_a_dead_workers_piece_is_done_by_another(address, alone, tmp_path):
    from tokenzoo.comparison.cluster import Cluster

    killer = Killer()
    with Store(tmp_path / "results.sqlite") as store, Cluster(address, piece=1) as cluster:
        killer.cluster = cluster
        assert plain(compare(SETTINGS, store, killer, cluster=cluster)) == alone[0]
        assert results(store) == alone[1]
    assert killer.killed is not None and sum(one.died for one in cluster.done.values()) == 1
    assert cluster.again == 1 and "1 piece of dead workers done again" in cluster.summary()
    assert sum(one.pieces for one in cluster.done.values()) == 2 * CELLS + 2, "no other piece was done twice"


def cells(path):
    """When each finished cell or piece was finished."""
    if not path.exists():
        return {}
    with Store(path) as store:
        return {cell.key: cell.finished for cell in store.cells(kind="accuracy")}


def test_a_killed_driver_goes_on_where_it_stopped(address, alone, tmp_path):
    path = tmp_path / "results.sqlite"
    environment = {**os.environ, "TOKENZOO_STORE": str(path), "TOKENZOO_LOAD_PLUGINS": ""}
    command = [*COMMAND, "--ray", address]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 400
    while len(cells(path)) < CELLS // 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = cells(path)
    assert CELLS // 3 <= len(kept) < CELLS
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=True)
    assert json.loads(done.stdout)["sections"] == alone[0]
    assert kept.items() <= cells(path).items(), "what was finished was not run again"
    pieces = sum(int(line.split(" piece")[0].rsplit(" ", 1)[1]) for line in done.stderr.splitlines() if " piece" in line)
    assert pieces == CELLS - len(kept) + 2, "one piece for each cell that was missing, and a look at each model"


BREAKS = """
from dataclasses import dataclass
from tokenzoo import TokenReducer
@dataclass
class Breaks(TokenReducer):
    \"\"\"Fails.\"\"\"
    name = "breaks"
    def kept(self, entered, layers):
        return {1: entered // 2}
    def score(self, layer):
        raise ZeroDivisionError("no token left")
"""


def test_a_plugins_failure_and_its_times_are_told_as_in_one_process(address, tmp_path, capsys, monkeypatch):
    plugin = tmp_path / "breaks.py"
    plugin.write_text(BREAKS)
    monkeypatch.setenv("TOKENZOO_STORE", str(tmp_path / "results.sqlite"))
    options = ["--model", "embedded:llava", "--tasks", "attribute", "--limit", "1", "--as-published", "--rounds", "1"]
    command = ["--plugin", str(plugin), "compare", "--methods", "breaks", *options, "--format", "json"]
    assert cli.run([*command, "--ray", address]) == 1
    section = json.loads(capsys.readouterr().out)["sections"][0]
    none, *_, broken = section["rows"]
    assert broken["status"] == "failed" and broken["note"] == "ZeroDivisionError: no token left (task attribute)"
    assert none["timing"]["prefill_ms"]["rounds"] == 1
    assert section["timed_on"].endswith(f"batch size 1, on {os.uname().nodename}.")
