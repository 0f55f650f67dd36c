"""Rows from the real data sets, for those who have them in a local folder.

    folder/mmlu/*.csv | *.jsonl | *.parquet      question, four choices
    folder/tatqa/*.json                          table and paragraphs with their questions
    folder/amazon/*.jsonl                        reviews; titles of items in meta_*.jsonl, if any

Files are read in order of their names and as far as needed. Nothing is downloaded.
"""

from __future__ import annotations

import csv
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.workflows.iterative import NUM_CHUNKS
from benchmarks.workflows.mapreduce import NUM_QUESTIONS_TATQA
from helium.errors import ConfigError

Batch = dict[str, list[str]]

_CHUNK_WORDS = {"iterative": 676, "parallel": 820}
"""Words of one chunk of reviews, as in the synthetic rows."""


def load_batch(workflow: str, folder: Path, size: int) -> Batch:
    """Returns ``size`` rows of a workflow's data set.

    Args:
        workflow: Name of a workflow that ends in the name of its data set.
        folder: Holds one folder per data set.

    Raises:
        ConfigError: The workflow has no data set, a file is missing or malformed, or there are
            fewer rows than asked for.
    """
    kind, _, data_set = workflow.partition("-")
    if data_set == "mmlu":
        batch = {"question": _take(_mmlu(folder / "mmlu"), size, folder / "mmlu")}
    elif data_set == "tatqa":
        batch = _columns(_take(_tatqa(folder / "tatqa"), size, folder / "tatqa"))
    elif data_set == "amazon":
        rows = _amazon(folder / "amazon", _CHUNK_WORDS[kind], has_item=kind == "parallel")
        batch = _columns(_take(rows, size, folder / "amazon"))
    else:
        raise ConfigError(
            f"{workflow}: has no real data set, only workflows that end in mmlu, tatqa or amazon "
            "have; leave out the folder"
        )
    return batch


def _take(rows: Iterator[Any], size: int, folder: Path) -> list[Any]:
    taken = [row for row, _ in zip(rows, range(size), strict=False)]
    if len(taken) < size:
        raise ConfigError(
            f"{folder}: holds {len(taken)} usable rows, {size} are asked for; ask for fewer or add "
            "files"
        )
    return taken


def _columns(rows: list[dict[str, str]]) -> Batch:
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _mmlu(folder: Path) -> Iterator[str]:
    for path in _files(folder, ".csv", ".jsonl", ".parquet"):
        if path.suffix == ".csv":
            records: Iterator[tuple[str, Any]] = _csv_records(path)
        elif path.suffix == ".jsonl":
            records = _json_lines(path)
        else:
            records = _parquet_records(path)
        for place, record in records:
            question, choices = _field(record, place, "question"), record.get("choices")
            if not isinstance(choices, list) or len(choices) != 4:
                raise ConfigError(f"{place}: expected four 'choices', got {choices!r:.80}")
            options = (
                f"{letter}. {choice}"
                for letter, choice in zip(string.ascii_uppercase, choices, strict=False)
            )
            yield "\n".join([question, *options])


def _csv_records(path: Path) -> Iterator[tuple[str, Any]]:
    """Reads the published form: question, four choices, letter of the answer; no header."""
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            place = f"{path}, record {number}"
            if len(row) not in (5, 6):
                raise ConfigError(
                    f"{place}: expected question, four choices and the answer, got {len(row)} "
                    "fields"
                )
            yield place, {"question": row[0], "choices": row[1:5]}


def _parquet_records(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            f"{path}: reading Parquet needs pyarrow; install it, or convert the file to JSON lines "
            "with 'question' and 'choices'"
        ) from None
    for number, record in enumerate(parquet.read_table(path).to_pylist(), start=1):
        yield f"{path}, record {number}", record


def _tatqa(folder: Path) -> Iterator[dict[str, str]]:
    for path in _files(folder, ".json"):
        try:
            documents = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"{path}: is no JSON: {error}") from None
        if not isinstance(documents, list):
            raise ConfigError(f"{path}: expected a list of documents, as TAT-QA is published")
        for number, document in enumerate(documents, start=1):
            row = _tatqa_row(document, f"{path}, document {number}")
            if row is not None:
                yield row


def _tatqa_row(document: Any, place: str) -> dict[str, str] | None:
    """Returns a row, or ``None`` for a document with fewer questions than a row has."""
    try:
        table = document["table"]["table"]
        lines = [" | ".join(str(cell) for cell in line) for line in table]
        lines += [str(paragraph["text"]) for paragraph in document["paragraphs"]]
        questions = [str(question["question"]) for question in document["questions"]]
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{place}: expected 'table' with 'table', 'paragraphs' with 'text' and 'questions' "
            f"with 'question'; missing {error}"
        ) from None
    if len(questions) < NUM_QUESTIONS_TATQA:
        return None
    numbered = enumerate(questions[:NUM_QUESTIONS_TATQA], start=1)
    return {"context": "\n".join(lines)} | {f"question_{n}": text for n, text in numbered}


def _amazon(folder: Path, num_words: int, has_item: bool) -> Iterator[dict[str, str]]:
    """Yields items with enough reviews, in the order in which they become complete."""
    paths = _files(folder, ".jsonl")
    titles: dict[str, str] = {}
    for path in paths:
        if has_item and path.name.startswith("meta"):
            for place, record in _json_lines(path):
                titles[_field(record, place, "parent_asin", "asin")] = str(record.get("title", ""))
    reviews: dict[str, list[str]] = {}
    for path in paths:
        if path.name.startswith("meta"):
            continue
        for place, record in _json_lines(path):
            item = _field(record, place, "parent_asin", "asin")
            words = reviews.setdefault(item, [])
            if len(words) >= NUM_CHUNKS * num_words:
                continue  # the item is complete and has been yielded
            words += _field(record, place, "text", "reviewText").split()
            if len(words) >= NUM_CHUNKS * num_words:
                chunks = (words[n * num_words : (n + 1) * num_words] for n in range(NUM_CHUNKS))
                row = {f"chunk_{n}": " ".join(chunk) for n, chunk in enumerate(chunks, start=1)}
                yield ({"item": titles.get(item) or f"Item {item}"} if has_item else {}) | row


def _files(folder: Path, *suffixes: str) -> list[Path]:
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; it should hold {suffixes} files")
    found = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
    if not found:
        raise ConfigError(f"{folder}: holds none of {suffixes} files")
    return found


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{place}: is no JSON: {error}") from None
            if not isinstance(record, dict):
                raise ConfigError(f"{place}: expected an object, got {type(record).__name__}")
            yield place, record


def _field(record: dict[str, Any], place: str, *names: str) -> str:
    for name in names:
        if isinstance(record.get(name), str):
            return record[name]
    raise ConfigError(f"{place}: expected a text in {' or '.join(names)}, got {list(record)}")
