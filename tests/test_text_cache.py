"""Reference log-probabilities on disk: the policy's own numbers, shared by runs and processes, safe against damage."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import preftune
from preftune.policies.text import CachedReference, LogpCache, cache_folder
from preftune.types import Key, Policy, PreftuneError, Rows
from test_composition_on_text import judge, language, sentences
from test_text_policy import step
from text_fixtures import Record, tiny_model, tiny_policy, tiny_records


def setting(tmp_path: Path, **options: int) -> tuple[CachedReference, Rows]:
    policy = tiny_policy()
    return CachedReference(policy.reference(), LogpCache(tmp_path / "logp.sqlite", **options)), policy.encode(tiny_records())[0]


@pytest.mark.parametrize("train", ["full", "lora", 1])
def test_cached_scores_equal_computed_ones_bit_for_bit(train: str | int, tmp_path: Path) -> None:
    policy = tiny_policy(train)
    rows, _ = policy.encode([*tiny_records(), Record("short", "x", ["one"])])
    cached: Policy = CachedReference(policy.reference(), LogpCache(tmp_path / "c.sqlite"))
    plain = policy.reference().score(rows)
    for hits in (0, 11):
        scored = cached.score(rows)
        assert torch.equal(scored.logp, plain.logp) and torch.equal(scored.length, plain.length)
        assert scored.logp.dtype == torch.float64 and not scored.logp.requires_grad
        assert (cached.hits, cached.misses) == (hits, 11)


def test_a_second_run_hits_whatever_trains_and_only_the_missing_are_computed(tmp_path: Path) -> None:
    """Another way of training, other batches and another order read the same entries; learning rate, beta and method are in no key."""
    first, rows = setting(tmp_path)
    first.score(rows.take([0, 1, 2]))
    again = CachedReference(tiny_policy("lora").reference(), LogpCache(tmp_path / "logp.sqlite"))
    scored = again.score(rows.take([4, 2, 0, 3]))
    assert (again.hits, again.misses) == (4, 4)
    torch.testing.assert_close(scored.logp, first.policy.score(rows.take([4, 2, 0, 3])).logp, rtol=1e-6, atol=0)


def test_weights_precision_prompt_response_and_engine_are_in_the_key(tmp_path: Path) -> None:
    cached, rows = setting(tmp_path)
    cached.score(rows)
    cache = cached.cache
    others = [
        tiny_policy(seed=1).reference(),
        tiny_policy(model=tiny_model().to(torch.bfloat16)).reference(),
        tiny_policy(tokens_per_batch=0).reference(),
        tiny_policy(1).reference(),
    ]
    for other in others:
        reader = CachedReference(other, cache)
        reader.score(rows)
        assert reader.hits == 0
    shifted = rows.replace(prompt=[(*p, 5) for p in rows.prompt])
    moved = rows.replace(prompt=[p[:-1] for p in rows.prompt])
    for changed in (shifted, moved, rows.replace(prompt=rows.prompt[::-1])):
        before = cached.hits
        cached.score(changed.take([0, 1]))
        assert cached.hits == before


def test_a_reference_that_moves_changes_its_key(tmp_path: Path) -> None:
    policy = tiny_policy()
    rows, _ = policy.encode(tiny_records())
    cached = CachedReference(policy.reference(), LogpCache(tmp_path / "c.sqlite"))
    cached.score(rows)
    other = tiny_policy(seed=1)
    moved = cached.lerp(other, 0.5)
    assert not isinstance(moved, CachedReference) and not torch.equal(moved.score(rows).logp, cached.score(rows).logp)
    cached.load(moved.state())
    assert torch.equal(cached.score(rows).logp, moved.score(rows).logp) and cached.misses == 20


def test_only_frozen_policies_are_cached() -> None:
    with pytest.raises(PreftuneError, match="frozen one is needed"):
        CachedReference(tiny_policy(), LogpCache())


def test_the_least_recently_used_entries_go_first(tmp_path: Path) -> None:
    cache = LogpCache(tmp_path / "c.sqlite", limit=200_000)
    value = {i: torch.full((500,), float(i)) for i in range(400)}  # 800 kB in all
    for i in range(40):
        cache.put({i.to_bytes(2, "big"): value[i]})
    kept = [i.to_bytes(2, "big") for i in range(5)]
    for i in range(40, 400):
        cache.put({i.to_bytes(2, "big"): value[i]})
        assert len(cache.get(kept)) == 5
        assert cache.size() <= 200_000
    found = cache.get([i.to_bytes(2, "big") for i in range(400)])
    assert {int.from_bytes(key, "big") for key in found} > {0, 1, 2, 3, 4, 399} and len(found) < 120
    assert all(torch.equal(v, value[int.from_bytes(key, "big")]) for key, v in found.items())
    assert (tmp_path / "c.sqlite").stat().st_size < 400_000
    assert LogpCache(tmp_path / "none.sqlite", limit=0).put({b"k": value[0]}) is None  # nothing fits: kept out, no endless loop


WRITER = """
import sys, torch
from preftune.policies.text.cache import LogpCache
cache, me = LogpCache(sys.argv[1]), int(sys.argv[2])
for turn in range(60):
    both = {bytes([turn, i]): torch.full((20,), turn + i / 100) for i in range(20)}
    cache.put(both | {bytes([turn, me, i]): torch.full((20,), float(me)) for i in range(20)})
    assert all(torch.equal(both[key], value) for key, value in cache.get(list(both)).items())
