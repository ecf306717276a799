"""Judges that are trained: what they learn, that a folder holds all of it, and what is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import preftune
from preftune import methods
from preftune.api import resolve_judge
from preftune.data.columns import Record
from preftune.judges import MADE, trained
from preftune.judges.asking import Question
from preftune.judges.headed import even
from preftune.judging import resume_judge, train_judge
from preftune.learner import GradientLearner
from preftune.objectives.judge_training import skew
from preftune.policies.text import load
from preftune.policies.text.logprob import Network
from preftune.types import Context, Head, Key, PreftuneError, Rows, needs_of
from text_fixtures import tiny_folder, tiny_policy

KEY = Key.of(0)
FLOAT32 = 1e-6  # sums of float32 in another order
STYLES = {"rock": "stone granite pebble", "paper": "sheet page letter", "scissors": "blade cutter shears"}
BEATS = [("paper", "rock"), ("scissors", "paper"), ("rock", "scissors")]
FAST = {"lr": 3e-3, "batch": 12, "progress": False, "save_every": 0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


def answer(style: str, i: int) -> str:
    """Two words of the style around a number, in an order of their own."""
    words = STYLES[style].split()
    return f"{words[i % 3]} {i % 7} {words[(i + 1 + i // 3 % 2) % 3]}"


def pairs(winners: list[tuple[str, str]], n: int, first: int = 0, **labels: Any) -> list[dict[str, Any]]:
    """n rows for each (better, worse) style, whose words and prompts differ."""
    return [
        {"prompt": f"question {i % 5}", "chosen": answer(a, i), "rejected": answer(b, i + 1), **labels}
        for i in range(first, first + n)
        for a, b in winners
    ]


def rows_of(policy: Any, *responses: list[str], prompts: Any = None) -> Rows:
    texts = prompts or [f"question {i}" for i in range(len(responses))]
    return policy.encode([Record(id=str(i), prompt=p, responses=r) for i, (p, r) in enumerate(zip(texts, responses, strict=True))])[0]


def trained_on(model: Path, kind: str, data: Any, out: Path, **settings: Any) -> Any:
    return train_judge(str(model), kind, data, out=out, **{**FAST, **settings})


@pytest.fixture(scope="module")
def reward_model(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge that likes rock better than paper."""
    place = tmp_path_factory.mktemp("reward")
    os.environ["PREFTUNE_CACHE"] = str(place / "cache")
    return trained_on(model, "reward-model", pairs([("rock", "paper")], 24), place / "run", steps=10).judge


# --- what they learn ------------------------------------------------------------------------------------------------


def accuracy(judge: Any, policy: Any, held_out: list[dict[str, Any]]) -> float:
    rows = rows_of(policy, *([r["chosen"], r["rejected"]] for r in held_out), prompts=[r["prompt"] for r in held_out])
    p = judge.prefer(rows, rows.response, rows.response, KEY)[:, 0, 1]
    return float(((p > 0.5).double() + 0.5 * (p == 0.5)).mean())


def test_a_general_preference_model_learns_a_cycle_of_styles_that_bradley_terry_cannot(model: Path, tmp_path: Path) -> None:
    """Three styles in a circle: rewards can order two of three majorities at best, and the loss pays them to order none."""
    data, unseen = pairs(BEATS, 40), pairs(BEATS, 20, first=100)
    found = {}
    for kind in ("general-preference", "reward-model"):
        done = trained_on(model, kind, data, tmp_path / kind, steps=50)
        found[kind] = accuracy(resolve_judge(str(done.judge)), load(model), unseen)
    assert found["general-preference"] >= 0.9
    assert found["reward-model"] <= 0.6


