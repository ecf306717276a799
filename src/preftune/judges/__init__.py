"""Judges by name. A judge compares responses (`prefer`); some have a scale of their own (`score`)."""

from __future__ import annotations

JUDGES = {  # name -> "module:attribute", imported when used; called with the options that the user gives
    "ratings": "preftune.judges.ratings:ratings",
    "words": "preftune.judges.words:words",
    "implicit": "preftune.judges.implicit:implicit",
    "endpoint": "preftune.judges.endpoint:endpoint",
    "speaking": "preftune.judges.speaking:speaking",
    "answer": "preftune.judges.rules:answer",
    "regex": "preftune.judges.rules:regex",
    "tests": "preftune.judges.rules:tests",
    "length": "preftune.judges.rules:length",
}
MADE = "judge.json"  # what a folder holds whose judge was trained here
