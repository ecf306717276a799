"""Where a name becomes a function, and a setting's text becomes a value of the right type.

A registry is a dict from name to function; this module only looks things up in one and says what was probably meant.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from .types import Method, PreftuneError

T = TypeVar("T")
INTEGER = re.compile(r"[+-]?\d+(_\d+)*")
FLOAT = re.compile(r"[+-]?((\d+(_\d+)*\.?\d*|\.\d+)(e[+-]?\d+)?|inf)", re.IGNORECASE)
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
REQUIRED = inspect.Parameter.empty  # the default of a setting that has none
REFUSED = object()  #                 a value that is not of the kind asked for

FEW = 20  # names that an error still lists


def lookup(name: str, table: Mapping[str, T], kind: str) -> T:
    """The entry `name` of a registry; an unknown name is refused with the nearest ones."""
    if name in table:
        return table[name]
    known = ", ".join(sorted(table)) if len(table) <= FEW else f"the {len(table)} that `preftune show` lists"
    raise PreftuneError(f"there is no {kind} {name!r}, needed one of {known}{_meant(name, table)}")


def _meant(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""


# --- methods --------------------------------------------------------------------------------------------------------


def resolve_method(name: str) -> Callable[..., Method]:
    """A shipped method by name or alias, or `package.module:function` for a method from outside."""
    if ":" in name:
        return import_function(name, "a function that returns a Method")
    from .methods import ALIASES, METHODS

    functions: dict[str, Callable[..., Method]] = {**METHODS, **{alias: METHODS[target] for alias, target in ALIASES.items()}}
    return lookup(name, functions, "method")


def import_function(path: str, what: str) -> Callable[..., Any]:
    """`package.module:function` from anywhere Python looks or the working folder, or `folder/file.py:function`."""
    place, _, name = path.rpartition(":")
    file = Path(place).resolve() if place.endswith(".py") else None
    if file and not file.is_file():
        raise PreftuneError(
            f"there is no file {place!r}, needed a Python file with {what}; `preftune copy METHOD FILE` writes one to start from"
        )
    module = file.stem if file else place
    if not all(part.isidentifier() for part in [*module.split("."), name]):
        raise PreftuneError(f"{path!r} is not a place of a function, needed package.module:function or file.py:function")
    folder = str(file.parent) if file else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    packages = [".".join(module.split(".")[:n]) for n in range(1, module.count(".") + 1)]
    for part in [*packages, module]:  # find_spec imports the packages above a module, so each is asked for in turn
        found = importlib.util.find_spec(part)
        if found is None or (part in packages and found.submodule_search_locations is None):
            raise PreftuneError(
                f"there is no {'package' if part in packages else 'module'} {part!r} for {path!r}, needed one that Python can import; "
                "install it, or run from the folder that holds it"
            )
    loaded = importlib.import_module(module)
    if file and Path(loaded.__file__ or "").resolve() != file:
        raise PreftuneError(f"{module!r} is already the name of {loaded.__file__}, needed a name of its own for {place}; rename the file")
    function = getattr(loaded, name, None)
    if not inspect.isfunction(function):
        own = sorted(key for key, value in vars(loaded).items() if inspect.isfunction(value) and value.__module__ == module)
        raise PreftuneError(
            f"{module} has no function {name!r}, needed {what}; its functions are: {', '.join(own) or 'none'}{_meant(name, own)}"
        )
    return function


# --- settings -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """One name a user may set: what it is when left alone, and what it may be."""

    name: str
    default: Any  #     REQUIRED where there is none
    annotation: Any  #  a type, a union or a Literal


def signature_of(function: Callable[..., Any]) -> dict[str, Setting]:
    """The hyperparameters of a method: its signature is the list."""
    hints = typing.get_type_hints(function)
    return {
        name: Setting(name, parameter.default, hints.get(name, type(parameter.default)))
        for name, parameter in inspect.signature(function).parameters.items()
    }


def fields_of(config: type) -> dict[str, Setting]:
    """The fields of a dataclass, as settings."""
    hints = typing.get_type_hints(config)
    return {
        f.name: Setting(
            f.name,
            f.default_factory() if f.default_factory is not MISSING else REQUIRED if f.default is MISSING else f.default,
            hints[f.name],
        )
        for f in fields(config)
    }


def split_settings(function: Callable[..., Any], config: type, settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sort settings into (hyperparameters of the method, fields of the training configuration), each value parsed.

    A name in both halves would be ambiguous and a name in neither is a slip: both are refused, and so is a hyperparameter
    without a default that nobody set.
    """
    method, train = signature_of(function), fields_of(config)
    hyperparameters: dict[str, Any] = {}
    training: dict[str, Any] = {}
    for name, value in settings.items():
        if name in method and name in train:
            raise PreftuneError(
                f"{name!r} is a hyperparameter of {function.__name__} and a training setting, needed a name of one of them; "
                "rename the argument of the method"
            )
        if name not in method and name not in train:
            known = ", ".join(method) or "no hyperparameters"
            raise PreftuneError(
                f"{name!r} is no setting, needed one of {function.__name__}'s ({known}) or of training's ({', '.join(train)})"
                + _meant(name, [*method, *train])
            )
        (hyperparameters if name in method else training)[name] = parse(value, (method | train)[name])
    missing = [name for name, setting in method.items() if setting.default is REQUIRED and name not in settings]
    if missing:
        raise PreftuneError(f"{function.__name__} was given no {', '.join(missing)}, needed a value; for instance --set {missing[0]}=...")
    return hyperparameters, training


