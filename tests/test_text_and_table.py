"""Text and tables are one mathematics: answers of one token from a language model move as those of a table with the same logits.

The language model is a Llama whose blocks add nothing and whose head is the identity, so that the embedding of a prompt's last token is
the logits of its answer, and the table of all embeddings [V, V] is the table [games, responses]. It is scored, sampled, copied and
mixed as any other model. Both sides go through the training loop, with the same keys, so that both draw the same answers, or both are
given whole laws; after every step log-probabilities of all V answers to all prompts are compared.

What the test lines up, because the domains differ in it on purpose: a table sums over games and text averages over prompts
(`independent`); hot samples of text are at temperature 2, those of a table uniform (`uniform`); a draw of a table takes one uniform
number of its row, a sample of text one for each token; random directions (zo-ranksgd) are drawn by the name of a parameter. No method
that plays is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from all_facts import merged
from preftune import training
from preftune.exact.games import random_game
from preftune.judges.exact import PreferenceTable
from preftune.log import Log
from preftune.methods import METHODS
from preftune.policies.tabular import TableResponses, TabularPolicy
from preftune.policies.text.logprob import Network
from preftune.policies.text.mixture import TextMixture
from preftune.policies.text.model import TextPolicy
from preftune.policies.text.tokens import TextResponses
from preftune.training import RowsFeed, TrainConfig
from preftune.types import Key, Method, Rows

V = 8  #       answers, and prompts
END = V - 1  # the token that would end a turn is one of them: answers of one token are never asked to go on
PROMPTS = (0, 1, 2, 3, 0)  # of five rows, two of which ask the same
EMBEDDING = "model.embed_tokens.weight"
EXACT = 1e-6  # nats; both sides score in float64; found 6e-7 at most, where text mixes parameters in float32 (`lerp`), elsewhere 6e-8


# --- the same policy twice ------------------------------------------------------------------------------------------


def logits() -> Tensor:
    return torch.randn(V, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def characters() -> Any:
    """A tokenizer of V letters that drops whatever else a text holds."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    letters = {chr(0x2460 + i): i for i in range(V)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=letters, merges=[])),
        eos_token=chr(0x2460 + END),
        clean_up_tokenization_spaces=False,
    )


