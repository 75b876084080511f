"""What is given back to the system."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from isobasin.memory import give_memory_back

def resident():
    line = next(x for x in open("/proc/self/status") if x.startswith("VmRSS"))
    return int(line.split()[1]) // 1024

first = bytearray(30 * 2**20)
del first  # from here on glibc keeps what is as large
before = resident()
large, kept = [], []
for _ in range(20):
    large.append(bytearray(4 * 2**20))
    kept.append(bytearray(4096))
del large
if sys.argv[1] == "given back":
    give_memory_back()
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about glibc")
def test_memory_around_what_is_kept_is_given_back():
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", PROGRAM]
    kept, back = (
        int(subprocess.run([*command, how], check=True, capture_output=True, text=True, env=env).stdout)
        for how in ("kept", "given back")
    )
    if kept < 60:
        pytest.skip(f"this system's malloc kept {kept} MiB of 80 by itself")
    assert back < 8
