"""Preference structures: which worlds are on the winning side, on the losing side, on both or on neither."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

from ..types import PreftuneError
from .display import bracketed, polynomial, shortest
from .text import CLAUSES, MOST_ATOMS, Token, atoms_of, cofactor, column, everything, formulas, ratios, read, support, tokens

Relation = Literal["equivalent", "entails", "entailed", "incomparable"]
LABEL = {(True, True): "both", (True, False): "win", (False, True): "lose", (False, False): "none"}
GENERAL = [random.Random(row).sample(range(1, 9973), MOST_ATOMS) for row in range(4)]  # points in general position, over 9973


@dataclass(frozen=True)
class Structure:
    """A table that labels each of the 2^n worlds: the canonical form of a core formula P with a condition and an addition,

    top = (P or both) and given,   bottom = (not P or both) and given,   rho = log P(top) - log P(bottom),

    where every atom is true with its own probability, independently (weighted model counting).
    """

    atoms: tuple[str, ...]
    top: int  #     the worlds that win or do both, as a set in the sense of `text`
    bottom: int  #  the worlds that lose or do both

    @property
    def worlds(self) -> Iterator[tuple[dict[str, bool], str]]:
        """Every world with its label: win, lose, both or none."""
        for k in range(1 << len(self.atoms)):
            world = {name: bool(k >> i & 1) for i, name in enumerate(self.atoms)}
            yield world, LABEL[bool(self.top >> k & 1), bool(self.bottom >> k & 1)]

    def over(self, atoms: Sequence[str]) -> Structure:
        """The same structure over other atoms, among which are all that it depends on."""
        bit = {name: 1 << i for i, name in enumerate(self.atoms)}
        here = [sum(bit.get(name, 0) for i, name in enumerate(atoms) if k >> i & 1) for k in range(1 << len(atoms))]
        move = lambda mask: sum(1 << k for k, world in enumerate(here) if mask >> world & 1)
        return Structure(tuple(atoms), move(self.top), move(self.bottom))

    @cached_property
    def reduced(self) -> Structure:
        """Without the literals that all worlds of both sides share, which cancel from rho, and over the atoms that remain."""
        n, top, bottom = len(self.atoms), self.top, self.bottom
        for i, value in itertools.product(range(n), (True, False)):
            elsewhere = ~column(i, n) if value else column(i, n)
            if not (top | bottom) & elsewhere:
                top, bottom = cofactor(top, i, n, value), cofactor(bottom, i, n, value)
        left = {*support(top, n), *support(bottom, n)}
        return Structure(self.atoms, top, bottom).over([name for i, name in enumerate(self.atoms) if i in left])

    @property
    def negated(self) -> set[str]:
        """The atoms of whose falsehood rho reads the probability."""
        one, n = self.reduced, len(self.reduced.atoms)
        sides = (one.top, one.bottom)
        return {name for i, name in enumerate(one.atoms) for side in sides if i in support(side, n) and side & ~column(i, n)}

    def odds(self, p: Mapping[str, Any]) -> Any:
        """P(top) / P(bottom), world by world, in the arithmetic of the probabilities given: floats, fractions or tensors."""
        return probability(self.top, self.atoms, p) / probability(self.bottom, self.atoms, p)

    def moves_with(self, atoms: Collection[str]) -> bool:
        """Whether rho changes with the probabilities of these atoms: exact but for a coincidence of random fractions."""
        rest, *points = points_of(self.atoms)
        return len({self.odds({name: (row if name in atoms else rest)[name] for name in self.atoms}) for row in (rest, *points)}) > 1

    def equals(self, other: Structure) -> bool:
        """Whether rho is the same at all probabilities, also where the tables differ: exact but for a coincidence."""
        a, b = alike(self, other)
        return all(a.odds(point) == b.odds(point) for point in points_of(a.atoms))

    @property
    def clauses(self) -> tuple[str, str, str]:
        """Core, condition and addition in few words: bottom implies top, top or bottom, top and bottom."""
        implied = (everything(len(self.atoms)) & ~self.bottom) | self.top
        return shortest(implied, self.atoms), shortest(self.top | self.bottom, self.atoms), shortest(self.top & self.bottom, self.atoms)

    @property
    def ratio(self) -> str:
        """P(top) / P(bottom) as polynomials, without what cancels; `decompile` reads it."""
        one = self.reduced
        return f"{bracketed(polynomial(one.top, one.atoms), '+-')} / {bracketed(polynomial(one.bottom, one.atoms), '+-*')}"

    def __str__(self) -> str:
        core, given, both = self.clauses
        return core + f" given {given}" * (given != "true") + f" both {both}" * (both != "false")


def points_of(atoms: Sequence[str]) -> list[dict[str, Fraction]]:
    """A few exact probabilities for these atoms, in general position."""
    return [{name: Fraction(k, 9973) for name, k in zip(atoms, row, strict=False)} for row in GENERAL]


def probability(mask: int, atoms: Sequence[str], p: Mapping[str, Any]) -> Any:
    """The sum over the worlds of a set of the product over atoms of p where it is true and 1 - p where it is not."""
    total: Any = 0
    for k in range(1 << len(atoms)):
        if mask >> k & 1:
            world: Any = 1
            for i, name in enumerate(atoms):
                world = world * (p[name] if k >> i & 1 else 1 - p[name])
            total = total + world
    return total


# --- from text ------------------------------------------------------------------------------------------------------


def compose(formula: str, given: str | None = None, both: str | None = None, extra: Collection[str] = ()) -> Structure:
    """The structure of a core formula, of the worlds left by `given` and of those put on both sides by `both`.

    The formula may carry the two itself: "l -> w given w | l both w & l". Atoms are those of `text.ATOMS` and the extra ones.
    """
    clauses = _clauses(formula)
    for name, text in zip(CLAUSES, (given, both)):
        if text is not None and name in clauses:
            clauses[name][0].refuse(f"the formula has its own `{name}`", f"it once, but {text!r} was given too", "leave one out")
        if text is not None:
            clauses[name] = _ended(tokens(text), text)
    atoms = atoms_of([token for part in clauses.values() for token in part], extra)
    grammar, whole = formulas(atoms), everything(len(atoms))
    core = read(clauses["core"], grammar)
    left = read(clauses["given"], grammar) if "given" in clauses else whole
    added = read(clauses["both"], grammar) if "both" in clauses else 0
    top, bottom = (core | added) & left, (whole & ~core | added) & left
    everywhere = "everywhere" if left == whole else f"wherever its condition {shortest(left, atoms)!r} holds"
    if not left:
        raise PreftuneError(f"the condition of {formula!r} is a contradiction, needed one that leaves worlds to compare; weaken `given`")
    if not bottom:
        raise PreftuneError(
            f"{formula!r} is a tautology: true {everywhere}, needed a preference that can be violated; "
            "as it stands the losing side has probability 0 and there is nothing to learn"
        )
    if not top:
        raise PreftuneError(
            f"{formula!r} is a contradiction: false {everywhere}, needed a preference that can be satisfied; "
            "as it stands the winning side has probability 0 whatever is learned"
        )
    return Structure(atoms, top, bottom)


def decompile(ratio: str, extra: Collection[str] = ()) -> Structure:
    """The structure whose rho is the log of a ratio of polynomials, such as "w*(1 - l) / (l*(1 - w))".

    With N and D the formulas of numerator and denominator: core D -> N, given N or D, both N and D, so that top = N, bottom = D.
    """
    found = _ended(tokens(ratio), ratio)
    atoms = atoms_of(found, extra)
    top, bottom = read(found, ratios(atoms))
    for side, name in ((top, "numerator"), (bottom, "denominator")):
        if not side:
            raise PreftuneError(f"the {name} of {ratio!r} is 0, needed a polynomial that is not; as it stands the ratio is 0 or infinite")
    return Structure(atoms, top, bottom)


def _clauses(text: str) -> dict[str, list[Token]]:
    """The tokens of the core, of `given` and of `both`, each with its end."""
    found: dict[str, list[Token]] = {"core": []}
    current = "core"
    for token in tokens(text):
        if token.name in CLAUSES:
            if token.name in found:
                token.refuse(f"stands a second `{token.name}`", "one at most")
            found[current].append(Token("", "end", token.at, text, token.written))
            current = token.name
            found[current] = []
        else:
            found[current].append(token)
    found[current] = _ended(found[current], text)
    return found


def _ended(found: list[Token], text: str) -> list[Token]:
    return [*found, Token("", "end", len(text), text)]


# --- how structures are related -------------------------------------------------------------------------------------


def alike(a: Structure, b: Structure) -> tuple[Structure, Structure]:
    """Both over the atoms of either."""
    atoms = tuple(dict.fromkeys((*a.atoms, *b.atoms)))
    return a.over(atoms), b.over(atoms)


def relation(a: Structure, b: Structure) -> Relation:
    """a entails b where a's winning worlds are among b's and b's losing worlds among a's: then a's loss is never below b's."""
    a, b = alike(a, b)
    down = not a.top & ~b.top and not b.bottom & ~a.bottom
    up = not b.top & ~a.top and not a.bottom & ~b.bottom
    return "equivalent" if down and up else "entails" if down else "entailed" if up else "incomparable"


def apart(a: Structure, b: Structure) -> tuple[dict[str, Fraction] | None, dict[str, Fraction] | None]:
    """A point of a grid where a's ratio is the larger by most, and one where b's is; None where there is none."""
    a, b = alike(a, b)
    grid = [
        dict(zip(a.atoms, p, strict=True))
        for p in itertools.product((Fraction(1, 10), Fraction(1, 2), Fraction(9, 10)), repeat=len(a.atoms))
    ]
    by = {i: a.odds(p) / b.odds(p) for i, p in enumerate(grid)}
    most, least = max(by, key=lambda i: by[i]), min(by, key=lambda i: by[i])
    return grid[most] if by[most] > 1 else None, grid[least] if by[least] < 1 else None


def covers(structures: Mapping[str, Structure]) -> list[tuple[str, str]]:
    """The lines of the Hasse diagram: pairs of names, the first entails the second and nothing stands between them."""
    below = {(a, b) for a in structures for b in structures if relation(structures[a], structures[b]) == "entails"}
    return sorted((a, b) for a, b in below if not any((a, c) in below and (c, b) in below for c in structures))


def with_reference(one: Structure) -> Structure:
    """The same preference over the reference's own: rl joins the winning side, rw the losing one."""
    atoms = tuple(dict.fromkeys((*one.atoms, "rw", "rl")))
    wide, n = one.over(atoms), len(atoms)
    return Structure(atoms, wide.top & column(atoms.index("rl"), n), wide.bottom & column(atoms.index("rw"), n))