def test_k_responses_cost_a_general_preference_model_k_encodings(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All 2 * 6 * 6 pairs of two prompts with six responses: twelve sequences go through the model, and none a second time."""
    run: list[int] = []
    whole = Network.states_alone
    monkeypatch.setattr(Network, "states_alone", lambda self, asked: (run.append(len(asked)), whole(self, asked))[1])
    done = trained_on(model, "general-preference", pairs(BEATS, 4), tmp_path / "run", steps=1)
    judge, policy = resolve_judge(str(done.judge)), load(model)
    rows = rows_of(policy, *[[answer(style, i) for style in STYLES for i in (j, j + 1)] for j in (0, 10)])
    run.clear()
    p = judge.prefer(rows, rows.response, rows.response, KEY)
    assert p.shape == (2, 6, 6) and sum(run) == 12
    again = judge.prefer(rows, rows.response.take(columns=[3, 1]), rows.response, KEY)
    assert sum(run) == 12 and torch.equal(again, p[:, [3, 1]])


def test_probabilities_of_a_general_preference_model_add_up_to_one_exactly(model: Path, tmp_path: Path) -> None:
    done = trained_on(model, "general-preference", pairs(BEATS, 8), tmp_path / "run", steps=4, gated=True, planes=2)
    judge, policy = resolve_judge(str(done.judge)), load(model)
    rows = rows_of(policy, [answer(style, i) for style in STYLES for i in range(3)])
    p = judge.prefer(rows, rows.response, rows.response, KEY)
    assert torch.equal(p + p.mT, torch.ones_like(p)) and torch.equal(p.diagonal(dim1=1, dim2=2), torch.full((1, 9), 0.5).double())
    z = torch.linspace(-40, 40, 1001, dtype=torch.float64)
    assert torch.equal(even(z) + even(-z), torch.ones_like(z))
    torch.testing.assert_close(even(z), z.sigmoid(), rtol=0, atol=2.3e-16)  # the lower half is a difference from 1


def test_a_soft_label_becomes_the_judges_probability(model: Path, tmp_path: Path) -> None:
    """The least cross-entropy to labels of .75 is at .75; 40 steps end within a few hundredths of it, over unseen pairs."""
    data = pairs([("rock", "paper")], 24, prefer=0.75)
    for kind in ("reward-model", "general-preference", "pairwise-preference"):
        done = trained_on(model, kind, data, tmp_path / kind, steps=40, schedule="cosine")
        rows = rows_of(load(model), *([row["chosen"], row["rejected"]] for row in pairs([("rock", "paper")], 15, first=100)))
        p = resolve_judge(str(done.judge)).prefer(rows, rows.response, rows.response, KEY)[:, 0, 1]
        assert abs(float(p.mean()) - 0.75) < 0.05, kind


def test_a_margin_moves_the_rewards_apart_by_itself(model: Path, tmp_path: Path) -> None:
    """Labels of just above one half are fitted at a gap of logit .501 = .004; with a margin of 1.5 taken off, 1.5 above."""
    data = [{**row, "prefer": 0.501, "margin": 1.5} for row in pairs([("rock", "paper")], 24)]
    gap = {}
    for margin in ("none", "subtract"):
        done = trained_on(model, "reward-model", data, tmp_path / margin, steps=60, margin=margin, schedule="cosine")
        rows = rows_of(load(model), *([row["chosen"], row["rejected"]] for row in pairs([("rock", "paper")], 15, first=100)))
        r = resolve_judge(str(done.judge)).score(rows, rows.response, KEY)
        gap[margin] = float((r[:, 0] - r[:, 1]).mean())
    assert abs(gap["none"]) < 0.15 and abs(gap["subtract"] - 1.5) < 0.15
    data[7]["margin"] = None
    with pytest.raises(PreftuneError, match="row 8, column 'margin': found no value"):
        trained_on(model, "reward-model", data, tmp_path / "without", steps=1, margin="subtract")


def test_centring_draws_the_rewards_of_a_pair_to_zero(model: Path, tmp_path: Path) -> None:
    mean = {}
    for centring in (0.0, 1.0):
        done = trained_on(model, "reward-model", pairs([("rock", "paper")], 24), tmp_path / str(centring), steps=40, centring=centring)
        mean[centring] = abs(json.loads((done.judge / MADE).read_text())["statistics"]["reward"]["mean"][0])
    assert mean[1.0] < 0.1 and mean[1.0] < mean[0.0]


def test_a_list_trains_the_rewards_of_all_its_responses(model: Path, tmp_path: Path) -> None:
    order = ["rock", "scissors", "paper"]
    data = [{"prompt": f"question {i % 5}", "responses": [answer(s, i) for s in order], "ranked": True} for i in range(24)]
    done = trained_on(model, "k-wise", data, tmp_path / "run", steps=30)
    rows = rows_of(load(model), [answer(s, 50) for s in ("paper", "rock", "scissors")])
    assert resolve_judge(str(done.judge)).score(rows, rows.response, KEY)[0].argsort(descending=True).tolist() == [1, 2, 0]


def test_marks_are_regressed_and_weighed(model: Path, tmp_path: Path) -> None:
    """Rock is helpful 4 and verbose 1, paper 1 and 3; a mark in three is missing. Weights choose between them."""
    marks = {"rock": (4.0, 1.0), "paper": (1.0, 3.0)}
    data = [
        {
            "prompt": f"question {i % 5}",
            "completion": answer(style, i),
            "helpfulness": None if i % 3 == 0 else marks[style][0],
            "verbosity": marks[style][1],
        }
        for i in range(24)
        for style in marks
    ]
    done = trained_on(model, "attribute-regression", data, tmp_path / "run", steps=60, attributes="helpfulness,verbosity", lr=1e-2)
    rows = rows_of(load(model), ["stone 3 pebble", "sheet 3 letter"])
    score = lambda options: resolve_judge(f"{done.judge}{options}").score(rows, rows.response, KEY)[0]
    torch.testing.assert_close(score(",weights=helpfulness:1"), torch.tensor([4.0, 1.0]).double(), rtol=0, atol=0.4)
    torch.testing.assert_close(score(",weights=verbosity:-1"), torch.tensor([-1.0, -3.0]).double(), rtol=0, atol=0.4)
    both = score(",weights=helpfulness:0.5+verbosity:2")
    torch.testing.assert_close(both, 0.5 * score(",weights=helpfulness:1") - 2 * score(",weights=verbosity:-1"))
    torch.testing.assert_close(score(""), 0.65 * score(",weights=helpfulness:1"))  # HelpSteer2's
    with pytest.raises(PreftuneError, match="weights has 'help:1', needed name:number with a name of helpfulness, verbosity"):
        score(",weights=help:1")
    lists = [{"prompt": "q", "responses": ["a b", "b c"], "ranked": True, "helpfulness": [1, 2], "verbosity": [2, 1]}] * 2
    names = {"attributes": "helpfulness,verbosity"}
    assert trained_on(model, "attribute-regression", lists, tmp_path / "lists", steps=1, **names).stopped == "finished"
    with pytest.raises(PreftuneError, match="have none of the columns clarity"):
        trained_on(model, "attribute-regression", data, tmp_path / "other", steps=1, attributes="clarity")


def test_a_judge_of_pairs_is_shown_both_in_both_orders(model: Path, tmp_path: Path) -> None:
    done = trained_on(model, "pairwise-preference", pairs(BEATS, 16), tmp_path / "run", steps=20)
    fair, raw = resolve_judge(str(done.judge)), resolve_judge(f"{done.judge},both_orders=false")
    rows = rows_of(load(model), [answer(style, 5) for style in STYLES])
    p, q = (judge.prefer(rows, rows.response, rows.response, KEY) for judge in (fair, raw))
    torch.testing.assert_close(p, (q + 1 - q.mT) / 2)
    torch.testing.assert_close(p + p.mT, torch.ones_like(p), rtol=0, atol=1e-15)
    assert not torch.allclose(q + q.mT, torch.ones_like(q), rtol=0, atol=1e-6)
    shown = methods.pairwise_preference().collect(Context({"current": load(model)}, rows_of(load(model), ["x", "y"]))).response.show()[0]
    assert shown == ["First response:\nx\n\nSecond response:\ny", "First response:\ny\n\nSecond response:\nx"]


# --- a folder holds all of it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["full", "lora", 1])
@pytest.mark.parametrize("kind", ["reward-model", "general-preference", "pairwise-preference"])
def test_a_loaded_judge_says_what_the_trained_one_said(model: Path, kind: str, train: str | int, tmp_path: Path) -> None:
    done = trained_on(model, kind, pairs(BEATS, 4), tmp_path / "run", steps=3, load={"train": train})
    policy = done.runs[0].policy
    rows = rows_of(policy, ["stone 3 pebble", "sheet 3 letter"], ["blade", ""])
    collected = rows
    if kind == "pairwise-preference":
        collected = methods.pairwise_preference().collect(Context({"current": policy}, rows))
    [(name, outputs)] = policy.score_heads(collected).heads.items()
    judge: Any = resolve_judge(str(done.judge))
    [member] = judge.members
    if kind == "pairwise-preference":
        logits = member.compare(rows, rows.response, rows.response)[0]
        torch.testing.assert_close(torch.stack([logits[:, 0, 1], logits[:, 1, 0]], 1), outputs[..., 0], rtol=FLOAT32, atol=FLOAT32)
        return
    torch.testing.assert_close(member.ask(rows, rows.response)[0], outputs, rtol=FLOAT32, atol=FLOAT32)
    p = judge.prefer(rows, rows.response, rows.response, KEY)[:, 0, 1]
    logit = outputs[:, 0, 0] - outputs[:, 1, 0] if name == "reward" else skew(outputs[:, 0], outputs[:, 1]) / 0.1
    torch.testing.assert_close(p, logit.sigmoid(), rtol=1e-5, atol=1e-6)


def test_an_adapters_judge_holds_no_base(model: Path, tmp_path: Path) -> None:
    done = trained_on(model, "reward-model", pairs(BEATS, 4), tmp_path / "run", steps=2, load={"train": "lora", "lora_r": 2})
    assert (done.judge / "adapter_model.safetensors").exists() and not (done.judge / "model.safetensors").exists()


def test_standard_scores_have_mean_0_and_deviation_1_over_the_training_answers(reward_model: Path, model: Path) -> None:
    policy = load(model)
    data = pairs([("rock", "paper")], 24)
    rows = rows_of(policy, *([r["chosen"], r["rejected"]] for r in data), prompts=[r["prompt"] for r in data])
    raw, standard = (resolve_judge(f"{reward_model}{option}") for option in ("", ",normalise=true"))
    r, s = (judge.score(rows, rows.response, KEY) for judge in (raw, standard))
    assert abs(float(s.mean())) < 1e-5 and abs(float(s.std(correction=0)) - 1) < 1e-5
    assert json.loads((reward_model / MADE).read_text())["statistics"]["answers"] == 48
    both = [judge.prefer(rows, rows.response, rows.response, KEY) for judge in (raw, standard)]
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-9)  # probabilities are those of the rewards either way
    assert not torch.allclose(r, s)


def test_answers_are_kept_under_the_weights_and_dropout_that_gave_them(reward_model: Path, model: Path) -> None:
    rows = rows_of(load(model), ["stone 3 pebble", "sheet 3 letter"])
    first, second, dropped = (resolve_judge(f"{reward_model}{o}") for o in ("", "", ",dropout=0.2,draws=3"))
    for judge in (first, second, dropped):
        judge.score(rows, rows.response, KEY)
    asked = [(j.members[0].asker.asked, j.members[0].asker.known) for j in (first, second, dropped)]
    assert asked == [(2, 0), (0, 2), (2, 0)]


def test_dropout_asks_heads_that_leave_out_the_same_share_of_the_state_whatever_they_read(reward_model: Path, model: Path) -> None:
    """Draw j has the weights W m_j / (1 - p); the judge's score is the mean, with pessimism less their standard deviation."""
    rows = rows_of(load(model), ["stone 3 pebble", "sheet 3 letter", "sheet 3 letter"])
    judge: Any = resolve_judge(f"{reward_model},dropout=0.25,draws=5")
    careful = resolve_judge(f"{reward_model},dropout=0.25,draws=5,pessimism=2")
    head = load_file(reward_model / "heads.safetensors")
    policy = load(reward_model)
    policy.attach({"reward": Head(1, pool="last")}, KEY)
    draws = []
    for j in range(5):
        mask = torch.from_numpy(Key.of(0).fold("dropout", j).numpy().random(32) >= 0.25)
        with torch.no_grad():
            policy.heads["reward"].linear.weight.copy_(head["heads.reward.weight"] * mask / 0.75)
            policy.heads["reward"].linear.bias.copy_(head["heads.reward.bias"])
            draws.append(policy.score_heads(rows).heads["reward"][..., 0])
    expected = torch.stack(draws)
    torch.testing.assert_close(judge.score(rows, rows.response, KEY), expected.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        careful.score(rows, rows.response, KEY), expected.mean(0) - 2 * expected.std(0, correction=0), rtol=1e-5, atol=1e-5
    )
    p = judge.prefer(rows, rows.response, rows.response, KEY)[0]
    assert p[1, 2] == 0.5 and expected.std(0, correction=0).min() > 0


@pytest.mark.parametrize("train", ["full", "lora"])
def test_an_ensemble_asks_all_its_members(model: Path, train: str, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs([("rock", "paper")], 12)))
    done = trained_on(model, "reward-model", str(data), tmp_path / "run", steps=4, ensemble=2, load={"train": train})
    assert [run.folder.name for run in done.runs] == ["0", "1"] and done.stopped == "finished"
    rows = rows_of(load(model), ["stone 3 pebble", "sheet 3 letter"], ["blade", "page"])
    each = [resolve_judge(f"{run.folder / 'judge'},normalise=true") for run in done.runs]
    scores = torch.stack([judge.score(rows, rows.response, KEY) for judge in each])
    assert not torch.allclose(scores[0], scores[1])  # other seeds, other judges
    judge: Any = resolve_judge(str(done.judge))
    torch.testing.assert_close(judge.score(rows, rows.response, KEY), scores.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(judge.slope, (each[0].slope + each[1].slope) / 2)  # type: ignore[attr-defined]
    careful = resolve_judge(f"{done.judge},pessimism=1")
    torch.testing.assert_close(careful.score(rows, rows.response, KEY), scores.mean(0) - scores.std(0, correction=0), rtol=1e-5, atol=1e-6)
    networks = {id(member.asker.answerer.policy.network) for member in judge.members}
    assert len(networks) == (1 if train == "lora" else 2)  # adapters share their base


# --- interrupted ----------------------------------------------------------------------------------------------------


def heads_of(judge: Path) -> dict[str, Tensor]:
    return load_file(judge / "heads.safetensors")


def test_a_killed_training_goes_on_to_the_same_judge(model: Path, tmp_path: Path) -> None:
    """kill -9 once a checkpoint is there; resuming ends with the heads of the run that nobody killed, bit for bit."""
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs([("rock", "paper")], 12)))
    options = ["--model", model, "--data", data, "--load", "tokens_per_batch=0", "--set", "steps=24", "--set", "save_every=1"]
    command = [sys.executable, "-m", "preftune", "judge", "train", "reward-model", *options, "--out", tmp_path / "cut"]
    going = subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "cut" / "checkpoints").glob("step-*")) and time.monotonic() < deadline and going.poll() is None:
        time.sleep(0.01)
    going.send_signal(signal.SIGKILL)
    going.wait()
    assert not (tmp_path / "cut" / "judge" / MADE).exists()
    with pytest.raises(PreftuneError, match="has no judge.json"):
        resolve_judge(str(tmp_path / "cut"))
    resumed = resume_judge(tmp_path / "cut", progress=False)
    assert resumed.runs[0].steps == 24
    whole = train_judge(
        str(model), "reward-model", str(data), out=tmp_path / "whole", load={"tokens_per_batch": 0}, steps=24, progress=False
    )
    first, second = heads_of(resumed.judge), heads_of(whole.judge)
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_an_ensemble_goes_on_with_the_member_that_is_missing(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in pairs([("rock", "paper")], 12)))
    done = trained_on(model, "reward-model", str(data), tmp_path / "run", steps=2, ensemble=2, load={"tokens_per_batch": 0})
    before = heads_of(done.folder / "1" / "judge")
    shutil.rmtree(done.judge)
    shutil.rmtree(done.folder / "1")
    again = resume_judge(done.folder, progress=False)
    assert [run.folder.name for run in again.runs] == ["1"] and (again.judge / MADE).exists()
    assert all(torch.equal(value, before[name]) for name, value in heads_of(done.folder / "1" / "judge").items())


