"""Batches and workflows from files."""

import json
from pathlib import Path

import pytest

from helium.cli.inputs import first_rows, load_batch, load_workflow
from helium.errors import WorkflowError

REPO = Path(__file__).resolve().parents[3]
MODULE = "tests.unit.cli.sample_workflow"


def write(folder, name, text):
    path = folder / name
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("b.json", '{"q": ["a", "b"], "t": ["x", "y"]}'),
        ("b.json", '[{"q": "a", "t": "x"}, {"t": "y", "q": "b"}]'),
        ("b.jsonl", '{"q": "a", "t": "x"}\n\n{"q": "b", "t": "y"}\r\n'),
        ("b.csv", "q,t\r\na,x\r\nb,y\r\n"),
        ("b.csv", '\ufeffq,t\na,x\n"b",y'),
    ],
)
def test_every_format_gives_the_same_columns(tmp_path, name, text):
    assert load_batch(write(tmp_path, name, text)) == {"q": ["a", "b"], "t": ["x", "y"]}


def test_values_come_out_as_they_went_in(tmp_path):
    values = ["", "a,b", 'say "hi"', "two\nlines", "carriage\r\nreturn", "\u2028\x0b\x1c", "é😀"]
    as_json = write(tmp_path, "b.json", json.dumps({"q": values}))
    as_jsonl = write(tmp_path, "b.jsonl", "\n".join(json.dumps({"q": v}) for v in values))
    quoted = ['"' + value.replace('"', '""') + '"' for value in values]
    as_csv = write(tmp_path, "b.csv", "\r\n".join(["q", *quoted]))
    for path in (as_json, as_jsonl, as_csv):
        assert load_batch(path) == {"q": values}


def test_a_value_longer_than_the_csv_module_likes(tmp_path):
    assert load_batch(write(tmp_path, "b.csv", "q\n" + "x" * 300_000))["q"] == ["x" * 300_000]


def test_settings_go_with_every_row(tmp_path):
    path = write(tmp_path, "b.json", '{"q": ["a"]}')
    document = write(tmp_path, "long.txt", "line\r\n")
    assert load_batch(path, ["t=a=b", f"d=@{document}"]) == {
        "q": ["a"],
        "t": "a=b",
        "d": "line\r\n",
    }


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("b.json", "{", "Expecting property name"),
        ("b.json", "3", "expected an object of columns or a list, got a int"),
        ("b.json", '{"q": 3}', "column 'q' is a int"),
        ("b.json", '[{"q": "a"}, 3]', "row 1 is a int"),
        ("b.json", '[{"q": "a"}, {"p": "b"}]', r"row 1 has the columns \['p'\]"),
        ("b.jsonl", '{"q": "a"}\n{"q"', "line 2"),
        ("b.csv", "q,t\na\n", "row 0 has the columns"),
        ("b.csv", "q,t\na,b,c\n", "row 0 has the columns"),
        ("b.csv", 'q\n"a', "unexpected end of data"),
        ("b.txt", "q", r"expected a \.json, \.jsonl or \.csv file"),
    ],
)
def test_what_is_no_batch_is_refused_by_name(tmp_path, name, text, message):
    with pytest.raises(WorkflowError, match=message) as caught:
        load_batch(write(tmp_path, name, text))
    assert name in str(caught.value)


def test_other_mistakes_with_a_batch(tmp_path):
    path = write(tmp_path, "b.json", '{"q": ["a"]}')
    with pytest.raises(WorkflowError, match="column=value"):
        load_batch(path, ["t"])
    with pytest.raises(WorkflowError, match="has this column already"):
        load_batch(path, ["q=x"])
    with pytest.raises(WorkflowError, match="cannot be read"):
        load_batch(str(tmp_path / "missing.json"))
    (tmp_path / "latin.csv").write_bytes(b"q\n\xe9")
    with pytest.raises(WorkflowError, match="cannot be read"):
        load_batch(str(tmp_path / "latin.csv"))


def test_first_rows_leave_scalars_alone():
    assert first_rows({"q": ["a", "b"], "t": "xyz"}, 1) == {"q": ["a"], "t": "xyz"}


def test_a_workflow_comes_from_a_module_a_file_or_json(tmp_path):
    expected = load_workflow(f"{MODULE}:review").plan
    assert load_workflow(f"{MODULE}:graph").plan == expected
    assert load_workflow(f"{MODULE}:plan").plan == expected
    source = (REPO / "tests/unit/cli/sample_workflow.py").read_text()
    file = write(tmp_path, "copy.py", source.replace("cli_test.upper", "cli_test.upper_2"))
    assert len(load_workflow(f"{file}:review").plan.operators) == len(expected.operators)
    path = write(tmp_path, "plan.json", expected.to_json().decode())
    assert load_workflow(path).plan == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (f"{MODULE}:nothing", r"workflows in it: \['completion', 'graph', 'plan', 'review'\]"),
        (f"{MODULE}:not_a_workflow", "is a int; expected a graph"),
        ("no_such_module:x", "cannot be imported: ModuleNotFoundError"),
        ("missing.py:x", "cannot be imported: FileNotFoundError"),
        ("missing.json", "cannot be read"),
        (MODULE, "expected module:attribute"),
        ("sample.py", "expected module:attribute"),
    ],
)
def test_what_is_no_workflow_is_refused(where, message):
    with pytest.raises(WorkflowError, match=message):
        load_workflow(where)


def test_a_json_plan_that_is_not_valid_is_refused(tmp_path):
    with pytest.raises(WorkflowError, match="plan"):
        load_workflow(write(tmp_path, "plan.json", '{"operators": []}'))
