"""Key phrases, degraded copies, and the degree loss in training."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

import preftune
from preftune import training
from preftune.collect.augment import degraded, degraded_copies
from preftune.data.phrases import PIECES, STOP_WORDS, is_prose, rake, ranked
from preftune.data.phrases import degraded as copies_of
from preftune.learner import GradientLearner
from preftune.log import Log
from preftune.methods import dpo, spo_degree
from preftune.objectives import degree
from preftune.objectives.auxiliary import add, scale
from preftune.objectives.pairwise import dpo as dpo_loss
from preftune.policies.tabular import TabularPolicy
from preftune.policies.text.model import TextPolicy
from preftune.reference import frozen
from preftune.training import RowsFeed, TrainConfig
from preftune.types import Context, Head, Key, Method, PreftuneError, Rows
from preftune.update import plain
from text_fixtures import Record, tiny_folder, tiny_policy

DRAW = Key.of(0)
SENTENCE = "A gushy episode of the old series, only this time from an Asian perspective."


# --- key phrases ----------------------------------------------------------------------------------------------------


def test_rake_by_hand() -> None:
    """Candidates: deep learning methods (3 words), deep networks (2). deep: frequency 2, degree 3 + 2 = 5, score 2.5; learning
    and methods 3 / 1; networks 2 / 1. Phrases: 2.5 + 3 + 3 = 8.5 and 2.5 + 2 = 4.5."""
    assert rake("deep learning methods and deep networks") == {"deep learning methods": 8.5, "deep networks": 4.5}


def test_a_phrase_ends_at_stop_words_punctuation_and_line_ends() -> None:
    """Contractions count by their first part: it's and don't are stop-words, film's is not. Scores 2 + 3 / 2, 3 / 2, 1, 1."""
    assert list(rake("It's the film's charm, wit\ncharm I don't miss")) == ["film's charm", "charm", "wit", "miss"]
    assert rake("It's what it is, isn't it?") == {}
    assert len(STOP_WORDS) == len(set(STOP_WORDS))


def test_a_repeated_phrase_is_one_and_goes_everywhere() -> None:
    """great film twice: frequency 2 and degree 4 each, so 2 + 2; small part 2 + 2; equal scores stand in the text's order."""
    text = "Great film, a great film in a small part."
    assert rake(text) == {"great film": 4.0, "small part": 4.0}
    assert copies_of(text, 3, DRAW.numpy()) == [", a in a small part.", ", a in a."]


# --- copies ---------------------------------------------------------------------------------------------------------


def test_the_best_phrases_go_first_with_the_blanks_before_them() -> None:
    """gushy episode, old series, asian perspective have 2 words each, time one: 4 phrases, so 2 of 4 and 4 of 4 go."""
    assert copies_of(SENTENCE, 3, DRAW.numpy()) == [
        "A of the, only this time from an Asian perspective.",
        "A of the, only this from an.",
    ]
    assert copies_of(SENTENCE, 5, DRAW.numpy())[1::2] == copies_of(SENTENCE, 3, DRAW.numpy())


def test_copies_that_coincide_are_merged_and_their_degree_is_dropped() -> None:
    """Two phrases and five degrees: 0, 0, 1, 1, 2 phrases go, so degrees 1 and 3 repeat what came before."""
    assert copies_of("the wit of the cast", 5, DRAW.numpy()) == [None, "the of the cast", None, "the of the"]
    assert copies_of("the wit", 3, DRAW.numpy()) == [None, "the"]


def test_something_always_stays() -> None:
    """Of a text that is one phrase, its last word; a single word leaves nothing to remove."""
    assert copies_of("deep learning methods", 2, DRAW.numpy()) == ["methods"]
    assert copies_of("great", 3, DRAW.numpy()) == [None, None]
    assert copies_of("", 3, DRAW.numpy()) == [None, None]


def words(text: str) -> Counter[str]:
    return Counter(text.replace(",", " ").replace(".", " ").split())


def test_random_removal_takes_as_many_words_and_no_more_again() -> None:
    """4 words go, then 7; which ones depends on the draw, and what is gone stays gone."""
    found = set()
    for seed in range(20):
        half, full = copies_of(SENTENCE, 3, Key.of(seed).numpy(), remove="random")
        assert half is not None and full is not None
        assert [words(SENTENCE).total() - words(copy).total() for copy in (half, full)] == [4, 7]
        assert not words(full) - words(half) and not words(half) - words(SENTENCE)
        found.add(full)
    assert len(found) > 15


