"""preftune optimises generative models from preferences: language models and exact games under one set of types.

    preftune.train(policy, "rpo", data, beta=0.1)

Importing the package imports no torch: a public name is looked up in its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

PUBLIC = {
    "train": "preftune.api",
    "evaluate": "preftune.api",
    "generate": "preftune.api",
    "play": "preftune.arena",
    "resolve_method": "preftune.registry",
    "PreftuneError": "preftune.types",
    "Key": "preftune.types",
    "Rows": "preftune.types",
    "Scored": "preftune.types",
    "Loss": "preftune.types",
    "Needs": "preftune.types",
    "needs": "preftune.types",
    "Context": "preftune.types",
    "Method": "preftune.types",
}

__all__ = [*PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module 'preftune' has no attribute {name!r}; it has {', '.join(PUBLIC)}")
    value = getattr(importlib.import_module(PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
