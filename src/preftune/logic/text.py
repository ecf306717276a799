"""Formulas and ratios read from text into truth tables. Nothing that a user wrote is ever evaluated as a program.

A world says of every atom whether it is true: atom i is true in world k where bit i of k is set. What a formula means is the
set of worlds in which it is true: an integer whose bit k is set where world k belongs to the set.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Generic, NoReturn, TypeVar

from ..types import PreftuneError

V = TypeVar("V")

ATOMS = {
    "w": "the preferred answer under the policy",
    "l": "the other answer under the policy",
    "rw": "the preferred answer under the reference",
    "rl": "the other answer under the reference",
    "m": "a constant: its log-probability is minus the margin",
}
LONG = {"winner": "w", "loser": "l", "reference_winner": "rw", "reference_loser": "rl", "margin": "m"}
MOST_ATOMS = 6  #   a table has 2^n worlds
MOST_LEVELS = 60  # of brackets, negations and arrows inside one another
CLAUSES = ("given", "both")

SPELLINGS = {
    "not": ("~", "!", "¬"),
    "and": ("&", "&&", "∧"),
    "or": ("|", "||", "∨"),
    "xor": ("^", "⊕"),
    "implies": ("->", "=>", "→"),
    "iff": ("<->", "<=>", "↔"),
}
SIGNS = {sign: name for name, signs in SPELLINGS.items() for sign in signs}
TOKEN = re.compile(
    r"(?P<word>[^\W\d]\w*)|(?P<number>\d[\d.]*)|(?P<sign>" + "|".join(map(re.escape, sorted(SIGNS, key=len, reverse=True))) + r"|\S)"
)


@dataclass(frozen=True)
class Token:
    """A word, number or sign, under its plain name: "implies" for "->", "w" for "winner". At the end of a text the kind is "end"."""

    name: str
    kind: str
    at: int  #   position in the text, from 0
    text: str  # all of it
    written: str = ""

    def refuse(self, found: str, needed: str, todo: str = "") -> NoReturn:
        """Raise what is wrong here, with the place."""
        place = f"in {self.text!r} at character {self.at + 1}" if self.at < len(self.text) else f"at the end of {self.text!r}"
        raise PreftuneError(f"{place} {found}, needed {needed}" + (f"; {todo}" if todo else ""))

    def __str__(self) -> str:
        return repr(self.written) if self.written else "nothing"


def tokens(text: str) -> list[Token]:
    """The tokens of a text, without the end."""
    return [
        Token(LONG.get(m[0], SIGNS.get(m[0], m[0])), "sign" if m[0] in SPELLINGS else str(m.lastgroup), m.start(), text, m[0])
        for m in TOKEN.finditer(text)
    ]


def atoms_of(found: Iterable[Token], extra: Collection[str] = ()) -> tuple[str, ...]:
    """The atoms that tokens name, known ones first; unknown names and too many are refused."""
    words = {token.name: token for token in found if token.kind == "word" and token.name not in ("true", "false", *CLAUSES)}
    for name, token in words.items():
        if name not in ATOMS and name not in extra:
            near = difflib.get_close_matches(name.lower(), [*LONG, *ATOMS, *extra], n=1, cutoff=0.5)
            known = ", ".join(f"{long} ({short})" for long, short in LONG.items())
            token.refuse(f"there is an unknown atom {name!r}", f"one of {known}", f"did you mean {near[0]}?" if near else "")
    if len(words) > MOST_ATOMS:
        token = list(words.values())[MOST_ATOMS]
        token.refuse(f"stands atom number {MOST_ATOMS + 1} of {len(words)} ({', '.join(words)})", f"at most {MOST_ATOMS}", "use fewer")
    return tuple(sorted(words, key=lambda name: (list(ATOMS).index(name) if name in ATOMS else len(ATOMS), name)))


@dataclass(frozen=True)
class Infix(Generic[V]):
    """An operator between two operands: binds them by its powers, the higher the closer, and says what the whole means."""

    left: int
    right: int
    meaning: Callable[[V, V, Token], V]


@dataclass(frozen=True)
class Grammar(Generic[V]):
    """What the words and signs of a language mean."""

    operand: Callable[[Token], V | None]  #                   None: no operand
    prefix: Mapping[str, tuple[int, Callable[[V], V]]]
    infix: Mapping[str, Infix[V]]
    example: str  #                                          of an operand, for messages


def read(found: Sequence[Token], grammar: Grammar[V]) -> V:
    """The meaning of tokens, by precedence climbing; they end with a token of kind "end"."""
    place = 0

    def expression(above: int, level: int) -> V:
        nonlocal place
        token = found[place]
        if level > MOST_LEVELS:
            token.refuse(f"begins level {level}", f"at most {MOST_LEVELS} levels of brackets, negations and arrows", "write it shorter")
        place += token.kind != "end"
        if token.name == "(":
            value = expression(0, level + 1)
            if found[place].name != ")":
                opened = f"stands {found[place]}"
                found[place].refuse(opened, f"')' for the bracket opened at character {token.at + 1}, or an operator before it")
            place += 1
        elif token.name in grammar.prefix:
            power, prefixed = grammar.prefix[token.name]
            value = prefixed(expression(power, level + 1))
        else:
            operand = grammar.operand(token)
            if operand is None:
                token.refuse(f"stands {token}", grammar.example)
            value = operand
        while (token := found[place]).name in grammar.infix and grammar.infix[token.name].left > above:
            place += 1
            infix = grammar.infix[token.name]
            value = infix.meaning(value, expression(infix.right, level + 1), token)
        return value

    value = expression(0, 0)
    if found[place].kind != "end":
        found[place].refuse(f"stands {found[place]}", f"one of {', '.join(grammar.infix)} between two operands, or the end")
    return value


# --- sets of worlds -------------------------------------------------------------------------------------------------


def everything(n: int) -> int:
    """All worlds over n atoms."""
    return (1 << (1 << n)) - 1


@cache
def column(i: int, n: int) -> int:
    """The worlds over n atoms in which atom i is true."""
    return sum(1 << k for k in range(1 << n) if k >> i & 1)


def cofactor(mask: int, i: int, n: int, value: bool) -> int:
    """What is left of a set when atom i is known: a set that does not depend on atom i."""
    side = mask & (column(i, n) if value else ~column(i, n))
    return side | (side >> (1 << i) if value else side << (1 << i))


def support(mask: int, n: int) -> list[int]:
    """The atoms on which a set depends."""
    return [i for i in range(n) if cofactor(mask, i, n, True) != cofactor(mask, i, n, False)]


# --- the two languages ----------------------------------------------------------------------------------------------


def formulas(atoms: Sequence[str]) -> Grammar[int]:
    """Propositional formulas: not, and, xor, or, implies (to the right), iff, in this order of binding."""
    n = len(atoms)
    whole = everything(n)
    values = {"true": whole, "false": 0} | {name: column(i, n) for i, name in enumerate(atoms)}
    return Grammar(
        operand=lambda token: values.get(token.name) if token.kind == "word" else None,
        prefix={"not": (60, lambda a: whole & ~a)},
        infix={
            "and": Infix(50, 50, lambda a, b, token: a & b),
            "xor": Infix(40, 40, lambda a, b, token: a ^ b),
            "or": Infix(30, 30, lambda a, b, token: a | b),
            "implies": Infix(21, 20, lambda a, b, token: (whole & ~a) | b),
            "iff": Infix(10, 10, lambda a, b, token: whole & ~(a ^ b)),
        },
        example="an atom such as w, true, false, not or '('",
    )


Ratio = tuple[int, int]  # sets of worlds whose probabilities are numerator and denominator


def ratios(atoms: Sequence[str]) -> Grammar[Ratio]:
    """Ratios of disjoint multilinear polynomials: p is an atom, 1 - u its negation, u * v both, u + v either.

    u * v needs u and v over different atoms, u + v needs that they exclude one another, u - v that v implies u: only then is the
    probability of the formula the value of the polynomial.
    """
    n = len(atoms)
    whole = everything(n)
    values = {name: (column(i, n), whole) for i, name in enumerate(atoms)} | {"1": (whole, whole)}

    def product(u: int, v: int, token: Token) -> int:
        shared = [atoms[i] for i in support(u, n) if i in support(v, n)]
        if shared:
            token.refuse(f"both factors contain {', '.join(shared)}", "factors over different atoms", "a polynomial of degree 1 in each")
        return u & v

    def plain(a: Ratio, b: Ratio, token: Token) -> tuple[int, int]:
        if a[1] != whole or b[1] != whole:
            token.refuse("a fraction is added or subtracted", "one numerator over one denominator", "bring it to the form N / D")
        return a[0], b[0]

    def add(a: Ratio, b: Ratio, token: Token) -> Ratio:
        u, v = plain(a, b, token)
        if u & v:
            token.refuse("two terms are true together", "terms that exclude one another", "for u or v write u + (1 - u)*v")
        return u | v, whole

    def subtract(a: Ratio, b: Ratio, token: Token) -> Ratio:
        u, v = plain(a, b, token)
        if v & ~u:
            token.refuse("what is subtracted is no part of the rest", "u - v where v implies u", "for instance 1 - l or w - w*l")
        return u & ~v, whole

    return Grammar(
        operand=lambda token: values.get(token.name),
        prefix={},
        infix={
            "+": Infix(10, 10, add),
            "-": Infix(10, 10, subtract),
            "*": Infix(20, 20, lambda a, b, token: (product(a[0], b[0], token), product(a[1], b[1], token))),
            "/": Infix(20, 20, lambda a, b, token: (product(a[0], b[1], token), product(a[1], b[0], token))),
        },
        example="an atom such as w, the number 1 or '('",
    )