def test_replacing_keeps_the_length_and_the_other_words() -> None:
    half, full = copies_of(SENTENCE, 3, DRAW.numpy(), replace=True)
    assert half is not None and full is not None
    assert words(half).total() == words(full).total() == words(SENTENCE).total()
    assert not words(SENTENCE) - words(half) - Counter(["gushy", "episode", "old", "series"])
    assert half.startswith("A ") and half.endswith(" Asian perspective.")
    assert all(word in STOP_WORDS for word in words(full) - words("A of the only this from an"))


@pytest.mark.parametrize(
    "text", ["def f(x):\n    return x[0] + 1", "| 1 | 2 |\n| 3 | 4 |", "这是一个测试。我们看看这个句子。", "the of and", "!?!"]
)
def test_what_is_no_english_prose_loses_equal_pieces_from_its_end(text: str) -> None:
    """Code, tables, a script without blanks, stop-words alone: the copies are beginnings of the text, each shorter."""
    units, pieces = ranked(text)
    assert len(pieces) <= PIECES and max(map(len, pieces)) - min(map(len, pieces)) <= 1
    half, full = copies_of(text, 3, DRAW.numpy())
    assert half is not None and full is not None
    assert text.startswith(half) and half.startswith(full) and 0 < len(full) < len(half) < len(text)


def test_prose_is_told_from_the_rest() -> None:
    assert is_prose(SENTENCE) and is_prose("Ein Film über große Gefühle.") and is_prose("Tolkien's Middle-earth, all of it, as we know it!")
    assert not is_prose("for i in range(10): x[i] += 1") and not is_prose("映画はとても面白かったです")


@settings(max_examples=200, deadline=None)
@drawn(
    st.text(max_size=60) | st.lists(st.sampled_from(["wit", "charm", "the", "of", "dull", "film", "and", ","]), max_size=12).map(" ".join),
    st.integers(2, 6),
    st.sampled_from([{}, {"remove": "random"}, {"replace": True}, {"remove": "random", "replace": True}]),
)
def test_copies_are_different_texts_and_never_empty(text: str, degrees: int, how: dict[str, Any]) -> None:
    made = copies_of(text, degrees, DRAW.numpy(), **how)
    there = [copy for copy in made if copy is not None]
    assert len(made) == degrees - 1
    assert len({text, *there}) == 1 + len(there) and all(copy.strip() for copy in there)


# --- the collector --------------------------------------------------------------------------------------------------

TEXTS = [
    ("the wit of the cast saves an uneven script", "a dull film"),
    ("charm", "an awful mess of a plot"),
    ("a tender story with a clever ending and moving scenes", "it is bad"),
    ("great", "no"),
    ("lovely scenes of the coast", "the story drags on"),
]


def policy(**network: Any) -> TextPolicy:
    return tiny_policy(**network)


def rows(made: TextPolicy, n: int = 5) -> Rows:
    records = [Record(f"row {i}", f"film {i}", list(TEXTS[i % 5]), ranked=True) for i in range(n)]
    return made.encode(records)[0]


def collected(made: TextPolicy, feed: Rows, key: Key = DRAW, **how: Any) -> Rows:
    return degraded_copies(Context({"current": made}, feed, key=key), **{"degrees": 3, **how})


def test_copies_stand_behind_the_pair_with_their_degrees() -> None:
    made = policy()
    feed = rows(made)
    found = collected(made, feed)
    assert found.response.take(columns=[0, 1]) == feed.response
    shown = found.response.show()
    for row, (chosen, _) in zip(shown, TEXTS, strict=True):
        assert row[2:] == [copy or "" for copy in copies_of(chosen, 3, DRAW.numpy())]
    there = found.present
    assert there is not None and there.tolist() == [[True, True, bool(row[2]), bool(row[3])] for row in shown]
    label = found.label("degree")
    assert label[0].tolist() == [0, -1, 1, 2] and label[1].tolist() == [0, -1, -1, -1]
    assert torch.equal(label[:, 2:] >= 0, there[:, 2:])
    ends = {tokens[-1] for row in found.response.tokens for tokens in row if tokens}
    assert ends == {made.end}


