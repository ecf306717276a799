"""Key phrases of a text by RAKE, and copies of the text from which ever more of them are taken away.

RAKE  Rose, Engel, Cramer and Cowley 2010: candidate phrases are the runs of words between stop-words and punctuation; a
      word's score is degree / frequency, where its degree adds up the lengths of the candidates that hold it; a phrase's
      score is the sum over its words.

Written here and not taken from a library: those there are (rake-nltk, multi-rake; last released in 2021) fetch word lists
at run time or compile a language detector, drop phrases of more than three words, and return lower-case strings without
their places in the text, which is what removing needs. The stop-words are the function words of English: in another
language with blanks between its words the candidates become whole clauses.

Prose only. Where fewer than three quarters of the visible characters are letters (code, tables), where half of them belong
to a script without blanks (Chinese, Japanese, Thai, ...), or where nothing but stop-words is left, the text is cut into at
most PIECES equal pieces, of which the last counts most: what is taken away is then the end of the text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from ..types import PreftuneError

if TYPE_CHECKING:
    import numpy as np

Span = tuple[int, int]  # characters [start, end)
Remove = Literal["keyphrases", "random"]

PIECES = 8
FUNCTION_WORDS = """
    a an the this that these those such some any each every all both either neither no none not nor or and but if then else than as so
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers herself it its itself
    they them their theirs themselves one ones who whom whose which what when where why how whether while because since until though
    although unless about above across after against along among around at before behind below beneath beside besides between beyond by
    down during except for from in inside into like near of off on onto out outside over past per through throughout to toward towards
    under up upon via with within without is am are was were be been being do does did doing done have has had having can could ca may
    might must shall should will would wo ought let there here also too very just only even still yet again once ever never always often
    more most much many few less least other another own same now rather quite however therefore thus hence etc
"""
STOP_WORDS = tuple(FUNCTION_WORDS.split())
WORD = re.compile(r"\w+(?:['’\-]\w+)*")
ENDING = re.compile(r"(n['’]t|['’]\w+)$")  # don't, it's, film's
BLANKS = re.compile(r"[ \t]*")
NO_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def candidates(text: str) -> list[list[Span]]:
    """The runs of words between stop-words and punctuation, in their order, each as the places of its words."""
    found: list[list[Span]] = []
    end = -1  # of the word before, where a run may go on
    for match in WORD.finditer(text):
        if ENDING.sub("", match[0].lower()) in {*STOP_WORDS, ""}:
            end = -1
            continue
        if end >= 0 and BLANKS.fullmatch(text, end, match.start()):
            found[-1].append(match.span())
        else:
            found.append([match.span()])
        end = match.end()
    return found


def rake(text: str) -> dict[str, float]:
    """Each phrase in lower case with its score, best first; equal scores in the order of the text."""
    phrases = [[text[start:end].lower() for start, end in run] for run in candidates(text)]
    frequency = Counter(word for phrase in phrases for word in phrase)
    degree: Counter[str] = Counter()
    for phrase in phrases:
        for word in phrase:
            degree[word] += len(phrase)
    scores = {" ".join(phrase): sum(degree[word] / frequency[word] for word in phrase) for phrase in phrases}
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def is_prose(text: str) -> bool:
    """Mostly letters, of scripts that put blanks between words."""
    visible = "".join(text.split())
    letters = sum(character.isalpha() for character in visible)
    return 4 * letters >= 3 * len(visible) and 2 * len(NO_BLANKS.findall(visible)) < len(visible)


@lru_cache(maxsize=1 << 16)
def ranked(text: str) -> tuple[tuple[Span, ...], tuple[tuple[int, ...], ...]]:
    """(units, phrases): the places of all words, and the phrases as numbers of units, the most telling first."""
    runs = candidates(text) if is_prose(text) else []
    if runs:
        units = tuple(match.span() for match in WORD.finditer(text))
        number = {span: i for i, span in enumerate(units)}
        places: dict[str, list[int]] = {phrase: [] for phrase in rake(text)}
        for run in runs:
            places[" ".join(text[start:end].lower() for start, end in run)] += [number[span] for span in run]
        return units, tuple(map(tuple, places.values()))
    words = [match.span() for match in re.finditer(r"\S+", text)]
    if len(words) < PIECES:
        words = [match.span() for match in re.finditer(r"\S", text)]
    count = min(PIECES, len(words))
    cuts = [len(words) * piece // count for piece in range(count + 1)] if count else []
    return tuple(words), tuple(tuple(reversed(range(a, b))) for a, b in reversed(list(zip(cuts, cuts[1:], strict=False))))


def without(text: str, spans: Sequence[Span]) -> str:
    """The text without these places and the blanks before them."""
    kept, at = "", 0
    for start, end in sorted(spans):
        kept += text[at:start].rstrip(" \t")
        at = end
    return (kept + text[at:]).strip() if spans else text


def filled(text: str, spans: Sequence[Span], words: Sequence[str]) -> str:
    """The text with a word in the place of each span."""
    kept, at = "", 0
    for (start, end), word in sorted(zip(spans, words, strict=True)):
        kept, at = kept + text[at:start] + word, end
    return kept + text[at:]


def degraded(
    text: str, degrees: int, draw: np.random.Generator, *, remove: Remove = "keyphrases", replace: bool = False
) -> list[str | None]:
    """Copies of degree 1 .. degrees - 1: from copy d the best share d / (degrees - 1) of the phrases is gone.

    remove   "random" takes away as many words, drawn from all words of the text; what is gone from a copy is gone from the next
    replace  puts a function word in the place of every word that goes, so that lengths stay

    A copy that equals the text or an earlier copy is None: one string has one degree. At least one word (of a text without
    words, one character) always stays.
    """
    if degrees < 2:
        raise PreftuneError(f"degrees is {degrees}, needed 2 or more: the text itself and at least one copy")
    units, phrases = ranked(text)
    order = [unit for phrase in phrases for unit in phrase]
    ends = [0]
    for phrase in phrases:
        ends.append(ends[-1] + len(phrase))
    if remove == "random":
        order = draw.permutation(len(units)).tolist()
    words = [STOP_WORDS[i] for i in draw.integers(len(STOP_WORDS), size=len(units))] if replace else []
    copies: list[str | None] = []
    seen = {text}
    for degree in range(1, degrees):
        gone = order[: min(ends[len(phrases) * degree // (degrees - 1)], len(units) - 1)]
        spans = [units[i] for i in gone]
        copy = filled(text, spans, [words[i] for i in gone]) if replace else without(text, spans)
        copies.append(None if copy in seen or not copy.strip() else copy)
        seen.add(copy)
    return copies
