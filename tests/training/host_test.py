"""What a process on CPUs asks of the C library, each tried in a process of its own."""

import platform
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from ffn_alloc.training import host
from tests.training.runs import micro_config

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")
needs_them = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc"
    or not HUGE_PAGES.exists()
    or host._OVERCOMMIT.read_text().strip() == "2",
    reason="a C library or a system that has no huge pages, or is not to be asked for them",
)

LIES_IN_HUGE_PAGES = """
import re
import jax.numpy as jnp
from ffn_alloc.training import host

host._keep_freed_memory()
address = jnp.ones(16 << 20).unsafe_buffer_pointer()
areas = re.split(r"\\n(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read())
bounds = [[int(end, 16) for end in area.split()[0].split("-")] for area in areas]
(area,) = [area for area, (start, stop) in zip(areas, bounds) if start <= address < stop]
print("hg" in area.split("VmFlags:")[1].split())
"""

GOES_ON = """
import resource
from ffn_alloc.training import host

resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
host._keep_freed_memory()
print(len(bytearray(100 << 20)))
"""


# A block that is freed while another lies behind it, as in a step whose buffer found another place.
GAP_IS_GIVEN_BACK = """
import ctypes
import mmap
import time
from ffn_alloc.training import host

host._SECONDS_BETWEEN_TRIMS = 0.1
host._keep_freed_memory()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
held = lambda: int(open("/proc/self/statm").read().split()[1]) * mmap.PAGESIZE
before, size = held(), 300 << 20
gap, behind = libc.malloc(ctypes.c_size_t(size)), libc.malloc(64 << 20)
ctypes.memset(behind, 1, 64 << 20)
ctypes.memset(gap, 1, size)
assert held() - before > 0.9 * size
libc.free(gap)
until = time.monotonic() + 20
while held() - before > 0.5 * size and time.monotonic() < until:
    time.sleep(0.05)
libc.free(behind)
time.sleep(0.5)
print((held() - before) >> 20)
"""


@needs_them
def test_arrays_lie_where_huge_pages_are_asked_for():
    assert printed(LIES_IN_HUGE_PAGES) == "True"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_is_free_is_given_back_but_not_what_lies_at_the_end():
    assert 60 <= int(printed(GAP_IS_GIVEN_BACK)) < 70


@needs_them
def test_a_limit_on_addresses_is_no_fault():
    assert host._memory_bytes() // 2 > 1 << 30
    assert printed(GOES_ON) == str(100 << 20)


def test_where_addresses_count_as_memory_none_are_taken(tmp_path, monkeypatch):
    strict = tmp_path / "overcommit_memory"
    strict.write_text("2\n")
    monkeypatch.setattr(host, "_OVERCOMMIT", strict)
    host._ask_for_huge_pages(None, 1 << 30)  # asks no library


def printed(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_what_is_traced_later_multiplies_float32_as_such_on_a_gpu(tmp_path, monkeypatch):
    names = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs")
    names = [f"jax_{name}" for name in (*names, "default_matmul_precision")]
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setattr(host, "_keep_freed_memory", lambda: None)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", ".9")
    try:
        assert host.set_up_devices(micro_config(), tmp_path) == "gpu"  # of float32
        assert jax.config.jax_default_matmul_precision == "highest"
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
