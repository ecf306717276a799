"""preftune merge: an adapter folded into its base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import Json
from .output import print_json


def merge(
    adapter: Annotated[Path, typer.Argument(help="A PEFT adapter folder, for instance runs/mine/model.")],
    out: Annotated[Path, typer.Argument(help="Where the full model goes; replaced if it exists.")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    json: Json = False,
) -> None:
    """Merge an adapter into its base model: an ordinary model folder that needs no peft."""
    from ..policies.text import merge_adapter

    folder = merge_adapter(adapter, out, dtype=dtype)
    if json:
        print_json({"model": str(folder)})
    else:
        print(f"model   {folder}")
