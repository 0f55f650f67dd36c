"""Opening SQLite files that several processes share: WAL, a schema version, clear errors."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

from helium.errors import HeliumError

BUSY_TIMEOUT_S = 10.0
"""Seconds to wait for another process's transaction; ours take milliseconds."""

PAGE_CACHE_KIB = 16 << 10
"""Memory for pages; keys are hashes, so that a transaction touches pages all over the file."""

MAX_VARIABLES = 32_766 if sqlite3.sqlite_version_info >= (3, 32) else 999
"""Values of one statement, as many as SQLite takes by default."""


class SchemaMismatch(sqlite3.DatabaseError):
    """The file is of another version, or another program's."""


def open_sqlite(
    path: Path, schema: str, version: int, *, synchronous: str, max_bytes: int | None = None
) -> sqlite3.Connection:
    """Opens a file, or makes it; the connection may be used from any thread, one at a time.

    Args:
        schema: Statements that make the tables of an empty file.
        version: Of the schema; kept as ``user_version``.
        synchronous: ``FULL`` outlives a power cut, ``NORMAL`` a killed process.
        max_bytes: Size the file never exceeds.

    Raises:
        SchemaMismatch: The file has another version.
        sqlite3.Error: It is no database, is damaged, or cannot be made.
    """
    connection = sqlite3.connect(
        path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
    )
    try:
        if max_bytes is not None:
            (page_bytes,) = connection.execute("PRAGMA page_size").fetchone()
            connection.execute(f"PRAGMA max_page_count = {max(1, max_bytes // page_bytes)}")
        if _version(connection) != version:
            with transaction(connection):
                found = _version(connection)  # another process may have made the tables just now
                (num_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
                if found == 0 and num_tables == 0:
                    for statement in filter(str.strip, schema.split(";\n")):
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {version}")
                elif found != version:
                    raise SchemaMismatch(f"schema version {found}, expected {version}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute(f"PRAGMA cache_size = -{PAGE_CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commits what is done inside, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def reporting(
    lock: threading.Lock, kind: type[HeliumError], file: str, what: str, then: str
) -> Iterator[None]:
    """Holds a lock, and turns errors of a file into ones that say what to do.

    Args:
        kind: What is raised.
        file: The file's name in the message.
        what: What cannot be done with it, as a participle.
        then: What to do once there is room or the file is repaired.
    """
    with lock:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise kind(
                f"{file}: cannot be {what}: {error}; make room or repair the file, then {then}"
            ) from error


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def insert_rows(
    connection: sqlite3.Connection, head: str, rows: Iterable[Sequence[object]], tail: str = ""
) -> None:
    """Inserts rows, as many per statement as SQLite takes values.

    A statement per row would let go of the interpreter's lock and wait for it again each time,
    which takes milliseconds while another thread, such as an event loop, is busy.

    Args:
        head: ``INSERT INTO ... (...)``, up to ``VALUES``.
        rows: Values, the same number each.
        tail: What follows the values.
    """
    left = iter(rows)
    while first := next(left, None):
        some = [first, *islice(left, MAX_VARIABLES // len(first) - 1)]
        marks = f"({','.join('?' * len(first))})"
        values = list(chain.from_iterable(some))
        connection.execute(f"{head} VALUES {','.join([marks] * len(some))} {tail}", values)