# --- what is refused ------------------------------------------------------------------------------------------------


def test_folders_that_hold_no_whole_judge_are_refused(reward_model: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match=r"has no judge.json, needed the folder of a trained judge"):
        resolve_judge(str(model))
    with pytest.raises(PreftuneError, match="there is no judge"):
        resolve_judge(str(tmp_path / "nowhere"))
    copied = tmp_path / "judge"
    shutil.copytree(reward_model, copied)
    heads = heads_of(copied)
    (copied / "heads.safetensors").unlink()
    with pytest.raises(PreftuneError, match=r"has no heads.safetensors"):
        resolve_judge(str(copied))
    save_file({name: value + 1 for name, value in heads.items()}, copied / "heads.safetensors")
    with pytest.raises(PreftuneError, match="belongs to another judge"):
        resolve_judge(str(copied))
    broken = {name: value * math.nan for name, value in heads.items()}
    save_file(broken, copied / "heads.safetensors")
    told = json.loads((copied / MADE).read_text())
    (copied / MADE).write_text(json.dumps({**told, "digest": trained.digest(broken)}))
    with pytest.raises(PreftuneError, match="not finite"):
        resolve_judge(str(copied))
    for content in ("{", "[]", json.dumps({**told, "format": 99}), json.dumps({**told, "kind": "oracle"})):
        (copied / MADE).write_text(content)
        with pytest.raises(PreftuneError, match="is not what `preftune judge train` writes"):
            resolve_judge(str(copied))


