"""kill -9 in the middle of a comparison loses nothing that was finished, and the rerun gives the undisturbed table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from tokenzoo.comparison.store import Store
from tokenzoo.zoo.plugins import load_zoo

#: All methods on both embedded models: pictures on the one, pictures and videos on the other.
COMMAND = [sys.executable, "-m", "tokenzoo", "compare", "--methods", "all", "--model", "embedded:llava,embedded:onevision"]
COMMAND += ["--tasks", "reading,order", "--limit", "2", "--no-timing", "--format", "json"]
SECTIONS = 3
CELLS = SECTIONS * len(load_zoo(plugin_files=(), registry_files=()).names())


def environment(path):
    return {**os.environ, "TOKENZOO_STORE": str(path), "TOKENZOO_LOAD_PLUGINS": ""}


def cells(path):
    """When each finished cell was finished; nothing where there is no store yet."""
    if not path.exists():
        return {}
    with Store(path) as store:
        return {cell.key: cell.finished for cell in store.cells()}


def sections(path):
    done = subprocess.run(COMMAND, env=environment(path), capture_output=True, text=True, timeout=240, check=True)
    return json.loads(done.stdout)["sections"]


def test_a_killed_comparison_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "results.sqlite"
    process = subprocess.Popen(COMMAND, env=environment(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while len(cells(path)) < CELLS // 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = cells(path)
    assert CELLS // 2 <= len(kept) < CELLS

    resumed = sections(path)
    assert len(resumed) == SECTIONS and all(row["status"] == "ok" for section in resumed for row in section["rows"])
    assert resumed == sections(tmp_path / "undisturbed.sqlite")
    assert len(cells(path)) == CELLS
    assert kept.items() <= cells(path).items(), "what was finished was not run again"
