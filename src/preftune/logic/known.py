"""The losses whose formula is known, each with the methods of the registry that train it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

from ..types import PreftuneError
from .structure import Structure, compose, relation, with_reference


@dataclass(frozen=True)
class Equal:
    """A method of the registry whose loss, or the named part of it, is this one: same values and gradients."""

    method: str
    part: str = ""
    link: str = "logistic"
    scale: str = "sequence"
    beta: str = "its beta"
    margin: str = ""

    @property
    def label(self) -> str:
        return f"{self.method} ({self.part})" if self.part else self.method

    def __str__(self) -> str:
        settings = {"link": self.link, "scale": self.scale, "beta": self.beta, "margin": self.margin}
        return f"{self.label}: " + ", ".join(f"{name} {value}" for name, value in settings.items() if value)


@dataclass(frozen=True)
class Known:
    """A loss of the literature."""

    name: str
    formula: str  # with its clauses `given` and `both`
    about: str
    equals: tuple[Equal, ...] = ()

    @cached_property
    def structure(self) -> Structure:
        return compose(self.formula)


# arXiv:2412.17696; the names of the losses without a method of their own are the paper's or, with -ref, ours
LOSSES = (
    Known(
        "CE",
        "w",
        "the likelihood of the preferred answer alone",
        (Equal("sft", "seq_mean", scale="per_token", beta="1"), Equal("sft", "seq_sum", beta="1")),
    ),
    Known(
        "CE-unlikelihood",
        "w & ~l",
        "likelihood of the one and unlikelihood of the other, each on its own",
        (Equal("asft", "alignment term", scale="per_token", beta="1"),),
    ),
    Known(
        "CPO",
        "l -> w given w | l both w & l",
        "if the loser is valid so is the winner; both valid counts for both sides",
        (
            Equal("cpo", "preference term"),
            Equal("dpo-reference-free"),
            Equal("slic", "ranking term, delta 1", link="hinge", beta="1"),
            Equal("simpo", "gamma 0", scale="per_token"),
        ),
    ),
    Known(
        "ORPO",
        "l -> w given w xor l",
        "the same, one of the two being valid",
        (Equal("orpo", "odds-ratio term", scale="per_token", beta="1"),),
    ),
    Known("cCPO", "l -> w given w | l", "the same, one at least being valid: both valid is a success"),
    Known("unCPO", "l -> w", "the same without a condition: neither valid is a success too"),
    Known("given-loser", "l -> w given l", "the same, the loser being valid: CE in value, another table"),
    Known(
        "SimPO",
        "l -> w & m given l | w & m both l & w & m",
        "CPO with a constant m on the winner's side, log m = -gamma / beta",
        (Equal("simpo", scale="per_token", margin="its gamma / beta"),),
    ),
    Known(
        "DPO",
        "l & rw -> w & rl given l & rw | w & rl both l & rw & w & rl",
        "CPO with the reference's own preference on the other side",
        (
            Equal("dpo"),
            Equal("tr-dpo"),
            Equal("hinge", link="hinge"),
            Equal("ipo", link="squared", beta="its tau"),
            Equal("dpo-norm", scale="per_token"),
            Equal("ipo-avg", link="squared", scale="per_token", beta="its tau"),
        ),
    ),
)
REFERENCED = tuple(
    Known(f"{one.name}-ref", str(with_reference(one.structure)), f"{one.name} with the reference's own preference on the other side")
    for one in LOSSES
    if one.name in ("CE", "CE-unlikelihood", "ORPO", "cCPO", "unCPO", "given-loser")
)
KNOWN = {one.name: one for one in (*LOSSES, *REFERENCED)}


def resolve(text: str, given: str | None = None, both: str | None = None, extra: Collection[str] = ()) -> Structure:
    """A structure by the name of a known loss, in letters of any size, or by its formula."""
    named = {name.lower(): one for name, one in KNOWN.items()}.get(text.strip().lower())
    if named is None:
        return compose(text, given, both, extra)
    if given is not None or both is not None:
        raise PreftuneError(
            f"{named.name} is the name of a whole structure, needed no `given` or `both` beside it; write its formula: {named.formula}"
        )
    return named.structure


def named(structure: Structure) -> tuple[list[str], list[str]]:
    """The known losses with the same table, and those with another table whose value is the same everywhere."""
    same = [name for name, one in KNOWN.items() if relation(one.structure, structure) == "equivalent"]
    return same, [name for name, one in KNOWN.items() if name not in same and one.structure.equals(structure)]
