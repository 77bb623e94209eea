"""How long the commands that need no torch take to answer: processor and wall seconds, the best of five.

python benchmarks/startup.py
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

COMMANDS = ("--help", "list", "show aim", "plugins", "cost", "reproduce aim-iccv2025")


def seconds(command: str) -> tuple[float, float]:
    """Processor and wall seconds of one run."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "tokenzoo", *command.split()], stdout=subprocess.DEVNULL, check=True)
    after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ended - began


def main() -> None:
    for command in COMMANDS:
        taken = [seconds(command) for _ in range(5)]
        print(f"tokenzoo {command:24} {min(cpu for cpu, _ in taken):.2f} s CPU  {min(wall for _, wall in taken):.2f} s")


if __name__ == "__main__":
    main()
