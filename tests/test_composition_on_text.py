"""One composition, two domains: the same method objects train tables and language models.

The language has twenty words, the model is a random Llama, the judge a ridge on word counts fitted on made-up ratings.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from preftune import training
from preftune.evaluation import win_rate
from preftune.judges.exact import PreferenceTable
from preftune.judges.ratings import RatingsJudge
from preftune.log import Log
from preftune.methods import METHODS
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.policies.text.model import TextPolicy
from preftune.training import RowsFeed, TrainConfig
from preftune.types import Key, Method, Rows
from text_fixtures import Record, tiny_model, tiny_policy

KIND = {"lovely": 4, "great": 3, "good": 2, "fine": 1}
HARSH = {"poor": -1, "dull": -2, "bad": -3, "awful": -4}
PLAIN = ["the", "a", "film", "story", "actor", "scene", "is", "was", "and", "very"]
WORDS = [*KIND, *HARSH, *PLAIN]
HYPERPARAMETERS: dict[str, dict[str, Any]] = {"dpo": {}, "ipo": {"tau": 0.1}, "online-ipo": {"tau": 0.02}, "egpo": {"beta": 0.02}}


def method(name: str) -> Method:
    return METHODS[name](**HYPERPARAMETERS[name])


def run(policy: Any, composed: Method, rows: Rows, folder: Path, judge: Any, **settings: Any) -> training.Outcome:
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(**{"steps": 20, "batch": 16, "save_every": 0, **composed.recipe, **settings})
    log = Log(folder, 20, progress=False)
    return training.run(policy, composed, RowsFeed(rows), config, folder, log, judges=(judge,))


# --- the language ---------------------------------------------------------------------------------------------------


def sentences(n: int, seed: str) -> list[str]:
    draw = Key.of(0).fold(seed).numpy()
    return [" ".join(draw.choice(WORDS, size=draw.integers(3, 9))) for _ in range(n)]


def rating(sentence: str) -> int:
    """The strongest word decides, as raters do."""
    return max((({**KIND, **HARSH}).get(word, 0) for word in sentence.split()), key=abs)


@functools.cache
def judge() -> RatingsJudge:
    """Likes kind sentences. Three raters each, who differ by one."""
    texts = {str(i): sentence for i, sentence in enumerate(sentences(300, "rated"))}
    votes = {i: [max(-4, min(4, rating(sentence) + shift)) for shift in (-1, 0, 1)] for i, sentence in texts.items()}
    return RatingsJudge(texts, votes, direction="kind")


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<end>", "<pad>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", pad_token="<pad>", clean_up_tokenization_spaces=False)


def language(train: str | int = "full", **network: Any) -> TextPolicy:
    """A fresh policy, the same every time."""
    model = tiny_model(vocabulary=len(WORDS) + 2, layers=1, tied=False, scale=0.1)
    return tiny_policy(train, model=model, tokenizer=word_tokenizer(), **{"tokens_per_batch": 0, **network})


def rows_for(composed: Method, policy: TextPolicy, n: int = 48) -> Rows:
    """Prompts for self-play; for the others two sentences each, the judge's favourite first."""
    prompts, answers = sentences(n, "prompts"), sentences(2 * n, "answers")
    if composed.collect_every == "step":
        return policy.encode([Record(f"row {i}", prompt, []) for i, prompt in enumerate(prompts)])[0]
    pairs = [sorted(answers[2 * i : 2 * i + 2], key=lambda text: -float(judge().rate([text])[0])) for i in range(n)]
    return policy.encode(
        [Record(f"row {i}", prompt, pair, ranked=True) for i, (prompt, pair) in enumerate(zip(prompts, pairs, strict=True))]
    )[0]


def rate_against(policy: Any, reference: Any, n: int = 96) -> float:
    """Win rate of fresh samples, both orders, on prompts of their own."""
    rows, _ = language().encode([Record(f"held out {i}", prompt, []) for i, prompt in enumerate(sentences(n, "held out"))])
    mine, theirs = (who.sample(rows, 1, Key.of(5).fold(name)) for who, name in ((policy, "policy"), (reference, "reference")))
    return float(win_rate(judge(), rows, mine, theirs, Key.of(5)).mean())


# --- tables ---------------------------------------------------------------------------------------------------------


