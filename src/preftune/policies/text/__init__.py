"""Language models as policies. The names below are loaded when used: importing this package imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import CachedReference, LogpCache, cache_folder
    from .model import TextPolicy, load, merge_adapter, save
    from .tokens import TextResponses, encode

HOME = {
    "CachedReference": "cache",
    "LogpCache": "cache",
    "cache_folder": "cache",
    "TextPolicy": "model",
    "load": "model",
    "merge_adapter": "model",
    "save": "model",
    "TextResponses": "tokens",
    "encode": "tokens",
}
__all__ = ["CachedReference", "LogpCache", "TextPolicy", "TextResponses", "cache_folder", "encode", "load", "merge_adapter", "save"]


def __getattr__(name: str) -> Any:
    if name not in HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{HOME[name]}"), name)