def bigram() -> Any:
    """A Llama whose next token depends on the last one alone, by a table that is its embedding."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=V,
        hidden_size=V,
        intermediate_size=V,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END,
    )
    lm = LlamaForCausalLM(config).double().eval().requires_grad_(False)
    for product in (lm.model.layers[0].self_attn.o_proj, lm.model.layers[0].mlp.down_proj):
        nn.init.zeros_(product.weight)
    lm.model.norm = nn.Identity()
    lm.lm_head.weight.data = torch.eye(V, dtype=torch.float64)
    lm.model.embed_tokens.weight.data = logits()
    lm.model.embed_tokens.weight.requires_grad_(True)
    return lm


def language() -> TextPolicy:
    policy = TextPolicy(Network(bigram()), characters())
    policy.max_new_tokens = 1
    return policy


class Table(TabularPolicy):
    """The same logits as a table, which draws with the numbers that text draws with, and averages over rows as text does."""

    uniform: Mapping[str, Any] = TextPolicy.uniform
    independent = False

    def sample(self, rows: Rows, n: int, key: Key, *, temperature: float = 1.0, top_k: int = V) -> TableResponses:
        assert top_k >= V, "a law that is cut is no law of a table"
        whole = TabularPolicy(self.logits.detach()).sample(rows, n, key, temperature=temperature)
        if self.exact:
            return whole
        assert whole.law is not None
        numbers = numpy.concatenate([key.fold("sample", s).uniform(rows.id, 1) for s in range(n)], 1)
        index = torch.searchsorted(whole.law.cumsum(1), torch.from_numpy(numbers), right=True)
        return TableResponses(index.clamp(max=V - 1))

    def copy(self) -> Table:
        frozen = Table(self.logits, exact=self.exact)
        frozen.logits.requires_grad_(False)
        return frozen

    reference = copy

    def revise(self, rows: Rows) -> tuple[tuple[int, ...], ...]:
        """A prompt with a draft ends with the draft."""
        return tuple(map(tuple, rows.response.index.tolist()))

    def state(self) -> dict[str, Tensor]:
        """By the name that the parameter has in the model."""
        return {EMBEDDING if name == "logits" else name: value for name, value in super().state().items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        super().load({"logits" if name == EMBEDDING else name: value for name, value in state.items()})


class Whole(TextPolicy):
    """A language model that gives all V answers with their law, as a table does that is exact."""

    def sample(self, rows: Rows, n: int, key: Key, **decoding: Any) -> TextResponses:
        return enumerated(self, rows, **decoding)

    def frozen(self, overlay: dict[str, Tensor], adapter: bool = True) -> Whole:
        return Whole(self.network, self.tokenizer, overlay=overlay, adapter=adapter)

    def mix(self, other: Any, w: float) -> WholeMixture:
        return WholeMixture(self, other, w)


class WholeMixture(TextMixture):
    """The same of two."""

    def sample(self, rows: Rows, n: int, key: Key, **decoding: Any) -> TextResponses:
        return enumerated(self, rows, **decoding)


@torch.no_grad()
def enumerated(policy: Any, rows: Rows, temperature: float = 1.0, top_k: int = V) -> TextResponses:
    """Columns 0 .. V - 1 with their law, at that temperature."""
    assert top_k >= V
    answers = answered(torch.arange(V).expand(len(rows), V))
    law = (policy.score(rows.replace(response=answers)).logp / temperature).softmax(1)
    return replace(answers, law=law)


def answered(index: Tensor) -> TextResponses:
    """Answers of one token, without an end."""
    return TextResponses(tuple(tuple((token,) for token in row) for row in index.tolist()))


class Judge(PreferenceTable):
    """Another game at every prompt, whichever side asks."""

    def __init__(self) -> None:
        games = torch.stack([random_game(V, seed) for seed in range(V)])
        super().__init__(games, torch.randn(V, V, generator=torch.Generator().manual_seed(1)))

    def prefer(self, rows: Rows, a: Any, b: Any, key: Key) -> Tensor:
        return super().prefer(as_table(rows), numbers(a), numbers(b), key)

    def winrate(self, rows: Rows, y: Any, z: Any, key: Key) -> Tensor:
        return super().winrate(as_table(rows), numbers(y), numbers(z), key)

    def score(self, rows: Rows, y: Any, key: Key) -> Tensor:
        return super().score(as_table(rows), numbers(y), key)


def numbers(y: Any) -> TableResponses:
    if isinstance(y, TableResponses):
        return y
    assert (y.length == 1).all()
    return TableResponses(torch.tensor([[tokens[0] for tokens in row] for row in y.tokens]), y.law)


def as_table(rows: Rows) -> Rows:
    """A prompt of tokens is the game of its last one."""
    return rows.replace(prompt=tuple(prompt[-1] if isinstance(prompt, tuple) else prompt for prompt in rows.prompt))


# --- two runs -------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, Any]] = {
    "online-ipo 2": {"pairs": "uniform"},
    "mpo": {"K": 2},  # the magnet moves within the run
    "nash-md-pg": {"tau": 0.1},
    "nash-ema-pg": {"tau": 0.1, "decay": 0.5},
    "rloo by rounds": {"collect_every": "round"},
    "grpo by rounds": {"collect_every": "round", "beta": 0.1},
    "ppo": {"vf_coef": 0.0},  # a head on text is a linear layer on states, one on a table a number for every answer: here it stays 0
    "on-policy by rounds": {"refresh": "round", "fraction": 0.5},
    "dno-prct": {"least": -9.0, "own_margin": 0.1},
    "dno": {"eta": 1.0},
    "curry-dpo": {"stages": 1},
    "inpo sampled": {"labels": "sampled"},
    "inpo tournament": {"labels": "tournament"},
    "ofs-dpo": {"slow": 0.5},
    "zo-ranksgd": {"mu": 0.5, "eta": 2.0},
}
CHOICES: dict[str, dict[str, Any]] = merged("SETTINGS")  # what cannot be left out
DRAWN_ONLY = {"inpo tournament": "a tournament needs draws"}
OFFLINE = ("srpo", "ofs-dpo", "arpo", "dpo")  # of the same issue, on given pairs
NAMES = [
    *(name for name, make in METHODS.items() if name in OFFLINE or make(**CHOICES.get(name, {})).collect_every != "run"),
    *(name for name in SETTINGS if name not in METHODS),
]


def composed(name: str) -> Method:
    known = name if name in METHODS else max((slug for slug in METHODS if name.startswith(slug)), key=len)
    return METHODS[known](**SETTINGS.get(name, {}))


def rows_for(method: Method, text: bool) -> Rows:
    """Five prompts, with a pair each where the method reads given ones."""
    ids = tuple(f"row {i}" for i in range(len(PROMPTS)))
    rows = Rows(ids, [(game,) for game in PROMPTS] if text else PROMPTS)
    if not method.offline:
        return rows
    pairs = torch.tensor([[5, 1], [0, 6], [2, 3], [4, 5], [1, 2]])
    return rows.replace(response=answered(pairs) if text else TableResponses(pairs), ranked=True)


def moved(policy: Any, method: Method, folder: Path) -> tuple[list[Tensor], list[float]]:
    """log-probabilities [V, V] of all answers to all prompts after every step, and the losses."""
    text, found = isinstance(policy, TextPolicy), []
    everything = Rows(tuple(map(str, range(V))), [(game,) for game in range(V)] if text else tuple(range(V)))
    index = torch.arange(V).expand(V, V)
    everything = everything.replace(response=answered(index) if text else TableResponses(index))

    def look(event: training.Event) -> None:
        with torch.no_grad():
            found.append(policy.score(everything).logp)

    steps: dict[str, Any] = {"rounds": 3, "epochs": 2} if method.collect_every == "round" else {"steps": 4}
    # the clip makes steps of one nat, whatever the scale of a loss
    config = TrainConfig(batch=len(PROMPTS), lr=1.0, clip=1.0, optimiser="sgd", schedule="constant", warmup=0.0, save_every=0, **steps)
    folder.mkdir()
    log = Log(folder, 4, progress=False)
    run = training.run(policy, method, RowsFeed(rows_for(method, text)), config, folder, log, judges=(Judge(),), callbacks=[look])
    return found, [line["loss"] for line in run.history]


def assert_alike(name: str, table: Table, text: TextPolicy, folder: Path) -> None:
    (a, losses), (b, told) = (moved(policy, composed(name), folder / kind) for kind, policy in (("table", table), ("text", text)))
    assert len(a) == len(b) >= 4
    for mine, theirs in zip(a, b, strict=True):
        assert (mine - theirs).abs().max() < EXACT
    assert losses == pytest.approx(told, rel=EXACT, abs=EXACT)
    start = logits().log_softmax(1)
    assert (a[-1] - start).abs().max() > 0.01, "nothing moved"
    assert not torch.equal(a[-1], a[-2]) or name == "zo-ranksgd", "the last step did nothing"


@pytest.mark.parametrize("name", NAMES)
def test_text_that_draws_an_answer_of_one_token_takes_the_steps_of_a_table_that_draws_it(name: str, tmp_path: Path) -> None:
    assert_alike(name, Table(logits(), exact=False), language(), tmp_path)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DRAWN_ONLY])
def test_text_that_gives_the_whole_law_takes_the_exact_steps_of_a_table(name: str, tmp_path: Path) -> None:
    """What is proved of a method on exact games is proved of the code that trains text."""
    policy = Whole(Network(bigram()), characters())
    assert_alike(name, Table(logits()), policy, tmp_path)