"""


def test_two_processes_share_a_file(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "c.sqlite")]
    running = [subprocess.Popen([*command, me], stderr=subprocess.PIPE, text=True, env=environment) for me in "12"]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    cache = LogpCache(tmp_path / "c.sqlite")
    assert len(cache) == 60 * (20 + 20 + 20) and cache.rebuilt == 0
    assert cache.get([bytes([59, 2, 7])])[bytes([59, 2, 7])].tolist() == [2.0] * 20


def test_many_may_make_the_same_new_file(tmp_path: Path) -> None:
    start = threading.Barrier(4)

    def make(turn: int) -> int:
        start.wait(timeout=60)
        cache = LogpCache(tmp_path / f"{turn}.sqlite")
        cache.put({b"k": torch.ones(3)})
        return len(cache)

    with ThreadPoolExecutor(4) as pool:
        for turn in range(50):
            assert list(pool.map(make, [turn] * 4)) == [1] * 4


def test_a_damaged_file_is_put_aside_and_rebuilt(tmp_path: Path) -> None:
    path = tmp_path / "logp.sqlite"
    path.write_bytes(b"this is no database at all" * 100)
    cached, rows = setting(tmp_path)
    assert cached.cache.rebuilt == 1 and (tmp_path / "logp.sqlite.damaged").exists()
    plain = cached.policy.score(rows).logp
    assert torch.equal(cached.score(rows).logp, plain)
    cached.cache.put({bytes([i, j]): torch.ones(200) for i in range(20) for j in range(20)})
    cached.cache.close()
    content = bytearray(path.read_bytes())
    for start in range(4096, len(content), 4096):
        content[start : start + 200] = os.urandom(200)  # the header is whole, the pages are not
    path.write_bytes(content)
    again = CachedReference(cached.policy, LogpCache(path))
    assert torch.equal(again.score(rows).logp, plain) and again.misses == 10 and again.cache.rebuilt == 1
    assert torch.equal(again.score(rows).logp, plain) and again.hits == 10


def test_an_entry_with_a_wrong_checksum_counts_as_absent(tmp_path: Path) -> None:
    cached, rows = setting(tmp_path)
    plain = cached.score(rows).logp
    with sqlite3.connect(tmp_path / "logp.sqlite") as db:
        db.execute(
            "UPDATE logp SET value = CAST(substr(value, 1, length(value) - 1) || x'7f' AS BLOB) WHERE key = (SELECT min(key) FROM logp)"
        )
    assert torch.equal(cached.score(rows).logp, plain) and cached.misses == 11
    assert torch.equal(cached.score(rows).logp, plain) and cached.misses == 11


def test_the_place_is_stated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here" and LogpCache().path == tmp_path / "here" / "logp.sqlite"
    monkeypatch.delenv("PREFTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "xdg" / "preftune"


def test_log_probs_from_sampling_serve_a_reference_of_the_same_weights_without_a_pass() -> None:
    policy = tiny_policy()
    rows, _ = policy.encode(tiny_records())
    with policy.remembering():
        y = policy.sample(rows, 3, Key.of(0), max_new_tokens=12)
    drawn = rows.replace(response=y, present=None)
    reference = policy.copy().cached()
    found = reference.score(drawn).logp
    assert reference.misses == 0 and reference.hits == 15
    torch.testing.assert_close(found, policy.copy().score(drawn).logp, rtol=0, atol=1e-4)
    step(policy, rows)
    moved = policy.copy().cached()
    moved.score(drawn)
    assert moved.hits == 0  # other weights


def test_log_probs_from_sampling_that_disagree_with_scored_ones_are_not_kept(tmp_path: Path) -> None:
    """Off by a hundredth of a nat a token, as an engine of another precision is."""
    from preftune.policies.text.cache import remember

    policy = tiny_policy()
    rows, _ = policy.encode(tiny_records())
    y = policy.sample(rows, 2, Key.of(0), max_new_tokens=12)
    off = replace(y, logp=tuple(tuple(tuple(v + 0.01 for v in values) for values in row) for row in y.logp))  # type: ignore[union-attr]
    cache = LogpCache(tmp_path / "c.sqlite")
    before = len(cache)
    assert not remember(policy, rows.replace(response=off, present=None), cache) and len(cache) == before
    assert remember(policy, rows.replace(response=y, present=None), cache) and len(cache) > before


def test_a_round_whose_reference_began_it_needs_no_pass_of_the_reference(tmp_path: Path) -> None:
    """Two rounds of sppo, two epochs each: every log-prob of the reference comes from sampling or from the first epoch's reading."""
    references = []
    preftune.train(
        language(),
        "sppo",
        [{"prompt": text} for text in sentences(6, "prompts")],
        judge=judge(),
        out=tmp_path / "run",
        callbacks=[lambda event: references.append(event.learner.roles["reference"])],
        progress=False,
        rounds=2,
        epochs=2.0,
        batch=3,
        responses=3,
        samples=0,
        max_response=8,
        lr=0.01,
    )
    assert len({id(reference) for reference in references}) == 3  # of two rounds, and what a third would have
    assert all(reference.misses == 0 and reference.hits == 24 for reference in (references[0], references[4]))