def test_a_text_that_is_shown_and_encoded_again_is_the_same_tokens() -> None:
    """The copies differ from the preferred text in what was taken away, and in nothing that decoding changed."""
    made = policy()
    feed = rows(made)
    assert made.answer(feed.response.show()) == feed.response
    assert made.answer([["wit", None]]).length.tolist() == [[made.answer([["wit"]]).length.item(), 0]]


def test_draws_depend_on_the_key_and_the_row_alone() -> None:
    """Whatever rows come with it, in whatever order: the same copies and the same labels."""
    made = policy()
    feed = rows(made)
    for how in ({"remove": "random"}, {"replace": True}, {"shuffle": True}):
        whole = collected(made, feed, **how)
        part = collected(made, feed.take([4, 2]), **how)
        assert part.response.show() == whole.response.take(rows=[4, 2]).show()
        assert torch.equal(part.label("degree"), whole.label("degree")[[4, 2]])
    assert collected(made, feed, Key.of(1), remove="random").response.show() != collected(made, feed, remove="random").response.show()


def test_shuffled_degrees_are_dealt_among_the_responses_that_have_one() -> None:
    """Over 300 deals to one row each of the 6 orders comes about 50 times (standard deviation 6.5)."""
    made = policy()
    feed = rows(made, 3)
    deals = Counter(tuple(collected(made, feed, Key.of(seed), shuffle=True).label("degree")[2].tolist()) for seed in range(300))
    assert len(deals) == 6 and all(deal[1] == -1 and sorted(deal) == [-1, 0, 1, 2] for deal in deals)
    assert max(deals.values()) < 80 and min(deals.values()) > 25


def test_a_policy_without_text_is_told_so() -> None:
    with pytest.raises(PreftuneError, match="made of text"):
        degraded_copies(Context({"current": TabularPolicy(torch.zeros(1, 4))}, Rows(("a",), (0,))), degrees=3)


# --- training -------------------------------------------------------------------------------------------------------


def trained(method: Method, folder: Path, *, n: int = 10, weights: Any = None, **config: Any) -> tuple[TextPolicy, training.Outcome]:
    folder.mkdir(parents=True, exist_ok=True)
    made = weights or policy(tokens_per_batch=0)  # every response alone: no value depends on what stands beside it
    settings = TrainConfig(**{"steps": 6, "batch": 5, "lr": 3e-3, "save_every": 0, **config})
    return made, training.run(made, method, RowsFeed(rows(made, n)), settings, folder, Log(folder, 6, progress=False))


def weights_of(made: TextPolicy) -> dict[str, torch.Tensor]:
    return {name: value for name, value in made.state().items() if not name.startswith("heads.")}


def way(one: TextPolicy, other: TextPolicy) -> float:
    """How far the weights of two models are apart."""
    mine, theirs = weights_of(one), weights_of(other)
    return float(torch.cat([(value - theirs[name]).flatten() for name, value in mine.items()]).norm())


def test_gamma_0_is_dpo_bit_for_bit(tmp_path: Path) -> None:
    base, off, on = (trained(m, tmp_path / f"{i}")[0] for i, m in enumerate([dpo(), spo_degree(gamma=0.0), spo_degree()]))
    assert way(base, off) == 0 < way(base, on)


def test_degree_with_weight_0_moves_the_head_at_most(tmp_path: Path) -> None:
    """Copies are scored and a head trains beside the model, but the model is dpo's up to float32 sums in another order."""
    collect = degraded(degrees=3, remove="keyphrases", replace=False, shuffle=False)
    nothing = add(partial(dpo_loss, beta=0.1), scale(degree.degree, 0.0))
    beside = Method(nothing, collect, frozen, plain, heads={"degree": Head(size=3, lr_scale=10.0)}, columns=2)
    base, same = (trained(m, tmp_path / f"{i}", optimiser="sgd", lr=0.1)[0] for i, m in enumerate([dpo(), beside]))
    assert way(base, same) < 1e-5 * way(base, policy())


