"""Freed memory stays with the process."""

import platform
import subprocess
import sys

import pytest

# Takes and frees 64 MiB ten times; prints how often the system had to bring a page.
CODE = """
import ctypes, resource
from afactl.machine.allocator import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
taken = {taken}
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    block = libc.malloc(64 * 2**20)
    ctypes.memset(block, 1, 64 * 2**20)
    libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(taken):
    done = subprocess.run([sys.executable, "-c", CODE.format(taken=taken)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc")
def test_a_freed_block_is_used_again_without_new_pages():
    assert faults("keep_freed_memory()") < faults("False") / 5
