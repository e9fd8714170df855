"""What a process may use: processors and memory, which a control group (cgroup) may limit.

Containers limit both by cgroups, which `os.cpu_count` and `/proc/meminfo` do not show.
"""
from __future__ import annotations

import functools
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
MEMORY = Path("/proc/meminfo")


@functools.cache
def processor_quota() -> int | None:
    """Processors whose time the cgroup grants, rounded up, or None without a limit.

    It is read once: a search must not wait for files.
    """
    quotas = []
    for folder in _groups("cpu"):
        try:
            if (folder / "cpu.max").exists():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
            if quota != "max" and int(quota) > 0:
                quotas.append(max(1, math.ceil(int(quota) / int(period))))
        except (OSError, ValueError, ZeroDivisionError):
            continue
    return min(quotas, default=None)


def available_memory() -> float:
    """Bytes that are free or can be freed; infinity where the system does not report it."""
    return min([_free_memory(), *(left for left in map(_left_in, _groups("memory")))])


def _free_memory() -> float:
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines
                             if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return math.inf


def _left_in(folder: Path) -> float:
    """Bytes that the limit of a memory cgroup leaves; its file cache can be freed."""
    for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")):
        try:
            most = (folder / limit).read_text().strip()
            if most == "max":
                return math.inf
            taken = int((folder / used).read_text())
            fields = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = sum(int(field[1]) for field in fields if field[0] == cache)
            return max(0.0, float(int(most) - max(0, taken - cached)))
        except (OSError, ValueError, IndexError):
            continue
    return math.inf


def _groups(controller: str) -> Iterator[Path]:
    """Folders of the cgroups of this process that may hold limits, up to the root."""
    try:
        lines = MEMBERSHIP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            roots = [GROUPS, GROUPS / "unified"]
        elif controller in controllers.split(","):
            roots = [GROUPS / controller, GROUPS / controllers]
        else:
            continue
        for root in roots:
            folder = root / path.lstrip("/")
            while folder != root.parent:  # in a container, its own group is the root
                if folder.is_dir():
                    yield folder
                folder = folder.parent
