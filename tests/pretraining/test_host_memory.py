"""What the allocator of a training worker is told, and that glibc does it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from twilbert.pretraining.host_memory import allocator_environment

BLOCK = 2**27  # bytes: over the size that glibc would map anew each time
FAULTS_TWICE = f"""
import ctypes, resource
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.memset.argtypes, libc.free.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t], [ctypes.c_void_p]
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc({BLOCK})
    libc.memset(block, 1, {BLOCK})
    libc.free(block)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_twice(environment: dict[str, str]) -> list[int]:
    """Page faults of taking, filling and freeing a block, the first time and the second, in a process of its own."""
    plain = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS_TWICE], env=plain | environment, capture_output=True, text=True, check=True
    )
    return [int(line) for line in done.stdout.split()]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc, and this C library is another")
def test_a_freed_block_is_there_for_the_next_one():
    pages = BLOCK // os.sysconf("SC_PAGE_SIZE")
    default, kept = faults_twice({}), faults_twice(allocator_environment())
    if default[1] < pages // 2:
        pytest.skip("this kernel hands out huge pages unasked: there are few faults to save")
    assert kept[1] < pages // 100


def test_settings_of_the_drivers_own_environment_win(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert allocator_environment()["MALLOC_ARENA_MAX"] == "4"
