"""What is in a data set and what is wrong with it: the numbers behind `preftune data check`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..types import PreftuneError
from .columns import FORMATS, Record, guesses
from .files import BATCH, Dataset

EDGES = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768]  # of the length histograms
LABELS = {column for form in FORMATS.values() for column in (*form.reads, "weight", "system", "id")}
CHANCE = 20  # characters; shorter responses may coincide by chance and are no leakage
CROWD = 2000  # different responses of one prompt beyond which its triples are not searched


@dataclass(frozen=True)
class Lengths:
    """Lengths of one kind of text in one unit."""

    mean: float
    median: float
    p95: float
    longest: int
    histogram: dict[str, int]  # "16-31" -> texts; empty bins left out


@dataclass(frozen=True)
class Report:
    """All counts are rows unless they say otherwise; shares lie in [0, 1]; None where nothing was there to count."""

    files: dict[str, str]  #                file -> format recognised
    columns: dict[str, dict[str, str]]  #   file -> its column -> what it is read as ("meta": passed through)
    counts: dict[str, Any]  #               of loading: read, kept, dropped by reason, ties, swapped, ...
    rows: int
    prompts: int  #                         different prompts
    responses: dict[int, int]  #            responses in a row -> rows
    labels: dict[str, int]  #               ranked, scores, prefer, desirable -> rows that have them
    fingerprint: str
    duplicates: int  #                      rows that equal an earlier row in prompt and responses
    ties: int
    repeated_responses: int  #              rows in which two of several responses are equal
    echoes: int  #                          rows with a response that begins with the whole prompt
    contradictions: int  #                  rows whose scores say the opposite of their order
    desirable: float | None  #              share of labelled responses that are desirable
    longer_wins: float | None  #            share of ranked rows of unequal length whose best is longer than their worst; .5 is no bias
    named_first_wins: float | None  #       share of pairs with a probability whose better response was named first
    mean_prefer: float | None  #            mean probability of the better response
    lengths: dict[str, Lengths]  #          "prompt characters", "response tokens", ...
    truncated: dict[str, float] | None  #   share of prompts and of responses that would be cut, with a tokenizer and a limit
    leakage: dict[str, int] | None  #       rows of test whose prompt, whose response (20 characters or more) is here too
    triples: int  #                         response triples of a prompt with all three comparisons
    intransitive: int  #                    those that run in a circle
    not_searched: int  #                    prompts with too many responses to search for circles

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=2)

    def warnings(self) -> list[str]:
        """What deserves a look before training, each with what to do."""
        out = []
        for read in self.columns.values():
            for column, name in guesses([name for name, role in read.items() if role == "meta"], LABELS - set(read.values())).items():
                out.append(
                    f"column {column!r} is passed through unread; if it is {name!r}, rename it with columns={{{column!r}: {name!r}}}"
                )
        dropped = sum(self.counts.get("dropped", {}).values())
        if dropped:
            out.append(f"{dropped} of {self.counts['read']} rows were dropped; the reasons are above")
        if self.counts.get("repeated_ids"):
            out.append(f"{self.counts['repeated_ids']} rows repeat an id; a suffix keeps ids unique")
        if self.duplicates:
            out.append(f"{self.duplicates} rows are there twice; remove them or they count twice")
        if self.ties:
            out.append(f"{self.ties} rows are ties; strict=True leaves them out")
        if self.leakage and any(self.leakage.values()):
            out.append(
                f"test shares {self.leakage['prompts']} prompts and {self.leakage['responses']} responses with these rows; split by prompt"
            )
        if self.echoes:
            out.append(f"{self.echoes} rows have a response that begins with its prompt; cut the prompt off")
        if self.contradictions:
            out.append(f"{self.contradictions} rows have scores against their order; check which is right")
        if self.longer_wins is not None and abs(self.longer_wins - 0.5) > 0.15:
            out.append(
                f"the {'longer' if self.longer_wins > 0.5 else 'shorter'} response wins unusually often; length may be what is learnt"
            )
        if self.desirable in (0.0, 1.0):
            out.append(f"all labels are {'desirable' if self.desirable else 'undesirable'}; methods such as kto need both kinds")
        if self.truncated and max(self.truncated.values()) > 0.01:
            cut = ", ".join(f"{share:.1%} of {kind}s" for kind, share in self.truncated.items() if share)
            out.append(f"{cut} would be cut; raise the limits")
        if self.intransitive:
            out.append(f"{self.intransitive} of {self.triples} triples run in a circle; no reward explains them, game methods can")
        if self.not_searched:
            out.append(f"{self.not_searched} prompts have more than {CROWD} responses and were not searched for circles")
        return out

    def table(self) -> str:
        """The report for people, as plain text."""
        lines: list[tuple[str, str]] = []
        for file, form in self.files.items():
            lines.append(("file", f"{file} (format {form})"))
            read = self.columns[file]
            lines.append(("columns", ", ".join(name if name == role else f"{name} as {role}" for name, role in read.items())))
        dropped = self.counts.get("dropped", {})
        lines.append(("rows", f"{self.rows} here; {self.counts.get('read', 0)} read, {self.counts.get('kept', 0)} kept"))
        lines += [("dropped", f"{reason}: {rows}") for reason, rows in dropped.items()] or [("dropped", "none")]
        others = (("pairs swapped", "swapped"), ("left out by shares", "left_out"))
        lines += [(name, str(self.counts[key])) for name, key in others if self.counts.get(key)]
        lines.append(("prompts", f"{self.prompts} different"))
        lines.append(("responses", ", ".join(f"{k} in {rows} rows" for k, rows in self.responses.items())))
        lines.append(("labels", ", ".join(f"{name} {rows}" for name, rows in self.labels.items() if rows) or "none"))
        lines.append(("duplicates", str(self.duplicates)))
        lines.append(("ties", str(self.ties)))
        lines.append(("equal responses", f"{self.repeated_responses} rows"))
        shares = (
            ("desirable", self.desirable),
            ("longer wins", self.longer_wins),
            ("named first wins", self.named_first_wins),
            ("mean prefer", self.mean_prefer),
        )
        lines += [(name, f"{share:.3f}") for name, share in shares if share is not None]
        for kind, found in self.lengths.items():
            bins = ", ".join(f"{span}: {texts}" for span, texts in found.histogram.items())
            lines.append((kind, f"mean {found.mean:.1f}, median {found.median:g}, 95 % {found.p95:g}, longest {found.longest}"))
            lines.append(("", bins))
        if self.truncated is not None:
            lines += [(f"cut {kind}s", f"{share:.2%}") for kind, share in self.truncated.items()]
        if self.leakage is not None:
            lines.append(("leakage", ", ".join(f"{rows} rows of test share a {kind[:-1]}" for kind, rows in self.leakage.items())))
        lines.append(("triples", f"{self.triples}, of which {self.intransitive} run in a circle"))
        lines.append(("fingerprint", self.fingerprint))
        width = max(len(name) for name, _ in lines)
        body = [f"{name:<{width}}  {value}" for name, value in lines]
        return "\n".join(body + [f"look: {warning}" for warning in self.warnings()])


def batches(dataset: Dataset) -> Iterator[list[Record]]:
    """The records in their order, some at a time."""
    for start in range(0, len(dataset), BATCH):
        yield dataset.records(range(start, min(start + BATCH, len(dataset))))


def hash8(text: str) -> bytes:
    """8 bytes of a text."""
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


def lengths(values: Sequence[np.ndarray]) -> Lengths:
    """Mean, quantiles and histogram of the batches of lengths."""
    every = np.concatenate(values)
    bins = np.bincount(np.searchsorted(EDGES, every, side="right") - 1, minlength=len(EDGES))
    names = [f"{low}-{high - 1}" if high - low > 1 else str(low) for low, high in zip(EDGES, EDGES[1:], strict=False)] + [f"{EDGES[-1]}-"]
    histogram = {name: int(texts) for name, texts in zip(names, bins, strict=True) if texts}
    return Lengths(float(every.mean()), float(np.median(every)), float(np.quantile(every, 0.95)), int(every.max()), histogram)


def prompt_text(record: Record) -> str:
    """The prompt as one text."""
    return record.prompt if isinstance(record.prompt, str) else "\n".join(turn["content"] for turn in record.prompt)


def token_counter(tokenizer: Any) -> Callable[[Sequence[Record]], tuple[list[int], list[int]]]:
    """Records -> tokens of the rendered prompts, and of the responses with the token that ends a turn: what training sees."""
    from ..policies.text.tokens import render

    def sizes(texts: list[str], special: bool) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=special)["input_ids"]] if texts else []

    def count(records: Sequence[Record]) -> tuple[list[int], list[int]]:
        answers = [response for record in records for response in record.responses]
        prompts = [render(record, tokenizer) for record in records]
        return sizes(prompts, not tokenizer.chat_template), [size + 1 for size in sizes(answers, False)]

    return count


def comparisons(record: Record) -> Iterator[tuple[str, str]]:
    """(winner, loser) for all pairs that the record decides."""
    better = record.scores if record.scores is not None and record.prefer is None else None
    if record.ranked and not record.tied:
        for i in range(len(record.responses)):
            for j in range(i + 1, len(record.responses)):
                if better is None or better[i] != better[j]:
                    yield record.responses[i], record.responses[j]


def circles(dataset: Dataset, least: int) -> tuple[int, int, int]:
    """(triples with all three comparisons, those that run in a circle, prompts not searched), over prompts with `least` rows or more.

    For the matrix W of majority wins, trace(W^3) / 3 circles; with both directions in it, trace / 6 triples.
    """
    prompts, group, sizes = np.unique(dataset.prompt, return_inverse=True, return_counts=True)
    order = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(sizes)])
    triples = circular = skipped = 0
    for g in np.flatnonzero(sizes >= least).tolist():
        net: Counter[tuple[str, str]] = Counter()
        for record in dataset.records(np.sort(order[starts[g] : starts[g + 1]]).tolist()):
            for winner, loser in comparisons(record):
                net[min(winner, loser), max(winner, loser)] += 1 if winner < loser else -1
        names = {text: n for n, text in enumerate(dict.fromkeys(text for edge in net for text in edge))}
        if len(names) > CROWD:
            skipped += 1
            continue
        wins = np.zeros((len(names), len(names)))
        for (first, second), balance in net.items():
            a, b = names[first], names[second]
            wins[a, b], wins[b, a] = balance > 0, balance < 0
        either = wins + wins.T
        circular += round(float(np.sum((wins @ wins) * wins.T)) / 3)
        triples += round(float(np.sum((either @ either) * either.T)) / 6)
    return triples, circular, skipped


def check(
    dataset: Dataset,
    tokenizer: Any = None,
    max_prompt: int | None = None,
    max_response: int | None = None,
    test: Dataset | None = None,
) -> Report:
    """Count what matters before training; one pass over the records, a second over prompts that repeat.

    tokenizer                 a Hugging Face tokenizer: lengths in tokens too
    max_prompt, max_response  limits in tokens whose effect is counted
    test                      held-out data: how much of them is in `dataset` as well
    """
    if tokenizer is None and (max_prompt, max_response) != (None, None):
        raise PreftuneError("found a limit in tokens and no tokenizer, needed both; pass the model's tokenizer")
    tokens = token_counter(tokenizer) if tokenizer is not None else None
    counts: Counter[str] = Counter()
    widths: Counter[int] = Counter()
    sizes: dict[str, list[np.ndarray]] = {}
    sums: Counter[str] = Counter()
    answers: set[bytes] = set()
    same = bytearray()
    for records in batches(dataset):
        measured = {
            "prompt characters": [len(prompt_text(record)) for record in records],
            "response characters": [len(response) for record in records for response in record.responses],
        }
        if tokens is not None:
            measured["prompt tokens"], measured["response tokens"] = tokens(records)
        for kind, found in measured.items():
            if found:
                sizes.setdefault(kind, []).append(np.asarray(found, dtype="i4"))
        for record in records:
            widths[len(record.responses)] += 1
            same += hash8(json.dumps([record.prompt, record.system, sorted(record.responses)]))
            if test is not None:
                answers.update(hash8(answer) for answer in record.responses if len(answer) >= CHANCE)
            tally(record, counts, sums)
    identical = np.frombuffer(bytes(same), "<u8")
    triples, circular, skipped = circles(dataset, least=2 if max(widths) > 2 else 3)  # two pairs make no triple
    return Report(
        files=dataset.formats,
        columns={source.table.name: dict(source.columns) for source in dataset.sources},
        counts=dict(dataset.counts),
        rows=len(dataset),
        prompts=len(np.unique(dataset.prompt)),
        responses=dict(sorted(widths.items())),
        labels={name: counts[name] for name in ("ranked", "scores", "prefer", "desirable")},
        fingerprint=dataset.fingerprint,
        duplicates=len(identical) - len(np.unique(identical)),
        ties=counts["tied"],
        repeated_responses=counts["repeated"],
        echoes=counts["echo"],
        contradictions=counts["contradiction"],
        desirable=share(sums["desirable"], counts["labels"]),
        longer_wins=share(counts["longer"], counts["unequal"]),
        named_first_wins=share(counts["first"], counts["prefer"] - counts["even"]),
        mean_prefer=share(sums["prefer"], counts["prefer"]),
        lengths={kind: lengths(found) for kind, found in sizes.items()},
        truncated=truncated(sizes, {"prompt": max_prompt, "response": max_response}),
        leakage=None if test is None else leakage(dataset, answers, test),
        triples=triples,
        intransitive=circular,
        not_searched=skipped,
    )


def share(part: float, whole: float) -> float | None:
    """part / whole, None of nothing."""
    return part / whole if whole else None


def tally(record: Record, counts: Counter[str], sums: Counter[str]) -> None:
    """Add what one record says to the counts."""
    answers = record.responses
    counts["ranked"] += record.ranked
    counts["scores"] += record.scores is not None
    counts["tied"] += record.tied
    counts["repeated"] += len(set(answers)) < len(answers)
    text = prompt_text(record)
    counts["echo"] += any(len(answer) > len(text) and answer.startswith(text) for answer in answers)
    if record.scores is not None and record.ranked:
        counts["contradiction"] += record.scores[0] < record.scores[-1]
    if record.desirable is not None:
        counts["desirable"] += 1
        counts["labels"] += len(record.desirable)
        sums["desirable"] += sum(record.desirable)
    if record.prefer is not None:
        counts["prefer"] += 1
        counts["even"] += record.prefer == 0.5
        counts["first"] += record.prefer > 0.5 and not record.swapped
        sums["prefer"] += record.prefer  # type: ignore[assignment]
    if record.ranked and len(answers) > 1 and not record.tied and len(answers[0]) != len(answers[-1]):
        counts["unequal"] += 1
        counts["longer"] += len(answers[0]) > len(answers[-1])


def truncated(sizes: Mapping[str, Sequence[np.ndarray]], limits: Mapping[str, int | None]) -> dict[str, float] | None:
    """Share of the texts that are longer than their limit, for the limits that are given."""
    given = {kind: limit for kind, limit in limits.items() if limit is not None and f"{kind} tokens" in sizes}
    return {kind: float((np.concatenate(sizes[f"{kind} tokens"]) > limit).mean()) for kind, limit in given.items()} or None


def leakage(dataset: Dataset, answers: set[bytes], test: Dataset) -> dict[str, int]:
    """Rows of `test` that share their prompt, or a response of some length, with `dataset`."""
    shared = sum(any(hash8(answer) in answers for answer in record.responses) for records in batches(test) for record in records)
    return {"prompts": int(np.isin(test.prompt, dataset.prompt).sum()), "responses": shared}
