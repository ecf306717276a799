"""Sets of worlds written for people: as short formulas, and as polynomials of probabilities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, reduce
from operator import xor

from .text import cofactor, column, everything, support

Term = list[tuple[str, bool]]  # literals that hold together: an atom, and whether it is affirmed


@cache
def shortest(mask: int, atoms: tuple[str, ...]) -> str:
    """A formula for a set of worlds with few literals: "l -> w", "w xor l", "w & l | rw"."""
    n = len(atoms)
    left = support(mask, n)
    if not left:
        return "true" if mask else "false"
    if len(left) > 1 and mask == reduce(xor, (column(i, n) for i in left)):
        return " xor ".join(atoms[i] for i in left)
    if len(left) == 2 and mask == everything(n) & ~(column(left[0], n) ^ column(left[1], n)):
        return " <-> ".join(atoms[i] for i in left)
    either, every = _terms(mask, atoms), _terms(everything(n) & ~mask, atoms)
    if sum(map(len, either)) <= sum(map(len, every)):
        return _or(either)
    denied = [[[(name, not sign)] for name, sign in term] for term in every]  # not (a & b | c) is (not a or not b) and not c
    return " & ".join(bracketed(_or(clause), "|>") for clause in denied)


def _terms(mask: int, atoms: Sequence[str]) -> list[Term]:
    """The terms of a small disjunction that is true in these worlds alone (Quine-McCluskey)."""
    from sympy import And, Not, Or, Symbol
    from sympy.logic import SOPform

    worlds = [[k >> i & 1 for i in range(len(atoms))] for k in range(1 << len(atoms)) if mask >> k & 1]
    found = SOPform([Symbol(name) for name in atoms], worlds)
    terms = [term.args if isinstance(term, And) else (term,) for term in (found.args if isinstance(found, Or) else (found,))]
    order = {name: i for i, name in enumerate(atoms)}
    literals = [[(str(one.args[0]), False) if isinstance(one, Not) else (str(one), True) for one in term] for term in terms]
    key = lambda literal: (not literal[1], order[literal[0]])
    return sorted((sorted(term, key=key) for term in literals), key=lambda term: (len(term), *map(key, term)))


def _or(terms: Sequence[Term]) -> str:
    """A disjunction; what it denies singly becomes a premise: not l or w reads "l -> w"."""
    premises = [name for term in terms if len(term) == 1 for name, sign in term if not sign]
    rest = [" & ".join(name if sign else f"~{name}" for name, sign in term) for term in terms if len(term) > 1 or term[0][1]]
    if premises and rest:
        return f"{' & '.join(premises)} -> {' | '.join(rest)}"
    return " | ".join(rest or [f"~{name}" for name in premises])


@cache
def polynomial(mask: int, atoms: tuple[str, ...]) -> str:
    """The probability of a set of worlds as a polynomial, by expanding atom after atom: "w*(1 - l)", "1 - l*(1 - w)"."""
    n = len(atoms)
    denied = f"1 - {bracketed(_expanded(everything(n) & ~mask, atoms), '+-')}"
    return min(_expanded(mask, atoms), denied, key=_effort) if support(mask, n) else _expanded(mask, atoms)


def _expanded(mask: int, atoms: tuple[str, ...]) -> str:
    n = len(atoms)
    ways = ["1" if mask else "0"]
    for i in support(mask, n):
        sides = [(name, cofactor(mask, i, n, value)) for name, value in ((atoms[i], True), (f"(1 - {atoms[i]})", False))]
        parts = [name if side == everything(n) else f"{name}*{bracketed(polynomial(side, atoms), '+-')}" for name, side in sides if side]
        ways.append(f"1 - {atoms[i]}" if parts == [f"(1 - {atoms[i]})"] else " + ".join(parts))
    return min(ways[1:] or ways, key=_effort)


def _effort(text: str) -> tuple[int, int, bool]:
    """Atoms to read, then characters; a positive factor comes before a negative one."""
    return len(re.findall(r"[^\W\d]\w*", text)), len(text), text.startswith("(")


def bracketed(text: str, signs: str) -> str:
    """In brackets where one of the signs stands outside of all brackets."""
    level = 0
    for character in text:
        level += (character == "(") - (character == ")")
        if not level and character in signs:
            return f"({text})"
    return text
