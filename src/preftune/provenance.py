"""Where a run comes from: the command, the commit and the versions that its numbers depend on."""

from __future__ import annotations

import platform
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = ("preftune", "torch", "transformers", "tokenizers", "peft", "datasets", "numpy")


def versions() -> dict[str, str]:
    """Versions of Python, the system and every package that enters the numbers."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def commit() -> str | None:
    """The commit of the source tree, where preftune runs from one; "+" says that files were changed since."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or shutil.which("git") is None:
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False).stdout.strip()

    head = git("rev-parse", "HEAD")
    return head + ("+" if git("status", "--porcelain", "--untracked-files=no") else "") if head else None


def command() -> str:
    """The command line, as a shell would take it."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
