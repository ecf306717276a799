"""Options that several verbs share, and the reading of name=value."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

from ..registry import arguments, named
from ..types import PreftuneError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="name=value of a setting; may be repeated.")]
Load = Annotated[
    list[str] | None,
    typer.Option("--load", help="name=value: how the model is loaded, for instance device=cpu or train=lora; may be repeated."),
]
Read = Annotated[
    list[str] | None,
    typer.Option("--read", help="name=value: how data are read, for instance format=pair or max_line_bytes=2e8; may be repeated."),
]
Rename = Annotated[list[str] | None, typer.Option("--rename", help="theirs=ours: a column's name; may be repeated.")]
EXAMPLE = {
    "--read": "split=test",
    "--rename": "question=prompt",
    "--set": "beta=0.1",
    "--sweep": "beta=0.03,0.1,0.3",
    "--load": "train=lora",
    "--at": "w=0.3",
}


def pairs(settings: Sequence[str], option: str = "--set") -> dict[str, str]:
    """["beta=0.1", "lr = 1e-6"] -> {"beta": "0.1", "lr": "1e-6"}; a name given twice is refused."""
    example = f"{option} {EXAMPLE[option]}" if option in EXAMPLE else "egpo,eta=0.5"  # a method with settings of its own
    return named(settings, option, example)


def refuse(settings: Iterable[str], names: Sequence[str], where: str) -> None:
    """Names that are options of the command and so cannot be settings."""
    for name in settings:
        if name in names:
            raise PreftuneError(
                f"{where} sets {name!r}, needed a hyperparameter or a training setting; see the command's --help for {name!r}"
            )


def loading(options: Mapping[str, Any]) -> dict[str, Any]:
    """How a model is loaded: texts as values of the types that the loader takes."""
    if not options:
        return {}
    from ..policies.text.model import load

    return arguments(load, options, "loading option", besides=("model",))


def asking(options: Mapping[str, Any]) -> dict[str, Any]:
    """How a model behind an address is asked, in the same way."""
    from ..judges.teacher import teacher

    return arguments(teacher, options, "option of an endpoint", besides=("url",))


def reading(options: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    """How data are read, in the same way; `rename` maps columns of the file to ours."""
    if not options and not rename:
        return {}
    from ..data import load

    return {**arguments(load, options, "reading option", besides=("spec",)), "columns": dict(rename)}
