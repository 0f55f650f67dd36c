"""The workflows a server knows, in a SQLite file that servers may share."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import msgspec

from helium.plan.logical_plan import LogicalPlan
from helium.runtime import RunError
from helium.runtime.sqlite_file import open_sqlite, reporting

_VERSION = 1
_SCHEMA = """
CREATE TABLE workflows (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    created_at REAL NOT NULL,
    num_operators INTEGER NOT NULL,
    num_llm_operators INTEGER NOT NULL,
    plan BLOB NOT NULL
);
"""

_NOT_IN_IDS = re.compile(r"[^A-Za-z0-9._-]+")


class WorkflowInfo(msgspec.Struct, frozen=True):
    """A registered workflow in a list; ``created_at`` in seconds since 1970."""

    id: str
    name: str
    created_at: float
    num_operators: int
    num_llm_operators: int


def workflow_id(name: str, plan: LogicalPlan) -> str:
    """Returns the id of a workflow: equal names and plans have equal ids."""
    digest = hashlib.sha256(f"{name}\n{plan.digest()}".encode()).hexdigest()[:16]
    stem = _NOT_IN_IDS.sub("-", name).strip("-._")[:40] or "workflow"
    return f"{stem}-{digest}"


class WorkflowStore:
    """A file of workflows; any thread may use it."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it.

        Raises:
            RunError: The file is no store, of another version, damaged or cannot be made.
        """
        self.path = path
        self._lock = threading.Lock()
        with self._reporting("opened"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = open_sqlite(path, _SCHEMA, _VERSION, synchronous="FULL")

    def add(self, name: str, plan: LogicalPlan) -> WorkflowInfo:
        """Registers a workflow; again changes nothing."""
        found = WorkflowInfo(
            workflow_id(name, plan),
            name,
            time.time(),
            len(plan.operators),
            len(plan.llm_operators),
        )
        with self._reporting("written"):
            self._connection.execute(
                "INSERT OR IGNORE INTO workflows VALUES (?, ?, ?, ?, ?, ?)",
                (*msgspec.structs.astuple(found), plan.to_json()),
            )
        return self.info(found.id) or found

    def info(self, workflow: str) -> WorkflowInfo | None:
        """Returns one workflow, ``None`` if it is unknown."""
        infos = self._infos("WHERE id = ?", workflow)
        return infos[0] if infos else None

    def list(self) -> list[WorkflowInfo]:
        """Returns all workflows, the oldest first."""
        return self._infos("ORDER BY created_at, id")

    def plan(self, workflow: str) -> LogicalPlan | None:
        """Returns a workflow's plan, ``None`` if it is unknown."""
        with self._reporting("read"):
            row = self._connection.execute(
                "SELECT plan FROM workflows WHERE id = ?", (workflow,)
            ).fetchone()
        return None if row is None else LogicalPlan.from_json(row[0])

    def delete(self, workflow: str) -> bool:
        """Forgets a workflow; its runs go on. Returns whether it was there."""
        with self._reporting("written"):
            cursor = self._connection.execute("DELETE FROM workflows WHERE id = ?", (workflow,))
            return cursor.rowcount > 0

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._connection.close()

    def _infos(self, clause: str, *values: str) -> list[WorkflowInfo]:
        with self._reporting("read"):
            rows = self._connection.execute(
                "SELECT id, name, created_at, num_operators, num_llm_operators "
                f"FROM workflows {clause}",
                values,
            ).fetchall()
        return [WorkflowInfo(*row) for row in rows]

    def _reporting(self, what: str) -> AbstractContextManager[None]:
        return reporting(self._lock, RunError, f"workflows {self.path}", what, "try again")
