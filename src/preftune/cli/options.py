"""Options that several verbs share, and the reading of name=value."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any

import typer

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
    found: dict[str, str] = {}
    for text in settings:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier():
            example = f"{option} {EXAMPLE[option]}" if option in EXAMPLE else "egpo,eta=0.5"  # a method with settings of its own
            raise PreftuneError(f"{option} was given {text!r}, needed name=value; for instance {example}")
        if name in found:
            raise PreftuneError(f"{option} {name} was given twice, as {found[name]} and {value}, needed one value; leave one out")
        found[name] = value
    return found


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

    return _arguments(load, options, "loading option")


def reading(options: Mapping[str, Any], rename: Mapping[str, str]) -> dict[str, Any]:
    """How data are read, in the same way; `rename` maps columns of the file to ours."""
    if not options and not rename:
        return {}
    from ..data import load

    return {**_arguments(load, options, "reading option"), "columns": dict(rename)}


def _arguments(function: Callable[..., Any], options: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Keyword arguments of a function from texts; an unknown name is refused with a suggestion."""
    from ..registry import REQUIRED, lookup, parse, signature_of

    known = {name: setting for name, setting in signature_of(function).items() if setting.default is not REQUIRED}
    return {name: parse(value, lookup(name, known, kind)) for name, value in options.items()}
