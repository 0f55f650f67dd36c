"""Outputs of earlier deterministic calls, shared by runs, workflows and processes.

The key is a hash of the engines' revision, the tenant and every field of the call: messages or
prompt, sampling parameters, model or LoRA adapter. An entry carries a checksum, so a damaged file
gives misses, never a wrong answer. The cache is an aid: when its file is locked, full or damaged,
calls are made as if it were empty, and the log has one line about it.

Source: Helium, §4 (prompt cache); tenants, revisions and the bound are ours.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from helium.errors import CacheError
from helium.plan.calls import Call
from helium.runtime.revisions import RevisionOf, constant
from helium.runtime.sqlite_file import (
    MAX_VARIABLES,
    SchemaMismatch,
    insert_rows,
    open_sqlite,
    transaction,
)

logger = logging.getLogger(__name__)

CACHE_VERSION = 1
DEFAULT_MAX_BYTES = 1 << 30

_ENTRY_BYTES = 256
"""What an entry takes beside its outputs: key, checksum, tenant, index entries, free space."""

_MAX_TOUCHED = 1024
"""Hits noted before their use is written, so that a hit alone writes nothing."""

_EVICTED_RATIO = 0.05
"""Share of the bound that an eviction frees, so that not every write evicts."""

_SCHEMA = """
CREATE TABLE entries (
    id INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    tenant TEXT,
    outputs BLOB NOT NULL,
    num_tokens INTEGER NOT NULL,
    checksum BLOB NOT NULL,
    num_bytes INTEGER NOT NULL,
    used_at REAL NOT NULL
);
CREATE INDEX entries_by_use ON entries (used_at, num_bytes);
CREATE TABLE totals (
    num_entries INTEGER NOT NULL,
    num_bytes INTEGER NOT NULL,
    num_hits INTEGER NOT NULL,
    num_misses INTEGER NOT NULL,
    num_evicted INTEGER NOT NULL
);
INSERT INTO totals VALUES (0, 0, 0, 0, 0);
CREATE TRIGGER entry_added AFTER INSERT ON entries BEGIN
    UPDATE totals SET num_entries = num_entries + 1, num_bytes = num_bytes + new.num_bytes; END;
CREATE TRIGGER entry_removed AFTER DELETE ON entries BEGIN
    UPDATE totals SET num_entries = num_entries - 1, num_bytes = num_bytes - old.num_bytes; END;