def table_rows(composed: Method, policy: TabularPolicy) -> Rows:
    """Games for self-play; for the others every pair, the better first."""
    if composed.collect_every == "step":
        return policy.rows()
    pairs = torch.tensor([[i, j] for i in range(4) for j in range(i + 1, 4)])
    return Rows(id=tuple(map(str, range(6))), prompt=(0,) * 6, response=TableResponses(pairs), ranked=True)


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_a_method_moves_a_table(name: str, tmp_path: Path) -> None:
    """Response 0 beats 1 beats 2 beats 3: the order of the probabilities after 20 exact steps, and the start stays the reference."""
    strength = torch.arange(4, 0, -1, dtype=torch.float64)
    table = PreferenceTable(torch.sigmoid(strength[:, None] - strength[None, :]))
    policy = TabularPolicy(torch.zeros(1, 4))
    composed = method(name)
    outcome = run(policy, composed, table_rows(composed, policy), tmp_path, table, optimiser="sgd", lr=0.05, clip=0.0)
    p = policy.probabilities()[0]
    assert (p[:-1] > p[1:]).all() and torch.isfinite(p).all()
    assert torch.equal(outcome.learner.roles["reference"].state()["logits"], torch.zeros(1, 4, dtype=torch.float64))


# --- text -----------------------------------------------------------------------------------------------------------


def finite(policy: TextPolicy) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in policy.state().values())


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_a_method_moves_a_language_model(name: str, train: str, tmp_path: Path) -> None:
    """Twenty steps with the method object that moves the table; the reference is what the model was, bit for bit."""
    policy, composed = language(train, tokens_per_batch=2048), method(name)
    rows = rows_for(composed, policy)
    start = policy.reference()
    probe = rows_for(method("dpo"), policy, 8)
    before = start.score(probe).logp
    outcome = run(policy, composed, rows, tmp_path, judge(), lr=0.01 if train == "full" else 0.05)
    assert finite(policy) and outcome.steps == 20
    reference = outcome.learner.roles["reference"]
    assert torch.equal(reference.score(probe).logp, before)
    assert not torch.equal(policy.score(probe).logp, before)
    # 96 draws of each, key 5; the standard error of a rate is 0.03. Found: dpo 0.70 and ipo 0.72 where all weights train, 0.60
    # and 0.63 with an adapter; online-ipo 0.88 and 0.74, egpo 0.86 and 0.73.
    assert rate_against(start, reference) == pytest.approx(0.5, abs=0.06)
    offline = composed.collect_every == "run"
    assert rate_against(policy, reference) > {"full": 0.64 if offline else 0.75, "lora": 0.56 if offline else 0.65}[train]
    if composed.collect_every == "run":
        losses = [line["loss"] for line in outcome.history]
        assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


class Counting:
    """The judge, counting what it is asked."""

    def __init__(self) -> None:
        self.questions, self.answers = 0, 0

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        self.questions += 1
        self.answers += a.shape[0] * a.shape[1]
        return judge().prefer(rows, a, b, key)


def test_the_extragradient_takes_twice_the_draws(tmp_path: Path) -> None:
    """Three steps on batches of 4 prompts with 2 responses: 3 x 8 answers are judged by online-ipo, 6 x 8 by egpo."""
    asked = {}
    for name in ("online-ipo", "egpo"):
        policy, counting = language(), Counting()
        run(policy, method(name), rows_for(method(name), policy), tmp_path / name, counting, steps=3, batch=4, lr=0.01)
        asked[name] = counting.questions, counting.answers
    assert asked == {"online-ipo": (3, 24), "egpo": (6, 48)}


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_micro_batches_change_nothing(name: str, tmp_path: Path) -> None:
    """The sums of a batch are added in another order: weights agree to 1e-5 of the way that they went."""
    found = []
    for size in (1, 3, 16):
        policy = language()
        start = torch.cat([p.flatten() for p in policy.state().values()])
        rows = rows_for(method(name), policy)
        run(policy, method(name), rows, tmp_path / str(size), judge(), steps=4, lr=0.1, optimiser="sgd", micro_batch=size)
        found.append(torch.cat([p.flatten() for p in policy.state().values()]))
    way = (found[0] - start).norm()
    assert way > 0.01
    for other in found[1:]:
        assert (other - found[0]).norm() <= 1e-5 * way
