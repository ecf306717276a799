"""preftune copy: a method's file becomes yours."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..types import PreftuneError
from .options import Json
from .output import print_json, write


def copy(
    method: Annotated[str, typer.Argument(help="A method's name.")],
    file: Annotated[Path, typer.Argument(help="Where to write it, for instance my_dpo.py.")],
    force: Annotated[bool, typer.Option("--force", help="Replace a file that exists.")] = False,
    json: Json = False,
) -> None:
    """Write a method's source to a file of your own, which `preftune train FILE:function` runs."""
    from ..registry import resolve_method

    function = resolve_method(method)
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise PreftuneError(
            f"the file is {str(file)!r}, needed a Python file that can be imported; for instance {method.replace('-', '_')}_mine.py"
        )
    if file.exists() and not force:
        raise PreftuneError(f"{file} exists, needed a new file; choose another name, or add --force to replace it")
    module = sys.modules[function.__module__]
    write(file, absolute(inspect.getsource(module), module.__package__ or ""))
    place = f"{file}:{function.__name__}"
    if json:
        print_json({"file": str(file), "method": place})
    else:
        print(f"{file} holds {method}. Change it, then:\n\n    preftune train {place} --model MODEL --data DATA")


def absolute(source: str, package: str) -> str:
    """The source with its relative imports made absolute, so that it runs from anywhere."""

    def name(match: re.Match[str]) -> str:
        dots, rest = match.groups()
        base = package.split(".")[: len(package.split(".")) - len(dots) + 1]
        return f"from {'.'.join([*base, *([rest] if rest else [])])} import"

    return re.sub(r"^from (\.+)([\w.]*) import", name, source, flags=re.MULTILINE)