"""


_INSERT = """
INSERT INTO entries (key, tenant, outputs, num_tokens, checksum, num_bytes, used_at)
"""


class Entry(NamedTuple):
    """What a call gave: its ``n`` outputs, and their tokens in all."""

    outputs: tuple[str, ...]
    num_tokens: int = 0


class CacheStats(msgspec.Struct, frozen=True):
    """Totals over all processes that used the file.

    Hits and misses of a process are added when it writes or closes.

    Attributes:
        num_bytes: Of the entries, as the bound counts them.
        num_file_bytes: Of the file on disk, with its write-ahead log.
    """

    num_entries: int
    num_bytes: int
    max_bytes: int
    num_file_bytes: int
    num_hits: int
    num_misses: int
    num_evicted: int


class PromptCache:
    """A cache file. Any thread may use it, also several at once.

    Least recently used entries go first when the bound is reached.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Opens the file, or makes it.

        Args:
            max_bytes: Bound on the entries; the file is at most a little larger.
            clock: Tells the time of use, in seconds; shared by all processes.

        Raises:
            CacheError: The file is no cache, of another version, damaged or cannot be made.
        """
        self.path = Path(path)
        self.max_bytes = max_bytes
        self._clock = clock
        self._lock = threading.Lock()
        self._touched: set[bytes] = set()
        self._damaged: set[bytes] = set()
        self._num_hits = self._num_misses = 0
        self._complaints: set[str] = set()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = open_sqlite(self.path, _SCHEMA, CACHE_VERSION, synchronous="NORMAL")
            self._connection.execute("SELECT num_bytes FROM totals").fetchone()
        except SchemaMismatch as error:
            raise CacheError(
                f"prompt cache {self.path}: {error}; delete the file, or give another one"
            ) from None
        except (sqlite3.Error, OSError) as error:
            raise CacheError(
                f"prompt cache {self.path}: cannot be opened: {error}; delete the file if it is "
                "damaged, or give another one"
            ) from error

    def get(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """Returns the entry of each key, or ``None``; counts hits and misses.

        An unreadable file has no entries.
        """
        with self._lock:
            try:
                found = self._read(keys)
            except sqlite3.Error as error:
                self._complain("cannot be read", error)
                found = {}
            entries = [found.get(key) for key in keys]
            num_hits = sum(entry is not None for entry in entries)
            self._num_hits += num_hits
            self._num_misses += len(keys) - num_hits
            if len(self._touched) > _MAX_TOUCHED:
                self._write(())
            return entries

    def put(self, entries: Sequence[tuple[bytes, str | None, Entry]]) -> None:
        """Stores entries as (key, tenant, entry), and makes room where there is none.

        What cannot be written is not stored.
        """
        with self._lock:
            self._write(entries)

    def view(self, revision: str | RevisionOf, tenant: str | None = None) -> TenantCache:
        """Returns the part of the cache that one tenant sees, for planning.

        Args:
            revision: Identifies everything about the engines that shapes an output: the model and
                its revision, precision, chat template, LoRA adapters; one for all models that calls
                name, or of each. Another revision is another cache.
        """
        of = constant(revision) if isinstance(revision, str) else revision
        return TenantCache(self, of, tenant)

    def stats(self) -> CacheStats:
        """Returns the totals.

        Raises:
            CacheError: The file cannot be read.
        """
        with self._lock:
            self._write(())
            try:
                row = self._connection.execute(
                    "SELECT num_entries, num_bytes, num_hits, num_misses, num_evicted FROM totals"
                ).fetchone()
            except sqlite3.Error as error:
                raise CacheError(f"prompt cache {self.path}: cannot be read: {error}") from error
        num_entries, num_bytes, num_hits, num_misses, num_evicted = row
        files = [self.path, Path(f"{self.path}-wal")]
        num_file_bytes = sum(file.stat().st_size for file in files if file.exists())
        return CacheStats(
            num_entries,
            num_bytes,
            self.max_bytes,
            num_file_bytes,
            num_hits,
            num_misses,
            num_evicted,
        )

    def clear(self, tenant: str | None = None) -> int:
        """Deletes the entries of a tenant, or all of them; returns how many.

        Raises:
            CacheError: The file cannot be written.
        """
        where = ("", ()) if tenant is None else (" WHERE tenant = ?", (tenant,))
        with self._lock:
            try:
                with transaction(self._connection):
                    deleted = self._connection.execute(f"DELETE FROM entries{where[0]}", where[1])
                self._connection.execute("VACUUM")
            except sqlite3.Error as error:
                raise CacheError(
                    f"prompt cache {self.path}: cannot be cleared: {error}; close the programs "
                    "that use it, or delete the file"
                ) from error
            return deleted.rowcount

    def close(self) -> None:
        """Writes what is to be written and closes the file; the cache cannot be used any more."""
        with self._lock:
            self._write(())
            self._connection.close()

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, Entry]:
        found: dict[bytes, Entry] = {}
        for some in _batched(keys):
            marks = ",".join("?" * len(some))
            for key, outputs, num_tokens, checksum in self._connection.execute(
                f"SELECT key, outputs, num_tokens, checksum FROM entries WHERE key IN ({marks})",
                some,
            ):
                # Damage may change types as well.
                is_blob = isinstance(outputs, bytes)
                is_intact = is_blob and _checksum(key, outputs, num_tokens) == checksum
                if is_intact:
                    found[key] = Entry(
                        msgspec.json.decode(outputs, type=tuple[str, ...]), num_tokens
                    )
                else:
                    self._damaged.add(key)
                    self._complain("has a damaged entry", None)
        self._touched.update(found)
        return found

    def _write(self, entries: Sequence[tuple[bytes, str | None, Entry]]) -> None:
        """Writes entries, uses and counts in one transaction, or nothing."""
        if not (entries or self._touched or self._num_hits or self._num_misses):
            return
        now = self._clock()
        execute = self._connection.execute
        try:
            with transaction(self._connection):
                for keys in _batched(list(self._touched)):
                    marks = ",".join("?" * len(keys))
                    execute(f"UPDATE entries SET used_at = ? WHERE key IN ({marks})", [now, *keys])
                for keys in _batched(list(self._damaged)):
                    marks = ",".join("?" * len(keys))
                    execute(f"DELETE FROM entries WHERE key IN ({marks})", keys)
                # Another process may have stored the same call just now.
                unless_there = "ON CONFLICT (key) DO NOTHING"
                insert_rows(self._connection, _INSERT, self._rows(entries, now), unless_there)
                execute(
                    "UPDATE totals SET num_hits = num_hits + ?, num_misses = num_misses + ?",
                    (self._num_hits, self._num_misses),
                )
                self._make_room()
        except sqlite3.Error as error:
            self._complain("cannot be written", error)
            return
        self._touched.clear()
        self._damaged.clear()
        self._num_hits = self._num_misses = 0

    def _rows(
        self, entries: Sequence[tuple[bytes, str | None, Entry]], now: float
    ) -> Iterator[tuple[object, ...]]:
        for key, tenant, entry in entries:
            outputs = msgspec.json.encode(entry.outputs)
            num_bytes = len(outputs) + len((tenant or "").encode()) + _ENTRY_BYTES
            if num_bytes <= self.max_bytes:
                checksum = _checksum(key, outputs, entry.num_tokens)
                yield key, tenant, outputs, entry.num_tokens, checksum, num_bytes, now

    def _make_room(self) -> None:
        (num_bytes,) = self._connection.execute("SELECT num_bytes FROM totals").fetchone()
        if num_bytes <= self.max_bytes:
            return
        excess = num_bytes - self.max_bytes * (1 - _EVICTED_RATIO)
        oldest = []
        for number, size in self._connection.execute(
            "SELECT id, num_bytes FROM entries ORDER BY used_at, id"
        ):
            if excess <= 0:
                break
            oldest.append((number,))
            excess -= size
        self._connection.executemany("DELETE FROM entries WHERE id = ?", oldest)
        self._connection.execute("UPDATE totals SET num_evicted = num_evicted + ?", (len(oldest),))

    def _complain(self, what: str, error: sqlite3.Error | None) -> None:
        """Logs a trouble once; it may last for thousands of calls."""
        if what not in self._complaints:
            self._complaints.add(what)
            reason = f": {error}" if error else ""
            logger.warning(
                "prompt cache %s %s%s; going on without what it holds", self.path, what, reason
            )


class TenantCache:
    """One tenant's entries at one time; a ``PromptCache`` as the optimizer knows it."""

    def __init__(self, cache: PromptCache, revision_of: RevisionOf, tenant: str | None) -> None:
        self._cache = cache
        self._revision_of = revision_of
        self._tenant = tenant

    def get_many(self, calls: Sequence[Call]) -> list[tuple[str, ...] | None]:
        """Returns the ``n`` outputs of each call, or ``None``; calls must be deterministic."""
        entries = self._cache.get([self._key(call) for call in calls])
        return [
            entry.outputs if entry is not None and len(entry.outputs) == call.sampling.n else None
            for call, entry in zip(calls, entries, strict=True)
        ]

    def put_many(self, answers: Sequence[tuple[Call, tuple[str, ...]]]) -> None:
        """Stores the outputs of calls; those that are not deterministic are left out."""
        self._cache.put(
            [
                (self._key(call), self._tenant, Entry(outputs))
                for call, outputs in answers
                if call.sampling.is_deterministic
            ]
        )

    def _key(self, call: Call) -> bytes:
        revision = self._revision_of(call.model)
        return entry_key(revision, self._tenant, msgspec.json.encode(call))


def _batched(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """Yields the keys in parts that one statement takes."""
    step = MAX_VARIABLES - 1  # one is for what the statement says beside the keys
    for first in range(0, len(keys), step):
        yield keys[first : first + step]


def entry_key(revision: str, tenant: str | None, call: bytes) -> bytes:
    """Returns the key of an encoded call, 32 bytes; no tenant differs from an empty name."""
    digest = _digest_of(revision, tenant).copy()
    digest.update(call)
    return digest.digest()


@lru_cache(maxsize=1024)
def _digest_of(revision: str, tenant: str | None) -> hashlib.blake2b:
    """Returns what the keys of a tenant have in common; copy it."""
    digest = hashlib.blake2b(digest_size=32)
    digest.update(msgspec.json.encode((CACHE_VERSION, revision, tenant)))
    return digest


def _checksum(key: bytes, outputs: bytes, num_tokens: int) -> bytes:
    digest = hashlib.blake2b(key, digest_size=16)
    digest.update(f"{num_tokens} ".encode())
    digest.update(outputs)
    return digest.digest()