def test_a_head_at_zero_gives_ln_3_and_moves_itself_alone() -> None:
    """The gradient of the trunk passes through the head's weights, so it is zero in the first step; the head's own is not."""
    made = policy()
    method = replace(spo_degree(), objective=degree.degree, heads={"degree": Head(size=3, std=0.0)})
    learner = GradientLearner(made, method, {"current": made, "reference": made.reference()}, optimiser="sgd", lr=0.1, clip=0.0)
    before = made.state()
    told = learner.descend(collected(made, rows(made)))
    assert told["loss"] == pytest.approx(math.log(3), abs=1e-6)  # the head's outputs are float32
    moved = {name for name, value in made.state().items() if not torch.equal(value, before[name])}
    assert moved == {"heads.degree.weight", "heads.degree.bias"}
    learner.descend(collected(made, rows(made)))
    assert any(not torch.equal(value, before[name]) for name, value in weights_of(made).items())


def test_the_degree_loss_reaches_neither_log_probs_nor_reference_nor_the_prompt() -> None:
    """It acts through hidden states of the response's own tokens."""
    made = policy()
    made.attach({"degree": Head(size=3)}, DRAW)
    feed = collected(made, rows(made))
    s = made.score(feed)
    reference = torch.zeros_like(s.logp, requires_grad=True)
    loss = degree.degree(replace(s, ref_logp=reference)).row.sum()
    assert torch.autograd.grad(loss, [s.logp, reference], allow_unused=True, retain_graph=True) == (None, None)
    assert any(g is not None and g.any() for g in torch.autograd.grad(loss, made.parameters(), allow_unused=True))


def accuracy(outcome: training.Outcome, last: int = 5) -> float:
    return sum(line["degree_accuracy"] for line in outcome.history[-last:]) / last


def test_degrees_are_learnt_unless_they_are_shuffled(tmp_path: Path) -> None:
    """Of the labelled responses of the five texts, 5 are intact and 5 are copies; a guess by frequency has about half."""
    learnt = accuracy(trained(spo_degree(gamma=1.0), tmp_path / "a", steps=30, lr=1e-2)[1])
    shuffled = accuracy(trained(spo_degree(gamma=1.0, shuffle_degrees=True), tmp_path / "b", steps=30, lr=1e-2)[1])
    assert learnt > 0.9 and shuffled < 0.75


@pytest.mark.parametrize("how", [{}, {"ordinal": "hinge"}, {"remove": "random"}, {"shuffle_degrees": True}])
def test_a_resumed_run_ends_where_an_unbroken_one_does(how: dict[str, Any], tmp_path: Path) -> None:
    """Heads, their optimiser state and the draws of the copies come back."""
    method = spo_degree(gamma=0.5, **how)
    whole, _ = trained(method, tmp_path / "whole", save_every=3)
    stop = lambda event: event.step == 3
    folder = tmp_path / "broken"
    folder.mkdir()
    config = TrainConfig(steps=6, batch=5, lr=3e-3, save_every=3)
    first = policy(tokens_per_batch=0)
    training.run(first, method, RowsFeed(rows(first, 10)), config, folder, Log(folder, 6, progress=False), callbacks=[stop])
    again = policy(tokens_per_batch=0)
    training.run(again, method, RowsFeed(rows(again, 10)), config, folder, Log(folder, 6, progress=False), resume=True)
    assert all(torch.equal(value, again.state()[name]) for name, value in whole.state().items())


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    """Sums of floats in another order: equal to 1e-5 of the way that the weights went."""
    method = spo_degree(gamma=0.5, remove="random")
    one, *others = (trained(method, tmp_path / f"{n}", steps=3, optimiser="sgd", lr=0.1, micro_batch=n)[0] for n in (1, 2, 5))
    assert all(way(one, other) < 1e-5 * way(one, policy()) for other in others)


def test_from_a_file_the_copies_need_no_column_and_the_model_has_no_head(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"film {i}", "chosen": TEXTS[i % 5][0], "rejected": TEXTS[i % 5][1]} for i in range(8)]
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    model = tiny_folder(tmp_path / "model")
    done = preftune.train(str(model), "spo-degree", str(file), test=0.25, out=tmp_path / "run", samples=0, progress=False, batch=3, steps=2,
                          eval_every=2)  # fmt: skip
    assert {"degree_accuracy", "degree_loss", "accuracy"} <= set(done.history[1])  # after the evaluation at step 0
    assert "degree_accuracy" in done.history[-1]["eval"]
    from transformers import AutoModelForCausalLM

    saved = AutoModelForCausalLM.from_pretrained(done.model).state_dict()
    assert saved.keys() == AutoModelForCausalLM.from_pretrained(model).state_dict().keys()
