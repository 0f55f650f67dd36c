"""What the command reads: workflows, batches, functions."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from helium.dsl.graph import Graph
from helium.dsl.workflow import Workflow
from helium.errors import WorkflowError
from helium.plan.logical_plan import LogicalPlan

Batch = dict[str, str | list[str]]

_MAX_CSV_FIELD = (1 << 31) - 1
"""Characters of one value; the module's own limit is too small for documents."""


def load_workflow(where: str) -> Graph:
    """Loads a workflow.

    Args:
        where: ``module:attribute``, ``path/to/file.py:attribute``, or the path of a ``.json`` plan.
            The attribute is a graph, a plan, or a ``@workflow`` function.

    Raises:
        WorkflowError: There is no such thing, or it is not valid.
    """
    module_name, colon, attribute = where.rpartition(":")
    if not colon:
        return Graph(_read_plan(where))
    module = _import(module_name)
    found: Any = module
    for name in attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            names = sorted(n for n, v in vars(module).items() if _is_workflow(v))
            raise WorkflowError(
                f"workflow {where!r}: {module_name} has no {attribute!r}; workflows in it: {names}"
            ) from None
    if isinstance(found, Workflow):
        return found.build()
    if isinstance(found, LogicalPlan):
        found.validate()
        return Graph(found)
    if isinstance(found, Graph):
        return found
    raise WorkflowError(
        f"workflow {where!r} is a {type(found).__name__}; expected a graph (graphs.build), a "
        "LogicalPlan or a function decorated with @workflow"
    )


def import_functions(modules: Sequence[str]) -> None:
    """Imports modules for the functions they register.

    Raises:
        WorkflowError: One cannot be imported.
    """
    for module in modules:
        _import(module)


def load_batch(file: str | None, settings: Sequence[str] = ()) -> Batch:
    """Reads a batch: rows from a file, and single values that go with every row.

    ``.json`` has an object of columns or a list of rows, ``.jsonl`` a row per line, ``.csv`` a
    header and rows.

    Args:
        settings: ``column=value`` each; a value ``@FILE`` is what is in the file.

    Raises:
        WorkflowError: The file cannot be read, or is no batch.
    """
    batch = _read_batch(Path(file)) if file is not None else {}
    for setting in settings:
        column, equals, value = setting.partition("=")
        if not equals:
            raise WorkflowError(f"--set {setting!r}: expected column=value")
        if column in batch:
            raise WorkflowError(f"--set {column}=…: the batch has this column already")
        if value.startswith("@"):
            value = _read_text(Path(value[1:]), f"--set {column}")
        batch[column] = value
    return batch


def first_rows(batch: Mapping[str, str | Sequence[str]], num_rows: int) -> Batch:
    """Returns the batch with at most that many rows."""
    return {
        column: values if isinstance(values, str) else list(values[:num_rows])
        for column, values in batch.items()
    }


def _read_plan(where: str) -> LogicalPlan:
    path = Path(where)
    if path.suffix != ".json":
        raise WorkflowError(
            f"workflow {where!r}: expected module:attribute, file.py:attribute or a .json plan"
        )
    return LogicalPlan.from_json(_read_text(path, "workflow"))


def _import(module: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if not module.endswith(".py"):
            return importlib.import_module(module)
        path = Path(module).resolve()
        name = f"helium_workflow_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None, "a .py file has a loader"
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[name] = loaded
        spec.loader.exec_module(loaded)
        return loaded
    except WorkflowError:
        raise
    except Exception as error:  # whatever the user's module does while it is imported
        raise WorkflowError(
            f"module {module!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def _is_workflow(value: object) -> bool:
    return isinstance(value, (Graph, LogicalPlan, Workflow))


def _read_text(path: Path, what: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WorkflowError(f"{what}: {path} cannot be read: {error}") from None


def _read_batch(path: Path) -> Batch:
    text = _read_text(path, "batch")
    try:
        match path.suffix.lower():
            case ".json":
                return _from_json(json.loads(text), path)
            case ".jsonl" | ".ndjson":
                lines = enumerate(text.split("\n"), start=1)
                return _from_rows([_row(line, n, path) for n, line in lines if line.strip()], path)
            case ".csv":
                csv.field_size_limit(_MAX_CSV_FIELD)
                rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
                return _from_rows(rows, path)
    except (json.JSONDecodeError, csv.Error) as error:
        raise WorkflowError(f"batch {path}: {error}") from None
    raise WorkflowError(f"batch {path}: expected a .json, .jsonl or .csv file")


def _row(line: str, number: int, path: Path) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise WorkflowError(f"batch {path}: line {number}: {error}") from None


def _from_json(value: Any, path: Path) -> Batch:
    if isinstance(value, list):
        return _from_rows(value, path)
    if not isinstance(value, dict):
        kind = type(value).__name__
        raise WorkflowError(f"batch {path}: expected an object of columns or a list, got a {kind}")
    for column, values in value.items():
        if not isinstance(values, (str, list)):
            raise WorkflowError(
                f"batch {path}: column {column!r} is a {type(values).__name__}; expected a list "
                "of strings, or one string for all rows"
            )
    return value


def _from_rows(rows: Sequence[Any], path: Path) -> Batch:
    columns: dict[str, list[str]] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            kind = type(row).__name__
            raise WorkflowError(f"batch {path}: row {number} is a {kind}; expected an object")
        if number == 0:
            columns = {column: [] for column in row}
        if row.keys() != columns.keys() or None in row or None in row.values():
            raise WorkflowError(
                f"batch {path}: row {number} has the columns {list(row)}, the first row has "
                f"{list(columns)}; every row needs a value for each"
            )
        for column, value in row.items():
            columns[column].append(value)
    return dict(columns)
