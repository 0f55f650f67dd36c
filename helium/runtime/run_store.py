"""Runs on disk: what each was asked to do and what it has done, enough to go on after a crash.

One process works on a run at a time. That is a lock of the operating system, so that it ends with
the process, however that ends.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from helium.errors import HeliumError, WorkflowError
from helium.json_text import decode_json
from helium.plan.compiled_plan import CompiledPlan
from helium.runtime.events import (
    CallFinished,
    Event,
    FunctionFinished,
    RowFailed,
    RunFinished,
    RunStarted,
)
from helium.runtime.run_lock import RunLock
from helium.runtime.sqlite_file import insert_rows, open_sqlite, reporting, transaction

STORE_VERSION = 1
SPEC_VERSION = 1

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

_SCHEMA = """
CREATE TABLE runs (
    id TEXT PRIMARY KEY,
    workflow TEXT NOT NULL,
    status TEXT NOT NULL,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    num_calls INTEGER NOT NULL DEFAULT 0,
    num_done INTEGER NOT NULL DEFAULT 0,
    num_failures INTEGER NOT NULL DEFAULT 0,
    is_cancel_requested INTEGER NOT NULL DEFAULT 0,
    spec BLOB NOT NULL
);
CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    run TEXT NOT NULL REFERENCES runs (id),
    event BLOB NOT NULL
);
CREATE INDEX events_by_run ON events (run, number);
"""

WRITTEN = (RunStarted, CallFinished, FunctionFinished, RowFailed, RunFinished)
"""Events that are written; the others follow from these."""


class RunError(HeliumError):
    """A run is unknown, in use, or cannot be written or read; the message says what to do."""


class RunSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a run does, whole: it can be resumed where its workflow's code is not at hand.

    Attributes:
        signature: Of the workflow as written; its profile is found by it.
        compiled: The plan with its batch as the optimizer left it, so that operators and rows mean
            the same when the run is resumed.
        request_digest: Of what the caller asked for, see ``request_digest``; empty in runs of
            earlier releases.
    """

    workflow: str
    signature: str
    compiled: CompiledPlan
    cache_salt: str | None = None
    timeout_s: float | None = None
    function_timeout_s: float = 60.0
    request_digest: str = ""
    version: int = SPEC_VERSION


class RunInfo(msgspec.Struct, frozen=True):
    """A run in a list.

    Attributes:
        status: ``running``, ``done``, ``cancelled``, ``timed_out``, ``failed``, or ``interrupted``:
            it was running, and its process is gone.
        created_at: Seconds since 1970, as ``updated_at``.
        num_calls: LLM calls of the run, those found in a cache while planning left out.
        num_done: Calls answered so far.
        num_failures: Rows that failed by themselves when it ran last.
    """

    id: str
    workflow: str
    status: str
    created_at: float
    updated_at: float
    num_calls: int
    num_done: int
    num_failures: int


