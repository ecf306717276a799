"""preftune report: the page of a run, written again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..types import PreftuneError
from .options import Json
from .output import print_json


def report(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    json: Json = False,
) -> None:
    """Write report.html for a run, also for one that was broken off."""
    if not run.is_dir():
        raise PreftuneError(f"there is no folder {run}, needed the folder of a run; `preftune train --out FOLDER` makes one")
    from ..report.page import write

    page = write(run)
    if json:
        print_json({"report": str(page)})
    else:
        print(f"report  {page}")
