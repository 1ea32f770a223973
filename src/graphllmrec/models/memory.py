"""How much memory a fit may still take, so that one that does not fit is refused instead of killed."""

from __future__ import annotations

import os
from pathlib import Path


def free_memory() -> int:
    """Bytes of memory that this process may still take: what the machine has available, within its control group."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # not Linux: all physical memory is the best that is known without a dependency
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (value := limit.read_text().strip()).isdigit():
        free = min(free, int(value) - int(used.read_text()))
    return free