class RunStore:
    """A file of runs. Any thread may use it, also several at once, and several processes."""

    def __init__(self, path: str | Path, *, max_bytes: int | None = None) -> None:
        """Opens the file, or makes it.

        Args:
            max_bytes: Size the file never exceeds; runs then end as on a full disk.

        Raises:
            RunError: The file is no store, of another version, damaged or cannot be made.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        self._list_lock = threading.Lock()
        with self._reporting("opened"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = open_sqlite(
                self.path, _SCHEMA, STORE_VERSION, synchronous="FULL", max_bytes=max_bytes
            )
            # Lists have a connection of their own, so that a long one holds up no checkpoint.
            self._list_connection = open_sqlite(
                self.path, _SCHEMA, STORE_VERSION, synchronous="FULL"
            )

    def create(self, run: str, spec: RunSpec) -> None:
        """Adds a run.

        Raises:
            RunError: The id is taken or malformed, or the file cannot be written.
        """
        if not _ID.fullmatch(run):
            raise RunError(
                f"run {run!r}: an id has at most 100 letters, digits, dots, dashes and "
                "underscores, and begins with a letter or digit"
            )
        now = time.time()
        row = (run, spec.workflow, now, now, msgspec.json.encode(spec))
        with self._reporting("written"):
            try:
                self._connection.execute(
                    "INSERT INTO runs (id, workflow, status, created_at, updated_at, spec) "
                    "VALUES (?, ?, 'running', ?, ?, ?)",
                    row,
                )
            except sqlite3.IntegrityError:
                raise RunError(
                    f"run {run!r} exists already; resume it, or take another id"
                ) from None

    def reopen(self, run: str) -> None:
        """Makes a run a running one again; do it with its lock.

        A cancellation that nobody lived to carry out still holds; one that ended the run is over.

        Raises:
            RunError: The file cannot be written.
        """
        with self._reporting("written"):
            self._connection.execute(
                "UPDATE runs SET status = 'running', "
                "is_cancel_requested = is_cancel_requested AND status = 'running' WHERE id = ?",
                (run,),
            )

    def append(self, run: str, events: Sequence[Event]) -> None:
        """Writes what a run has done; when it returns, a crash cannot undo it.

        Raises:
            RunError: The file cannot be written; nothing of it was.
        """
        kept = [(run, msgspec.json.encode(event)) for event in events if isinstance(event, WRITTEN)]
        if not kept:
            return
        num_done = sum(isinstance(event, CallFinished) for event in events)
        with self._reporting("written"), transaction(self._connection):
            execute = self._connection.execute
            insert_rows(self._connection, "INSERT INTO events (run, event)", kept)
            execute(
                "UPDATE runs SET updated_at = ?, num_done = num_done + ? WHERE id = ?",
                (time.time(), num_done, run),
            )
            for event in events:
                if isinstance(event, RunStarted):
                    execute(
                        "UPDATE runs SET num_failures = 0, num_calls = num_done + ? WHERE id = ?",
                        (event.num_calls, run),
                    )
                elif isinstance(event, RunFinished):
                    execute(
                        "UPDATE runs SET status = ?, num_failures = ? WHERE id = ?",
                        (event.status, event.num_failures, run),
                    )

    def spec(self, run: str) -> RunSpec:
        """Returns what a run was asked to do.

        Raises:
            RunError: The run is unknown, of another version, or cannot be read.
        """
        with self._reporting("read"):
            row = self._connection.execute("SELECT spec FROM runs WHERE id = ?", (run,)).fetchone()
        if row is None:
            raise self._unknown(run)
        try:
            version = decode_json(row[0], _Header).version
            if version != SPEC_VERSION:
                raise RunError(
                    f"run {run!r} was written in version {version}, this release reads "
                    f"{SPEC_VERSION}; resume it with a matching release"
                )
            spec = decode_json(row[0], RunSpec)
            spec.compiled.plan.validate()
        except (msgspec.MsgspecError, WorkflowError) as error:
            raise RunError(f"run {run!r} in {self.path} is damaged: {error}") from None
        return spec

    def load(self, run: str) -> RunSpec:
        """Returns what a run was asked to do, with what it has done already as ``known``.

        Rows that failed are not known: they are tried again.

        Raises:
            RunError: The run is unknown, of another version, or cannot be read.
        """
        spec = self.spec(run)
        compiled = spec.compiled
        known = {name: dict(rows) for name, rows in compiled.known.items()}
        for _, event in self.events(run):
            if isinstance(event, CallFinished):
                known.setdefault(event.operator, {})[event.row] = event.outputs
            elif isinstance(event, FunctionFinished):
                known.setdefault(event.operator, {})[event.row] = (event.output,)
        compiled = msgspec.structs.replace(compiled, known=known)
        return msgspec.structs.replace(spec, compiled=compiled)

    def events(self, run: str, after: int = 0, limit: int | None = None) -> list[tuple[int, Event]]:
        """Returns a run's events that were written after number ``after``, with their numbers.

        Args:
            limit: Most events to return; all by default.

        Raises:
            RunError: The file cannot be read.
        """
        with self._reporting("read"):
            rows = self._connection.execute(
                "SELECT number, event FROM events WHERE run = ? AND number > ? "
                "ORDER BY number LIMIT ?",
                (run, after, -1 if limit is None else limit),
            ).fetchall()
        try:
            return [(number, decode_json(raw, Event)) for number, raw in rows]
        except msgspec.MsgspecError as error:
            raise RunError(f"run {run!r} in {self.path} is damaged: {error}") from None

    def num_events(self, run: str) -> int:
        """Returns how many events of a run are written.

        Raises:
            RunError: The file cannot be read.
        """
        with self._reporting("read"):
            (count,) = self._connection.execute(
                "SELECT count(*) FROM events WHERE run = ?", (run,)
            ).fetchone()
        return int(count)

    def runs(self) -> list[RunInfo]:
        """Returns all runs, the oldest first.

        Raises:
            RunError: The file cannot be read.
        """
        return self._infos("ORDER BY created_at, id")

    def info(self, run: str) -> RunInfo:
        """Returns one run.

        Raises:
            RunError: The run is unknown, or the file cannot be read.
        """
        infos = self._infos("WHERE id = ?", run)
        if not infos:
            raise self._unknown(run)
        return infos[0]

    def find(self, run: str) -> list[RunInfo]:
        """Returns the run of this id, or nothing.

        Raises:
            RunError: The file cannot be read.
        """
        return self._infos("WHERE id = ?", run)

    def request_cancel(self, run: str) -> None:
        """Asks the process that works on a run to cancel it; it looks about once a second.

        Raises:
            RunError: The run is unknown or not running, or the file cannot be written.
        """
        status = self.info(run).status
        if status != "running":
            raise RunError(f"run {run!r} is {status}; only a running one can be cancelled")
        with self._reporting("written"):
            self._connection.execute("UPDATE runs SET is_cancel_requested = 1 WHERE id = ?", (run,))

    def cancel_requests(self) -> set[str]:
        """Returns the running runs that somebody wants cancelled.

        Raises:
            RunError: The file cannot be read.
        """
        with self._reporting("read"):
            rows = self._connection.execute(
                "SELECT id FROM runs WHERE is_cancel_requested AND status = 'running'"
            ).fetchall()
        return {run for (run,) in rows}

    def delete(self, run: str, lock: RunLock | None = None) -> None:
        """Forgets a run that nobody works on.

        Args:
            lock: The run's, where the caller has it; released at the end.

        Raises:
            RunError: The run is unknown or in use, or the file cannot be written.
        """
        self.info(run)
        with (
            lock or self.acquire(run),
            self._reporting("written"),
            transaction(self._connection),
        ):
            self._connection.execute("DELETE FROM events WHERE run = ?", (run,))
            self._connection.execute("DELETE FROM runs WHERE id = ?", (run,))

    def acquire(self, run: str) -> RunLock:
        """Makes this the process that works on a run.

        Raises:
            RunError: Another one does.
        """
        lock = RunLock.take(self._lock_path(run))
        if lock is None:
            raise RunError(f"run {run!r} is running; watch it, or cancel it first")
        return lock

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()
        with self._list_lock:
            self._list_connection.close()

    def _infos(self, clause: str, *values: str) -> list[RunInfo]:
        return [
            self._unless_left_off(info)
            if info.status == "running" and not RunLock.is_held(self._lock_path(info.id))
            else info
            for info in self._rows(clause, *values)
        ]

    def _unless_left_off(self, info: RunInfo) -> RunInfo:
        """Returns a run that nobody works on as it is now: its end was written before that."""
        for now in self._rows("WHERE id = ?", info.id):
            info = now
        if info.status != "running":
            return info
        return msgspec.structs.replace(info, status="interrupted")

    def _rows(self, clause: str, *values: str) -> list[RunInfo]:
        with self._reporting("read", self._list_lock):
            rows = self._list_connection.execute(
                "SELECT id, workflow, status, created_at, updated_at, num_calls, num_done, "
                f"num_failures FROM runs {clause}",
                values,
            ).fetchall()
        return [RunInfo(*row) for row in rows]

    def _lock_path(self, run: str) -> Path:
        return self.path.with_name(f"{self.path.name}-locks") / run

    def _unknown(self, run: str) -> RunError:
        latest = self._rows("ORDER BY created_at DESC, id DESC LIMIT 5")
        known = [info.id for info in reversed(latest)]
        return RunError(f"run {run!r} is not in {self.path}; the latest there are {known}")

    def _reporting(
        self, what: str, lock: threading.Lock | None = None
    ) -> contextlib.AbstractContextManager[None]:
        return reporting(lock or self._lock, RunError, f"runs {self.path}", what, "resume")


class _Header(msgspec.Struct):
    version: int
