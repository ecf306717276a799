"""preftune optimises generative models from preferences: language models and exact games under one set of types.

    run = preftune.train("path/of/a/model", "rpo", "pairs.jsonl", beta=0.1)

Importing the package imports no torch: a public name is looked up in its module when it is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

PUBLIC = {
    name: f"preftune.{module}"
    for module, names in {
        "api": "train plan resume evaluate judge_test generate merge load_data load_policy",
        "contest": "arena",
        "playing": "play",
        "grid": "sweep",
        "registry": "resolve_method",
        "solving": "solve",
        "judging": "train_judge",
        "types": "PreftuneError Key Rows Scored Loss Needs needs Context Method Policy Judge",
    }.items()
    for name in names.split()
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
