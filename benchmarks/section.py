"""Marked sections of a page, each written by one benchmark and left alone by the others; and what a measurement depends on."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import Any

from preftune import provenance

SECTION = re.compile(r"<!-- (\w+) begin -->\n.*?<!-- \1 end -->\n", re.DOTALL)


def write_section(page: Path, name: str, text: str) -> None:
    """Put a text between the section's marks: in place of what stands there, or at the end of the page."""
    block = f"<!-- {name} begin -->\n{text.strip()}\n<!-- {name} end -->\n"
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    mine = next((found for found in SECTION.finditer(before) if found[1] == name), None)
    after = before[: mine.start()] + block + before[mine.end() :] if mine else f"{before.rstrip()}\n\n{block}".lstrip()
    page.write_text(after, encoding="utf-8")


def write_around(page: Path, text: str) -> None:
    """Write a page anew and keep the sections that others have put into it."""
    before = page.read_text(encoding="utf-8") if page.exists() else ""
    page.write_text("\n".join([text.rstrip() + "\n", *(found[0] for found in SECTION.finditer(before))]), encoding="utf-8")


def conditions(*packages: str) -> dict[str, Any]:
    """Machine, versions, commit and command, with the load that others put on the machine at this moment."""
    import torch

    cpu = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s*(\d+) kB", _read("/proc/meminfo"))
    return {
        "processor": cpu[1] if cpu else platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "versions": provenance.versions() | {name: _version(name) for name in packages},
        "commit": provenance.commit(),
        "command": provenance.command(),
    }


def told(found: dict[str, Any]) -> str:
    """`conditions` in two lines of a page."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    memory = f", {found['memory_gib']} GiB" if found["memory_gib"] else ""
    return (
        f"{found['processor']}, {found['cores']} cores{memory}; {found['threads']} thread; load average {found['load']:.2f} at the start.\n"
        f"Commit {found['commit'] or 'unknown'} (+: beside uncommitted work); {versions}."
    )


def _read(path: str) -> str:
    return Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
