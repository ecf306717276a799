"""The page in docs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from .. import provenance
from ..exact.games import game
from .claims import CLAIMS
from .record import OTHERS, RECORDS
from .runs import Course, courses

GAMES = ("rps", "condorcet", "rand10", "bt10", "gpm20")
NO_SOLVER = ("osp", "online-dpo", "xpo", "vpo")
PULLED = tuple(name for name, record in RECORDS.items() if record.pulled and name not in NO_SOLVER)
FREE = tuple(name for name, record in RECORDS.items() if not record.pulled)


@dataclass(frozen=True)
class Sheet:
    title: str
    names: tuple[str, ...]
    eta: float
    beta: float
    steps: int

    def row(self, name: str, games: Sequence[str] = GAMES) -> str:
        """The line of a method: a cell for every game, in the order of the games."""
        record = RECORDS[name]
        asked = [one for one in games if record.sure or float(game(one).min()) > 0]
        found: dict[str, Course] = {}
        for _, some in groupby(sorted(asked, key=lambda one: len(game(one))), key=lambda one: len(game(one))):
            found |= courses(record, tuple(some), self.eta, self.beta, self.steps)
        return " | ".join([f"| {name}", *(str(found[one]) if one in found else "refused" for one in games)]) + " |"


SHEETS = (
    Sheet("With a pull of .1, eta = .5", PULLED, 0.5, 0.1, 2000),
    Sheet("With a pull of .01, eta = .8: the setting in which EGPO's authors compare", PULLED, 0.8, 0.01, 3000),
    Sheet("Without a pull, eta = .1 (mpo: to its magnet, .1)", FREE, 0.1, 0.1, 4000),
    Sheet("Pairs against log-odds, beta = 1, eta = .5: no solvers of the game", NO_SOLVER, 0.5, 1.0, 1500),
)


def page(command: str, claims: bool = True) -> str:
    commit = provenance.commit() or "unknown"
    changed = ", with changes" if commit.endswith("+") else ""
    lines = [
        "# Conformance on exact games",
        "",
        f"`{command}`, commit {commit[:12]}{changed}; exact play, nothing is drawn, no seed enters.",
        "",
        "Every method starts at mu = softmax(default_rng(1).normal(n)) and steps by its closed form, which its composition equals to",
        "1e-12 in every step tested (`tests/test_conformance.py`). A cell says:",
        "",
        "- **calls** of the judge until the duality gap stays at or below 1e-6, where the last policy arrives; then the rate measured",
        "  and, in brackets, predicted: the factor by which one step shrinks the distance to the limit. Measured by least squares on log",
        "  KL(limit, p) from 1e-6 down to 1e-13; predicted from the derivative of the step at the limit",
        "- rests at a gap: the last policy goes to a known point that is not the equilibrium of the game that it plays",
        "- no rest, or on its way, at the gap after the last step, with that of the average of all policies where it is smaller",
        "",
        "A predicted rate above 1 says that the limit is unstable at this step. One call is one product with the win rates; rounds are",
        "solved exactly. The gap is that of the game with the pull, or without one where the method has none.",
        "",
    ]
    for sheet in SHEETS:
        lines += [f"## {sheet.title}", "", f"{sheet.steps} steps at most.", ""]
        lines += [f"| method | {' | '.join(GAMES)} |", "|---" * (1 + len(GAMES)) + "|", *(sheet.row(name) for name in sheet.names), ""]
    lines += ["## What theory says", "", "| method | statement | source |", "|---|---|---|"]
    lines += [f"| {name} | {record.theory} | {link(record.source)} |" for name, record in RECORDS.items()]
    lines += [
        "",
        "Methods that play no game, or take no exact step, and where they end (same file; srpo, on-policy: `tests/test_online.py`):",
        "",
    ]
    lines += ["| method | where it ends | source |", "|---|---|---|"]
    lines += [f"| {name} | {end} | {link(source)} |" for name, (end, source) in OTHERS.items()]
    if claims:
        lines += ["", "## Claims, measured at stated settings", "", "| claim | source | measured | verdict |", "|---|---|---|---|"]
        lines += [f"| {claim} | {link(source)} | {measure()} | {verdict} |" for claim, source, measure, verdict in CLAIMS]
    return "\n".join(lines) + "\n"


def link(source: str) -> str:
    return (
        "ours"
        if source == "none"
        else ", ".join(f"arXiv:{one}" if one[:2] in ("17", "20", "22", "23", "24", "25") else one for one in source.split(", "))
    )