def named(settings: Iterable[str], option: str, example: str) -> dict[str, str]:
    """["beta=0.1", "lr = 1e-6"] -> {"beta": "0.1", "lr": "1e-6"}; a name given twice is refused."""
    found: dict[str, str] = {}
    for text in settings:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier():
            raise PreftuneError(f"{option} was given {text!r}, needed name=value; for instance {example}")
        if name in found:
            raise PreftuneError(f"{option} {name} was given twice, as {found[name]} and {value}, needed one value; leave one out")
        found[name] = value
    return found


def arguments(function: Callable[..., Any], given: Mapping[str, Any], kind: str, besides: Sequence[str] = ()) -> dict[str, Any]:
    """Arguments of a function from texts; an unknown name is refused with a suggestion, and so is a lack of one without a default.
    `besides`: arguments that come from elsewhere."""
    known = {name: setting for name, setting in signature_of(function).items() if name not in besides}
    found = {name: parse(value, lookup(name, known, kind)) for name, value in given.items()}
    missing = [name for name, setting in known.items() if setting.default is REQUIRED and name not in found]
    if missing:
        raise PreftuneError(f"{function.__name__} was given no {', '.join(missing)}, needed a value; for instance {missing[0]}=...")
    return found


def parse(value: Any, setting: Setting) -> Any:
    """A text from the command line, or a value from YAML, as what the setting may be."""
    for kind in _kinds(setting.annotation):
        read = _read(value, kind)
        if read is not REFUSED:
            return read
    raise PreftuneError(f"{setting.name} is {value!r}, needed {words(setting.annotation)}; for instance {setting.name}={_example(setting)}")


def words(annotation: Any) -> str:
    """An annotation in words: "a number", "one of sum, mean", ..."""
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", type(None): "none"}
    return " or ".join(
        f"one of {', '.join(map(str, typing.get_args(kind)))}" if typing.get_origin(kind) is Literal else plain.get(kind, str(kind))
        for kind in reversed(_kinds(annotation))
    )


def _kinds(annotation: Any) -> list[Any]:
    """The members of a union, narrowest first, so that "none", "3" and "true" are not taken for texts."""
    members = typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    order = [type(None), bool, int, float]
    return sorted(members, key=lambda kind: order.index(kind) if kind in order else len(order) + (kind is str))


def _read(value: Any, kind: Any) -> Any:
    """The value as this kind, or REFUSED where it is not one."""
    text = str(value).strip()
    if kind is type(None):
        return None if value is None or text.lower() in ("none", "null") else REFUSED
    if kind is bool:
        return TRUTH.get(text.lower(), REFUSED)
    if typing.get_origin(kind) is Literal:
        return {str(option): option for option in typing.get_args(kind)}.get(text, REFUSED)
    if kind is int and not isinstance(value, bool):
        return int(text) if INTEGER.fullmatch(text) else REFUSED
    if kind is float and not isinstance(value, bool):
        return float(text) if FLOAT.fullmatch(text) else REFUSED
    if kind is str:
        return text if isinstance(value, str) else REFUSED
    return REFUSED


def _example(setting: Setting) -> str:
    if setting.default is not REQUIRED and setting.default is not None:
        return str(setting.default)
    first = next(kind for kind in _kinds(setting.annotation) if kind is not type(None))
    return (
        str(typing.get_args(first)[0]) if typing.get_origin(first) is Literal else {bool: "true", int: "3", float: "0.1"}.get(first, "text")
    )
