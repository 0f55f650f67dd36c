"""The report: what is run, what is kept, what is left out, what it says."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

pytest.importorskip("vllm")

from benchmarks.baselines.systems import SYSTEMS, system
from benchmarks.compare import main as compare
from benchmarks.report import __main__ as report
from benchmarks.report.cases import REPO, Case, Store, code_digest
from benchmarks.report.entries import ABLATIONS, CORE, ENTRIES, WARM_ONLY, Entry, Group
from benchmarks.simulated_run import Setting

SMALL = Setting("debate-mmlu", rows=2, scale=0.1, max_tokens=8)
ENTRY = Entry("small", "A question", "a source", (Group("tiny", SMALL, ("langgraph", "helium")),))


@pytest.fixture
def entries(monkeypatch):
    monkeypatch.setattr(report, "ENTRIES", {"small": ENTRY})
    monkeypatch.setattr(report, "CORE", ("small",))


def _run(tmp_path, *arguments):
    output = tmp_path / "report"
    options = ["--store", str(tmp_path / "store"), "--output", str(output), *arguments]
    assert report.main(options) == 0
    return json.loads(output.with_suffix(".json").read_text())


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_names_systems_and_settings_that_exist(name):
    entry = ENTRIES[name]
    assert bool(entry.groups) != bool(entry.command)
    titles = [case.title for group in entry.groups for case in group.cases()]
    assert len(titles) == len(set(titles))
    if entry.command:
        assert (REPO / (entry.command[0].replace(".", "/") + ".py")).exists()


def test_the_core_has_every_baseline_and_every_ablation():
    names = {s for entry in CORE for group in ENTRIES[entry].groups for s in group.systems}
    assert set(SYSTEMS) - names == {"query_wise"}  # too slow; an entry of its own
    assert "query_wise" in ENTRIES["query-wise"].groups[0].systems
    assert {*ABLATIONS, *WARM_ONLY, "helium"} == {s for s in SYSTEMS if s.startswith("helium")}


def test_another_seed_is_another_run_with_another_title(entries, tmp_path):
    first = _run(tmp_path, "--only", "langgraph")["entries"]["small"]
    [second] = _run(tmp_path, "--only", "langgraph", "--seed", "1")["entries"]["small"]
    assert second["title"] != first[0]["title"] and "seed 1" in second["title"]
    assert second["figures"]["makespan_s"] != first[0]["figures"]["makespan_s"]


def test_a_second_report_runs_nothing_and_says_the_same(entries, tmp_path, capsys):
    first = _run(tmp_path)
    assert "debate-mmlu, 2 rows" in capsys.readouterr().out
    second = _run(tmp_path)
    assert "took" not in capsys.readouterr().out
    assert first["entries"] == second["entries"]
    names = [result["system"]["name"] for result in first["entries"]["small"]]
    assert names == ["langgraph", "helium"] and not first["not_run"] + list(first["failures"])
    text = (tmp_path / "report.md").read_text()
    assert re.search(r"\| langgraph \| [\d.]+ \| [\d.]+ \| 12 \|", text)
    assert "small       tiny" in text


def test_what_a_deadline_leaves_out_is_listed(entries, tmp_path, capsys):
    content = _run(tmp_path, "--deadline", "0.001")
    assert len(content["not_run"]) == 2 and content["entries"] == {"small": []}
    assert "not run within the deadline: 2" in capsys.readouterr().out


def test_only_the_systems_asked_for_are_run(entries, tmp_path):
    content = _run(tmp_path, "--only", "langgraph")
    assert [r["system"]["name"] for r in content["entries"]["small"]] == ["langgraph"]


def test_an_unknown_entry_is_refused(entries, capsys):
    with pytest.raises(SystemExit):
        report.main(["medium"])
    assert "unknown entries ['medium']" in capsys.readouterr().err


def test_keys_follow_what_figures_depend_on():
    case = Case(SMALL, system("helium"))
    assert case.key() == Case(SMALL, system("helium")).key()
    assert case.key() == Case(SMALL, replace(system("helium"), name="other")).key()
    others = [
        Case(replace(SMALL, rows=3), case.system),
        Case(replace(SMALL, is_serial=True), case.system),
        Case(SMALL, system('helium:{"helium": {"order": "fcfs"}}')),
        Case(SMALL, system("langgraph")),
    ]
    assert len({other.key() for other in others} | {case.key()}) == 5


def test_the_code_of_a_system_is_part_of_its_key(monkeypatch):
    from benchmarks.report import cases

    case, stock = Case(SMALL, system("helium")), Case(SMALL, system("langgraph"))
    policy = Case(SMALL, system("kvflow"))
    keys = case.key(), stock.key(), policy.key()

    def edited(paths):
        return code_digest(paths) + ("edited" if "csrc" in paths else "")

    monkeypatch.setattr(cases, "code_digest", edited)
    assert case.key() != keys[0] and stock.key() == keys[1] and policy.key() == keys[2]


def test_a_run_is_found_again_by_its_key(tmp_path):
    store = Store(tmp_path)
    case = Case(SMALL, system("dataflow"))
    assert store.find(case) is None
    result = store.run(case)
    assert Store(tmp_path).find(case) == result and result["figures"]["num_calls"] == 12
    assert 0 < store.estimate_s(case) < 60


def test_compare_names_what_got_slower(entries, tmp_path, capsys):
    content = _run(tmp_path)
    slower = json.loads(json.dumps(content))
    slower["entries"]["small"][1]["figures"]["makespan_s"] *= 1.5
    (tmp_path / "slower.json").write_text(json.dumps(slower))
    old, new = str(tmp_path / "report.json"), str(tmp_path / "slower.json")
    capsys.readouterr()
    assert compare([old, old]) == 0
    assert "no run has changed" in capsys.readouterr().out
    assert compare([old, new]) == 1
    out = capsys.readouterr().out
    assert "+50.0 %" in out and re.search(r"REGRESSION debate-mmlu.*helium", out)
    assert compare([new, old]) == 0
    slower["entries"]["small"].pop()
    (tmp_path / "slower.json").write_text(json.dumps(slower))
    assert compare([old, new]) == 1 and "gone" in capsys.readouterr().out


def test_plots_are_drawn_of_all_settings(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.report.plots import plot_ratios

    path = tmp_path / "plot.png"
    assert plot_ratios("A question", {"tiny": {"langgraph": 1.5, "helium": 1.0}, "none": {}}, path)
    assert path.read_bytes().startswith(b"\x89PNG")