def test_answers_that_are_not_finite_are_an_error_and_no_silence(reward_model: Path, model: Path, tmp_path: Path) -> None:
    copied = tmp_path / "judge"
    shutil.copytree(reward_model, copied)
    huge = {name: value.sign() * 3e38 for name, value in heads_of(copied).items()}
    save_file(huge, copied / "heads.safetensors")
    told = json.loads((copied / MADE).read_text())
    (copied / MADE).write_text(json.dumps({**told, "digest": trained.digest(huge)}))
    rows = rows_of(load(model), ["stone"])
    with pytest.raises(PreftuneError, match=r"answered \[-?(inf|nan)\] about the response 'stone', needed finite numbers"):
        resolve_judge(f"{copied}").score(rows, rows.response, KEY)


def test_an_empty_response_has_a_score_and_one_beyond_the_context_an_error(reward_model: Path, model: Path) -> None:
    judge = resolve_judge(str(reward_model))
    rows = rows_of(load(model), ["", "stone 3"])
    assert judge.score(rows, rows.response, KEY).isfinite().all()
    long = rows_of(load(model), ["stone " * 600])
    with pytest.raises(PreftuneError, match=r"asked about \d+ tokens of prompt and response, needed at most the 512 positions"):
        judge.score(long, long.response, KEY)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("weights=a:1", "weights was given to a judge of the kind reward, needed a judge of attributes"),
        ("pessimism=1", "needed a judge with scores, and an ensemble or dropout"),
        ("draws=4", "needed dropout=... beside it"),
        ("both_orders=false", "needed a judge that is shown both responses"),
        ("dropout=1", "needed 0 <= dropout < 1"),
        ("slope=0", "slope is 0.0, needed pessimism >= 0 and slope > 0"),
        ("drop=0.1", "drop"),
    ],
)
def test_no_option_is_ignored(reward_model: Path, options: str, said: str) -> None:
    with pytest.raises(PreftuneError, match=said):
        resolve_judge(f"{reward_model},{options}")


