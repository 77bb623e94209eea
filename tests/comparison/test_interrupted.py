"""kill -9, a full disk and a second process lose nothing that was finished, and the rerun gives the undisturbed table."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time

from tokenzoo.comparison.store import Store

#: Methods of every kind on both embedded models: pictures on the one, pictures and videos on the other.
COMMAND = [
    sys.executable,
    "-m",
    "tokenzoo",
    "compare",
    "--methods",
    "aim,fastv,pdrop,prumerge,visionzip,vidcom2,dycoke,snapkv",
    "--model",
    "embedded:llava,embedded:onevision",
]
COMMAND += ["--tasks", "reading,order", "--limit", "2", "--no-timing", "--format", "json"]
SECTIONS = 3
#: Cells after which it is killed, and seconds that a busy machine may need.
FEW, PATIENCE = 8, 900


def environment(path):
    return {**os.environ, "TOKENZOO_STORE": str(path), "TOKENZOO_LOAD_PLUGINS": ""}


def cells(path):
    """When each finished cell was finished; nothing where there is no store yet."""
    if not path.exists():
        return {}
    with Store(path) as store:
        return {cell.key: cell.finished for cell in store.cells()}


def sections(path):
    done = subprocess.run(COMMAND, env=environment(path), capture_output=True, text=True, timeout=PATIENCE, check=True)
    return json.loads(done.stdout)["sections"]


def test_a_killed_comparison_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "results.sqlite"
    process = subprocess.Popen(COMMAND, env=environment(path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + PATIENCE
    while len(cells(path)) < FEW and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = cells(path)
    assert len(kept) >= FEW

    resumed = sections(path)
    assert len(resumed) == SECTIONS and all(row["status"] != "failed" for section in resumed for row in section["rows"])
    assert resumed == sections(tmp_path / "undisturbed.sqlite")
    assert len(kept) < len(cells(path)) == len(cells(tmp_path / "undisturbed.sqlite"))
    assert kept.items() <= cells(path).items(), "what was finished was not run again"


SMALL = [sys.executable, "-m", "tokenzoo", "compare", "--methods", "fastv:K=3,uniform", "--model", "embedded:llava", "--tasks",
         "reading,counting", "--limit", "2", "--as-published", "--no-timing", "--format", "csv"]  # fmt: skip
#: Bytes of a file at most: the store's log outgrows it after a few cells.
DISK = 120_000


def started(path, **options):
    return subprocess.Popen(SMALL, env=environment(path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_a_full_disk_and_a_second_process_change_no_byte_of_the_table(tmp_path):
    path = tmp_path / "results.sqlite"
    limits = (resource.RLIMIT_FSIZE, (DISK, DISK))
    full = started(path, preexec_fn=lambda: resource.setrlimit(*limits))
    table, said = full.communicate(timeout=PATIENCE)
    assert full.returncode == 1 and table == ""
    assert said.startswith("Error: Cannot write to the result store") and said.count("\n") == 1
    kept = cells(path)
    assert kept

    both = [started(path), started(path)]
    tables = [process.communicate(timeout=PATIENCE)[0] for process in both]
    alone = started(tmp_path / "undisturbed.sqlite").communicate(timeout=PATIENCE)[0]
    assert tables == [alone, alone] and alone.count("\n") == 6
    assert kept.items() <= cells(path).items()
