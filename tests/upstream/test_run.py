import importlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent

UPSTREAM_LIKE = """
import pytest

def test_good(): pass
def test_bad(): assert 1 == 2
def test_skipped(): pytest.skip("not here")
@pytest.mark.parametrize("n", [1, 2])
def test_each(n): assert n == 1
@pytest.fixture
def broken(): raise OSError("no setup")
def test_setup(broken): pass
@pytest.fixture
def untidy():
    yield
    raise OSError("no teardown")
def test_teardown(untidy): pass
"""


@pytest.fixture
def run(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("run")


@pytest.fixture
def sources(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return run.sources


def outcomes_of(run, **named):
    return {test: run.Outcome(outcome) for test, outcome in named.items()}


def test_a_test_that_stock_passes_and_we_fail_is_lost(run):
    outcomes = outcomes_of(run, a="passed", b="failed", c="skipped", d="error", e="failed")
    result = run.compare({"a", "b", "c", "d"}, outcomes, {})
    assert result.lost == ("b", "c", "d")
    assert not result.is_clean


def test_a_test_that_did_not_run_is_missing(run):
    result = run.compare({"a", "b"}, outcomes_of(run, a="passed"), {})
    assert result.missing == ("b",)
    assert not result.is_clean


def test_what_stock_fails_is_not_looked_at(run):
    result = run.compare({"a"}, outcomes_of(run, a="passed", b="failed", c="passed"), {})
    assert result.is_clean
    assert result.gained == ("c",)


def test_an_exception_excuses_one_test_and_is_stale_once_it_passes(run):
    outcomes = outcomes_of(run, a="failed", b="passed")
    assert run.compare({"a", "b"}, outcomes, {"a": "why"}).is_clean
    result = run.compare({"a", "b"}, outcomes, {"a": "why", "b": "why", "gone": "why"})
    assert result.stale == ("b", "gone")
    assert not result.is_clean


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("tests/v1/core", True),
        ("tests/v1/core/test_a.py", True),
        ("tests/v1/core/test_a.py::test_b", False),
        ("tests/v1/co", False),
    ],
)
def test_paths_select_whole_components(run, path, expected):
    assert run.is_within("tests/v1/core/test_a.py::test_b[1]", [path]) is expected


def test_an_exception_needs_a_reason(run, tmp_path):
    path = tmp_path / "exceptions.toml"
    path.write_text('[exceptions]\n"tests/a.py::b[1]" = "it differs"\n')
    assert run.read_exceptions(path) == {"tests/a.py::b[1]": "it differs"}
    path.write_text('[exceptions]\n"tests/a.py::b[1]" = " "\n')
    with pytest.raises(run.sources.UpstreamTestsError, match="no reason"):
        run.read_exceptions(path)


def test_the_recorded_lists_hold_ids_of_the_tests_that_are_run(run):
    recorded = run.read_stock_passed()
    assert len(recorded) > 800
    assert all(run.is_within(test, run.TEST_PATHS) and "::" in test for test in recorded)
    assert run.read_exceptions().keys() <= recorded


def test_outcomes_join_the_phases_of_each_test(tmp_path):
    (tmp_path / "test_x.py").write_text(UPSTREAM_LIKE)
    report = tmp_path / "outcomes.jsonl"
    environment = os.environ | {"PYTHONPATH": str(HERE), "UPSTREAM_OUTCOMES": str(report)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "outcomes_plugin", "--rootdir=."]
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=False)
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert {line["id"]: line["outcome"] for line in lines} == {
        "test_x.py::test_good": "passed",
        "test_x.py::test_bad": "failed",
        "test_x.py::test_skipped": "skipped",
        "test_x.py::test_each[1]": "passed",
        "test_x.py::test_each[2]": "failed",
        "test_x.py::test_setup": "error",
        "test_x.py::test_teardown": "error",
    }
    reasons = {line["id"]: line["reason"] for line in lines}
    assert "assert 1 == 2" in reasons["test_x.py::test_bad"]
    assert reasons["test_x.py::test_good"] == ""


def test_only_the_tests_are_unpacked(sources, tmp_path):
    tree = tmp_path / f"vllm-{sources.UPSTREAM_VERSION}"
    for name in ("tests/test_a.py", "vllm/__init__.py", "setup.py"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("")
    with tarfile.open(tmp_path / "sdist.tar.gz", "w:gz") as archive:
        archive.add(tree, tree.name)
    root = sources.unpack_tests(tmp_path / "sdist.tar.gz")
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert files == {"tests/test_a.py", "pytest.ini"}
    assert sources.unpack_tests(tmp_path / "not read again") == root


def test_a_changed_source_distribution_is_refused(sources):
    (sources.cache_dir() / f"vllm-{sources.UPSTREAM_VERSION}.tar.gz").write_bytes(b"other")
    with pytest.raises(sources.UpstreamTestsError, match="sha256"):
        sources.fetch_sdist()


@pytest.mark.parametrize(
    ("name", "ffn_dim"), [("facebook/opt-125m", 3072), ("facebook/opt-350m", 4096)]
)
def test_the_stand_ins_are_found_offline_under_their_hub_names(sources, name, ffn_dim):
    script = (
        "from huggingface_hub import try_to_load_from_cache as find; import json; "
        f"print(json.load(open(find({name!r}, 'config.json')))['ffn_dim'])"
    )
    environment = os.environ | {"HF_HOME": str(sources.make_offline_hub()), "HF_HUB_OFFLINE": "1"}
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(ffn_dim)
