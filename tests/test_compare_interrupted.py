"""kill -9 in the middle of a comparison loses nothing that was finished, and the rerun gives the undisturbed table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

from tokenzoo.compare import compare
from tokenzoo.comparison.settings import Settings
from tokenzoo.report.data import comparison_json
from tokenzoo.store import Store

OPTIONS = {"model": "embedded:llava", "tasks": "attribute,reading", "limit": 3, "timing": False}
COMMAND = [sys.executable, "-m", "tokenzoo", "compare", "--methods", "aim,fastv", "--model", "embedded:llava"]
COMMAND += ["--tasks", "attribute,reading", "--limit", "3", "--no-timing", "--format", "json"]


def finished(path):
    """How many cells the store has; none where there is no store yet."""
    if not path.exists():
        return 0
    with Store(path) as store:
        return len(list(store.cells()))


def test_a_killed_comparison_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "results.sqlite"
    environment = {**os.environ, "TOKENZOO_STORE": str(path)}
    process = subprocess.Popen(COMMAND, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while finished(path) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = finished(path)
    assert 2 <= kept <= 8
    with Store(path) as store:
        before = {cell.key: cell.finished for cell in store.cells()}

    rerun = subprocess.run(COMMAND, env=environment, capture_output=True, text=True, timeout=240, check=True)
    undisturbed = json.loads(comparison_json(compare(Settings(methods="aim,fastv", **OPTIONS))))
    assert json.loads(rerun.stdout)["sections"] == undisturbed["sections"]
    with Store(path) as store:
        after = {cell.key: cell.finished for cell in store.cells()}
    assert len(after) == 8
    assert before.items() <= after.items()  # what was finished was not run again