def test_what_trains_no_judge_is_refused_before_a_model_is_opened(tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="dpo trains a policy, needed a method that trains a judge: reward-model"):
        train_judge("nowhere", "dpo", "nothing.jsonl", out=tmp_path / "run")
    with pytest.raises(PreftuneError, match="did you mean reward-model"):
        train_judge("nowhere", "reward-models", "nothing.jsonl", out=tmp_path / "run")
    with pytest.raises(PreftuneError, match="planes is 0, needed at least 1"):
        train_judge("nowhere", "general-preference", "nothing.jsonl", out=tmp_path / "run", planes=0)
    with pytest.raises(PreftuneError, match="found a model in memory, needed at least one member, and a folder"):
        train_judge(tiny_policy(), "reward-model", [], out=tmp_path / "run", ensemble=2)


# --- a pass without the output layer --------------------------------------------------------------------------------


@pytest.mark.parametrize("train", ["full", "lora", 1])
@pytest.mark.parametrize("engine", ["fast", "plain"])
def test_heads_alone_are_those_of_the_whole_score_and_run_no_output_layer(
    engine: str, train: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = tiny_policy(train, engine=engine)
    policy.attach({"reward": Head(2, pool="last", std=None), "mean": Head(1)}, KEY)
    rows = rows_of(policy, ["stone 3", "sheet"], ["blade 4 shears", ""])
    whole = policy.score(rows)
    monkeypatch.setattr(Network, "head_logp", lambda *_: pytest.fail("the output layer was run"))
    alone = policy.score_heads(rows)
    assert not alone.logp.any() and torch.equal(alone.length, whole.length)  # type: ignore[arg-type]
    for name in ("reward", "mean"):
        torch.testing.assert_close(alone.heads[name], whole.heads[name], rtol=FLOAT32, atol=FLOAT32)
    slopes = [torch.autograd.grad(s.heads["reward"].sum(), policy.parameters(), allow_unused=True) for s in (alone, whole)]
    for a, b in zip(*slopes, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


def test_an_objective_that_reads_no_log_probs_takes_the_same_step_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for reads in (False, True):
        method = methods.reward_model()
        if reads:
            method.objective.needs = preftune.Needs(**{**vars(needs_of(method.objective)), "logp": True})  # type: ignore[union-attr]
        policy = tiny_policy()
        rows = rows_of(policy, ["stone 3", "sheet"], ["blade 4 shears", "page"]).replace(ranked=True)
        learner = GradientLearner(policy, method, {"current": policy}, optimiser="sgd", lr=0.1, micro_batch=1)
        start = policy.state()
        told = learner.descend(rows)
        moved.append({name: value - start[name] for name, value in policy.state().items()})
        assert told["accuracy"] in (0.0, 0.5, 1.0)
    for name, move in moved[0].items():
        torch.testing.assert_close(moved[1][name], move, rtol=1e-4, atol=1e-6)


def test_a_run_of_another_seed_starts_with_other_heads() -> None:
    weights = []
    for seed in (0, 0, 1):
        policy = tiny_policy()
        GradientLearner(policy, methods.reward_model(), {"current": policy}, seed=seed)
        weights.append(policy.heads["reward"].linear.weight.detach())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert abs(float(weights[0].std()) - 33**-0.5) < 3 * 33**-0.5 / 8  # 32 draws: three standard errors


# --- the implicit reward --------------------------------------------------------------------------------------------


def test_the_implicit_reward_is_beta_times_the_log_ratio(model: Path, tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", seed=1)
    policy, start = load(other), load(model)
    rows = rows_of(policy, ["stone 3", "sheet"], ["blade 4 shears", ""])
    expected = 0.2 * (policy.score(rows).logp - start.score(rows).logp).detach()
    judge = resolve_judge(f"implicit,policy={other},reference={model},beta=0.2")
    torch.testing.assert_close(judge.score(rows, rows.response, KEY), expected, rtol=1e-5, atol=1e-5)
    p = judge.prefer(rows, rows.response, rows.response, KEY)
    torch.testing.assert_close(p[:, 0, 1], (expected[:, 0] - expected[:, 1]).sigmoid(), rtol=1e-5, atol=1e-6)
    mean = resolve_judge(f"implicit,policy={other},reference={model},beta=0.2,per_token=true")
    torch.testing.assert_close(mean.score(rows, rows.response, KEY), expected / rows.response.length, rtol=1e-5, atol=1e-5)


def test_an_adapters_implicit_reward_is_against_its_base(model: Path, tmp_path: Path) -> None:
    run = preftune.train(
        str(model), "dpo", pairs([("rock", "paper")], 8), out=tmp_path / "run", load={"train": "lora"}, steps=8, lr=1e-2, batch=8,
        samples=0, progress=False,
    )  # fmt: skip
    judge, base = (resolve_judge(f"implicit,policy={run.model}{more}") for more in ("", f",reference={model}"))
    rows = rows_of(load(model), ["stone 3 pebble", "sheet 3 letter"])
    found = judge.score(rows, rows.response, KEY)
    torch.testing.assert_close(found, base.score(rows, rows.response, KEY), rtol=1e-5, atol=1e-5)
    assert found[0, 0] > found[0, 1]  # what it was trained to
    with pytest.raises(PreftuneError, match="is a whole model and no reference was given"):
        resolve_judge(f"implicit,policy={model}")
    with pytest.raises(PreftuneError, match="beta is 0.0, needed a number above 0"):
        resolve_judge(f"implicit,policy={model},beta=0")


# --- word statistics ------------------------------------------------------------------------------------------------


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_words_that_were_preferred_are_found_on_pairs_and_on_scores(model: Path, tmp_path: Path) -> None:
    soft = written(tmp_path / "pairs.jsonl", [{**row, "prefer": 0.9} for row in pairs([("rock", "paper")], 60)])
    scores = {"rock": 3.0, "paper": 1.0}
    marked = [{"prompt": "q", "responses": [answer(s, i) for s in scores], "scores": list(scores.values())} for i in range(60)]
    single = [{"prompt": "q", "responses": [answer(s, i)], "scores": [scores[s]]} for i in range(60) for s in scores]
    rows = rows_of(load(model), ["sheet 3 letter", "stone 3 pebble"])
    for file in (soft, written(tmp_path / "scores.jsonl", marked), written(tmp_path / "single.jsonl", single)):
        judge: Any = resolve_judge(f"words,data={file}")
        score = judge.score(rows, rows.response, KEY)[0]
        assert score[1] > score[0] and judge.slope > 0
        p = float(judge.prefer(rows, rows.response, rows.response, KEY)[0, 1, 0])
        assert abs(p - 0.9) < 0.05 if file == soft else p > 0.9
    assert abs(float(score[1]) - 3) < 0.3


def test_word_judges_refuse_what_they_cannot_learn_from(tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match="has 3 rows with scores or ranked responses, needed at least 20"):
        resolve_judge(f"words,data={written(tmp_path / 'few.jsonl', pairs([('rock', 'paper')], 3))}")
    same = [{"prompt": "q", "responses": [answer("rock", i)], "scores": [1.0]} for i in range(40)]
    with pytest.raises(PreftuneError, match="all scores are equal"):
        resolve_judge(f"words,data={written(tmp_path / 'same.jsonl', same)}")
    with pytest.raises(PreftuneError, match="alpha is 0.0, needed a number above 0"):
        resolve_judge("words,data=x.jsonl,alpha=0")


# --- the command line -----------------------------------------------------------------------------------------------


def test_the_command_trains_a_judge_that_another_command_takes(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from preftune.cli import main

    data = written(tmp_path / "pairs.jsonl", pairs([("rock", "paper")], 16))

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([*map(str, arguments)])
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, " ".join(said.err.split())

    given = ("--model", model, "--data", data, "--test", 0.25, "--set", "steps=3", "--set", "batch=8")
    code, said, _ = run("judge", "train", "reward-model", *given, "--out", tmp_path / "run", "--json")
    told = json.loads(said)
    assert code == 0 and told["judge"] == str(tmp_path / "run" / "judge")
    after = told["runs"][0]["after"]
    assert {"accuracy", "loss", "brier", "calibration_error"} <= set(after) and 0 <= after["accuracy"]["value"] <= 1
    assert (tmp_path / "run" / "report.html").exists() and "A judge: reward" in (tmp_path / "run" / "judge" / "README.md").read_text()
    code, _, complaint = run("judge", "train", "reward-model", *given, "--out", tmp_path / "run")
    assert code == 3 and "holds a run already" in complaint
    code, _, complaint = run("judge", "train", "--resume", tmp_path / "run", "--set", "lr=1")
    assert code == 3 and "a resumed run keeps its settings" in complaint
    code, _, complaint = run("judge", "train", "reward-model", "--data", data)
    assert code == 3 and "no model was given" in complaint
    play = ("--set", "steps=1", "--set", "batch=2", "--max-response", 4, "--samples", 2)
    what = ("train", "online-ipo", "--model", model, "--data", data, "--judge", told["judge"])
    code, said, _ = run(*what, *play, "--out", tmp_path / "play", "--json")
    assert code == 0 and json.loads(said)["steps"] == 1


def test_a_question_of_a_conversation_is_asked_in_the_judges_own_template(reward_model: Path, model: Path) -> None:
    policy = load(model)
    talk = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}, {"role": "user", "content": "three"}]
    rows = rows_of(policy, ["stone"], prompts=[talk])
    judge: Any = resolve_judge(str(reward_model))
    answerer = judge.members[0].asker.answerer
    [(_, found)] = answerer.answer([Question((("user", "one"), ("assistant", "two"), ("user", "three")), ("stone",))])
    assert judge.score(rows, rows.response, KEY).item() == pytest.approx(found[0], abs=1e-6)
    alone = rows_of(policy, ["stone"], prompts=["three"])
    assert judge.score(alone, alone.response, KEY).item() != pytest.approx(found[0], abs=1e-6)
