"""Real data sets from a local folder, in the forms they are published in."""

from __future__ import annotations

import json

import pytest

from benchmarks.workflows import WORKFLOWS
from benchmarks.workflows.datasets import load_batch
from helium.errors import ConfigError


def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def _document(num_questions=6, text="Sales rose."):
    return {
        "table": {"uid": "t", "table": [["", "2019"], ["Sales", "$12"]]},
        "paragraphs": [{"order": 1, "text": text}, {"order": 2, "text": "Costs fell."}],
        "questions": [{"question": f"What is {n}?", "answer": "?"} for n in range(num_questions)],
    }


def test_mmlu_as_csv_and_as_json_lines_gives_the_same_rows(tmp_path):
    _write(tmp_path / "csv/mmlu/law_test.csv", '"What, then?",one,two,three,four,C\n')
    record = {"question": "What, then?", "choices": ["one", "two", "three", "four"], "answer": 2}
    _write(tmp_path / "jsonl/mmlu/law.jsonl", _lines([record, record]))
    expected = "What, then?\nA. one\nB. two\nC. three\nD. four"
    for workflow in ("mapreduce-mmlu", "debate-mmlu"):
        assert load_batch(workflow, tmp_path / "csv", 1) == {"question": [expected]}
    assert load_batch("mapreduce-mmlu", tmp_path / "jsonl", 2) == {"question": [expected] * 2}


def test_mmlu_as_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    record = {"question": "Why?", "choices": ["a", "b", "c", "d"], "answer": 0}
    (tmp_path / "mmlu").mkdir()
    parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "mmlu/test.parquet")
    assert load_batch("debate-mmlu", tmp_path, 1)["question"] == ["Why?\nA. a\nB. b\nC. c\nD. d"]


def test_tatqa_rows_are_documents_with_six_questions(tmp_path):
    documents = [_document(5, "Too few."), _document(7), _document(6, "Again.")]
    _write(tmp_path / "tatqa/train.json", json.dumps(documents))
    batch = load_batch("reflection-tatqa", tmp_path, 2)
    assert batch["context"][0] == " | 2019\nSales | $12\nSales rose.\nCosts fell."
    assert [batch[f"question_{n}"][1] for n in (1, 6)] == ["What is 0?", "What is 5?"]
    assert len(batch) == 7 and "Too few." not in "".join(batch["context"])


def test_amazon_rows_are_items_with_enough_reviews(tmp_path):
    short = {"asin": "B1", "reviewText": "too short"}
    long = {"parent_asin": "B2", "text": "word " * 2_000, "rating": 5}
    _write(tmp_path / "amazon/reviews.jsonl", _lines([short, long, long, long, long]))
    meta = [{"parent_asin": "B2", "title": "A kettle"}]
    _write(tmp_path / "amazon/meta_home.jsonl", _lines(meta))
    batch = load_batch("iterative-amazon", tmp_path, 1)
    assert set(batch) == {f"chunk_{n}" for n in range(1, 7)}
    assert {len(batch[name][0].split()) for name in batch} == {676}
    batch = load_batch("parallel-amazon", tmp_path, 1)
    assert batch["item"] == ["A kettle"] and len(batch["chunk_6"][0].split()) == 820


@pytest.mark.parametrize("workflow", [n for n in WORKFLOWS if n.endswith(("mmlu", "qa", "amazon"))])
def test_real_rows_fit_the_workflow(tmp_path, workflow):
    record = {"question": "Why?", "choices": ["a", "b", "c", "d"]}
    _write(tmp_path / "mmlu/a.jsonl", _lines([record]))
    _write(tmp_path / "tatqa/a.json", json.dumps([_document()]))
    _write(tmp_path / "amazon/a.jsonl", _lines([{"asin": "B", "text": "word " * 5_000}]))
    workload = WORKFLOWS[workflow](size=1)
    real = workload.with_batch(load_batch(workflow, tmp_path, 1))
    assert real.batch.keys() == workload.batch.keys()
    assert real.compile().rows.num_rows(real.graph.plan.llm_operators[0].name) == 1


@pytest.mark.parametrize(
    ("workflow", "name", "text", "message"),
    [
        ("trading-8b", "mmlu/a.csv", "", "has no real data set"),
        ("debate-mmlu", "other/a.csv", "", "there is no such folder"),
        ("debate-mmlu", "mmlu/a.txt", "", "holds none of"),
        ("debate-mmlu", "mmlu/a.csv", "q,1,2\n", "a.csv, record 1: expected question, four"),
        ("debate-mmlu", "mmlu/a.csv", "q,1,2,3,4,A\n", "holds 1 usable rows, 2 are asked for"),
        ("debate-mmlu", "mmlu/a.jsonl", "{\n", "a.jsonl, line 1: is no JSON"),
        ("debate-mmlu", "mmlu/a.jsonl", "[]\n", "expected an object, got list"),
        ("debate-mmlu", "mmlu/a.jsonl", '{"choices": []}\n', "expected a text in question"),
        ("debate-mmlu", "mmlu/a.jsonl", '{"question": "?"}\n', "expected four 'choices'"),
        ("debate-tatqa", "tatqa/a.json", "{", "is no JSON"),
        ("debate-tatqa", "tatqa/a.json", "{}", "expected a list of documents"),
        ("debate-tatqa", "tatqa/a.json", "[{}]", "document 1: expected 'table'"),
        ("iterative-amazon", "amazon/a.jsonl", '{"asin": "B"}\n', "text or reviewText"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, workflow, name, text, message):
    _write(tmp_path / name, text)
    with pytest.raises(ConfigError, match=message):
        load_batch(workflow, tmp_path, 2)
