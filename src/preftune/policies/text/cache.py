"""Reference log-probabilities on disk, per token, shared between runs and processes.

One SQLite file in write-ahead mode: locking, atomic writes and eviction come with it. A file system that cannot lock (some
network mounts) is no place for it; point PREFTUNE_CACHE to a local disk there.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy
import torch

from ...types import Key, PreftuneError, Rows, Scored, Want
from .logprob import Measured, assemble, engine, pairs_of
from .tokens import Pair, Shifted, Tokens, token_digest

if TYPE_CHECKING:
    from .mixture import TextMixture
    from .model import TextPolicy

LIMIT = 2 << 30  # bytes
PATIENCE = 60.0  # seconds to wait for another process's lock
AGREE = 1e-3  #     nats a token by which log-probs from sampling may differ from scored ones and stand for them
CHECKED = 4  #      responses of a sample that are scored to find out


def cache_folder() -> Path:
    """PREFTUNE_CACHE, otherwise the system's place for caches: ~/.cache/preftune, ~/Library/Caches/preftune, %LOCALAPPDATA%/preftune."""
    if "PREFTUNE_CACHE" in os.environ:
        return Path(os.environ["PREFTUNE_CACHE"]).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "preftune"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "preftune"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "preftune"


class LogpCache:
    """key -> float32 values of a response's tokens. Least recently used entries go when the file passes `limit` bytes."""

    def __init__(self, path: str | Path | None = None, *, limit: int = LIMIT) -> None:
        self.path = Path(path) if path is not None else cache_folder() / "logp.sqlite"
        self.limit = limit
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rebuilt = 0
        try:
            self.open()
        except sqlite3.DatabaseError as error:
            self.rebuild(error)

    def open(self) -> None:
        """Connect; the first statement reads the file and finds out whether it is a database."""
        self.db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        self.write_ahead()
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.execute("CREATE TABLE IF NOT EXISTS logp (key BLOB PRIMARY KEY, value BLOB NOT NULL, used REAL NOT NULL)")
        self.db.execute("CREATE INDEX IF NOT EXISTS by_use ON logp (used)")

    def write_ahead(self) -> None:
        """Turn write-ahead mode on. Two processes that do so to a new file at once: SQLite tells one "locked" without waiting."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def rebuild(self, error: sqlite3.DatabaseError) -> None:
        """Put a damaged file aside (name.damaged) and begin an empty one. A busy or full disk is no damage and is raised."""
        if isinstance(error, sqlite3.OperationalError):
            raise error
        self.db.close()
        self.path.replace(self.path.with_name(self.path.name + ".damaged"))
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        self.rebuilt += 1
        self.open()

    def get(self, keys: Sequence[bytes]) -> dict[bytes, torch.Tensor]:
        """The values that are there, and mark them as used. An entry whose checksum is wrong counts as absent."""
        try:
            return self.read(keys)
        except sqlite3.DatabaseError as error:
            self.rebuild(error)
            return {}

    def read(self, keys: Sequence[bytes]) -> dict[bytes, torch.Tensor]:
        """`get` on a sound file."""
        found: dict[bytes, torch.Tensor] = {}
        for key in dict.fromkeys(keys):
            row = self.db.execute("SELECT value FROM logp WHERE key = ?", (key,)).fetchone()
            if row and checksum(key, row[0][8:]) == row[0][:8]:
                found[key] = torch.from_numpy(numpy.frombuffer(row[0], dtype="<f4", offset=8).astype(numpy.float32))
        now = time.time()
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("UPDATE logp SET used = ? WHERE key = ?", [(now, key) for key in found])
        self.db.execute("COMMIT")
        return found

    def put(self, values: Mapping[bytes, torch.Tensor]) -> None:
        """Add or replace, then make room."""
        try:
            self.write(values)
        except sqlite3.DatabaseError as error:
            self.rebuild(error)
            self.write(values)

    def write(self, values: Mapping[bytes, torch.Tensor]) -> None:
        """`put` on a sound file."""
        now = time.time()
        blobs = {key: value.detach().cpu().numpy().astype("<f4").tobytes() for key, value in values.items()}
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany(
            "INSERT OR REPLACE INTO logp VALUES (?, ?, ?)", [(key, checksum(key, blob) + blob, now) for key, blob in blobs.items()]
        )
        self.db.execute("COMMIT")
        while self.size() > self.limit and len(self):
            self.db.execute("DELETE FROM logp WHERE key IN (SELECT key FROM logp ORDER BY used LIMIT ?)", (max(1, len(self) // 10),))

    def size(self) -> int:
        """Bytes in use inside the file."""
        pages, free, page = (self.db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
        return int((pages - free) * page)

    def __len__(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM logp").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        self.db.close()


def checksum(key: bytes, blob: bytes) -> bytes:
    """8 bytes over key and value."""
    return hashlib.blake2b(key + blob, digest_size=8).digest()


@torch.no_grad()
def remember(policy: TextPolicy, rows: Rows, cache: LogpCache) -> bool:
    """Keep the log-probs of sampled responses for a reference with the weights that drew them, unless the first few of them differ
    from scored ones by more than `AGREE`: sampling computes with other shapes, in 16 bits with other digits."""
    kept = [torch.tensor(values) for row in rows.response.logp for values in row]
    pairs = pairs_of(rows, policy.bos)
    scored = policy.token_logps(pairs[:CHECKED])
    if any((a - b.cpu()).abs().max() > AGREE for a, b in zip(kept, scored, strict=False)):
        return False
    cache.put(dict(zip(keys_of(policy, pairs), kept, strict=True)))
    return True


def keys_of(policy: TextPolicy, pairs: Sequence[Pair]) -> list[bytes]:
    """16 bytes for each (prompt, response): the weights, the engine with its versions and precision, and all tokens."""
    head = f"{policy.fingerprint()} {engine(policy.network)}".encode()
    return [hashlib.blake2b(head + token_digest(*pair), digest_size=16).digest() for pair in pairs]  # type: ignore[arg-type]


class CachedReference:
    """A frozen text policy whose scores are read from a cache where they are known. Bit for bit the policy's own numbers.

    The key holds the weights, the engine with its versions and precision, and the whole encoded prompt and response; learning
    rate, beta, method and output folder are not in it. Copies and mixtures of parameters are plain policies: their weights are new.
    """

    def __init__(self, policy: TextPolicy, cache: LogpCache | None = None) -> None:
        if policy.overlay is None:
            raise PreftuneError(
                "a policy that trains was given to the cache; a frozen one is needed; pass policy.reference() or policy.copy()"
            )
        self.policy, self.cache = policy, cache if cache is not None else LogpCache()
        self.uniform, self.independent, self.tokenizer = policy.uniform, policy.independent, policy.tokenizer
        self.hits = self.misses = 0

    @torch.no_grad()
    def score(self, rows: Rows, wants: Sequence[Want] = ()) -> Scored:
        """As TextPolicy.score, without gradient. The cache holds log-probs of clean prompts: all else is computed."""
        pairs = pairs_of(rows, self.policy.bos, frozen=True)
        clean = [(prompt, response) for prompt, response in pairs if not isinstance(prompt, Shifted)]
        if {"states", "collision"} & set(wants) or len(clean) < len(pairs):
            return self.policy.score(rows, wants)
        keys = keys_of(self.policy, clean)
        known = self.cache.get(keys)
        missing = {key: pair for key, pair in zip(keys, clean, strict=True) if key not in known}
        self.hits += len(keys) - len(missing)
        self.misses += len(missing)
        if missing or self.policy.network.shards is not None:  # in shards every process has to make the passes of the others
            fresh = dict(zip(missing, (v.cpu() for v in self.policy.token_logps(list(missing.values()))), strict=True))
            self.cache.put(fresh)
            known |= fresh
        return assemble(rows, Measured([known[key] for key in keys]), wants)

    def sample(self, rows: Rows, n: int, key: Key, **decoding: Any) -> Any:
        """As TextPolicy.sample."""
        return self.policy.sample(rows, n, key, **decoding)

    def copy(self) -> TextPolicy:
        """A plain frozen copy."""
        return self.policy.copy()

    def lerp(self, other: Any, w: float) -> TextPolicy:
        """A plain frozen policy with parameters (1 - w) * self + w * other."""
        return self.policy.lerp(other, w)

    def mix(self, other: Any, w: float) -> TextMixture:
        """As TextPolicy.mix; nothing of it is kept."""
        return self.policy.mix(other, w)

    def revise(self, rows: Rows) -> tuple[tuple[Tokens, ...], ...]:
        """As TextPolicy.revise."""
        return self.policy.revise(rows)

    def parameters(self) -> list[torch.Tensor]:
        """The policy's."""
        return self.policy.parameters()

    def state(self) -> dict[str, torch.Tensor]:
        """The policy's."""
        return self.policy.state()

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Into the policy; the key follows its weights."""
        self.policy.load(state)

    def fingerprint(self) -> str:
        """The policy's."""
        return self.policy.fingerprint()
