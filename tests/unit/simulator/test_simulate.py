"""The benchmark command: small runs of every system, the same bytes twice."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("vllm")

from benchmarks.baselines.systems import SYSTEMS, system
from benchmarks.output_lengths import AGENTS, output_lengths
from benchmarks.simulate import main
from benchmarks.simulated_run import Setting, run_system
from benchmarks.workflows import WORKFLOWS
from helium.cost import DEVICES
from helium.errors import ConfigError
from helium.plan.interpret import interpret

SMALL = Setting("trading-4b", rows=2, scale=0.02, max_tokens=12, has_trace=True)


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_every_system_makes_every_call(name):
    chosen = system(name)
    figures = run_system(SMALL, chosen)["figures"]
    assert figures["num_calls"] == 2 * 56
    assert figures["num_output_tokens"] > 0 and figures["makespan_s"] > 0
    bound = figures["offline_bound"]
    assert figures["num_prompt_tokens"] >= 16 * bound["num_lookups"]
    assert bound["num_hits"] <= bound["num_lookups"]


def test_two_runs_measure_the_same():
    first, second = (run_system(SMALL, system("helium")) for _ in range(2))
    assert json.dumps(first["figures"]) == json.dumps(second["figures"])


def test_duplicate_branches_are_computed_once_by_the_optimizer():
    published = Setting("trading-8b", rows=1, scale=0.02, max_tokens=12)
    calls = {
        name: run_system(published, system(name))["figures"]["num_calls"]
        for name in ("langgraph", "helium", "helium-scheduling-only")
    }
    assert calls == {"langgraph": 88, "helium": 56, "helium-scheduling-only": 88}


def test_a_warm_run_reuses_what_the_day_before_computed():
    warm = Setting("trading-4b", rows=2, scale=0.02, max_tokens=12, is_warm=True)
    calls = {
        name: run_system(warm, system(name))["figures"]["num_calls"]
        for name in ("langgraph", "helium", "helium-no-prompt-cache")
    }
    # The five calls over the quarter's fundamentals are those of the day before.
    assert calls == {"langgraph": 112, "helium": 102, "helium-no-prompt-cache": 112}


def test_rows_run_on_all_engines():
    two = Setting("trading-4b", rows=2, scale=0.02, max_tokens=12, num_engines=2)
    for name in ("op_wise", "parrot", "helium"):
        figures = run_system(two, system(name))["figures"]
        assert figures["num_calls"] == 112, name
        assert figures["makespan_s"] < figures["busy_s"] < 2 * figures["makespan_s"], name


@pytest.mark.parametrize(
    ("override", "message"),
    [('{"is_optimized": true}', "needs order 'plan'"), ('{"order": "sideways"}', "unknown order")],
)
def test_systems_that_cannot_be_are_refused(override, message):
    with pytest.raises(ConfigError, match=message):
        run_system(SMALL, system(f"dataflow:{override}"))


def test_overrides_make_ablations():
    changed = system('helium:{"helium": {"order": "fcfs"}, "rules_off": ["fold_constants"]}')
    assert changed.helium == {"order": "fcfs"} and changed.rules_off == ("fold_constants",)
    assert changed.order == "plan" and changed.name.startswith("helium:")
    for name, message in (
        ("nobody", "unknown system 'nobody'"),
        ("helium:{", "JSON object"),
        ('helium:{"colour": 1}', "unknown .'colour'."),
        ("helium:[1]", "no object"),
    ):
        with pytest.raises(ConfigError, match=message):
            system(name)


@pytest.mark.parametrize("workflow", list(AGENTS))
def test_every_agent_with_a_length_of_its_own_is_met_by_a_call(workflow):
    lengths = output_lengths(workflow, spread=0.0)
    met = set()

    def answer(call, operator, row):
        met.add(lengths.mean(call))
        return ("word " * 5,) * call.sampling.n

    interpret(WORKFLOWS[workflow](size=1, scale=0.1).compile(), answer)
    assert met - {None} == {agent.mean_tokens for agent in AGENTS[workflow]}


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    output = tmp_path / "results" / "small.json"
    arguments = ["--workflow", "debate-mmlu", "--rows", "3", "--scale", "0.1", "--seed", "5"]
    arguments += ["--max-tokens", "12"]
    arguments += ["--system", "langgraph", "--system", "helium", "--output", str(output)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "debate-mmlu, 3 rows, Qwen3-8B, 1 x H100-80GB, seed 5, texts x 0.1"
    assert lines[1].split()[:3] == ["system", "makespan", "s"]
    assert [line.split()[0] for line in lines[2:4]] == ["langgraph", "helium"]
    report = json.loads(output.read_text())
    assert {"command", "python", "vllm", "machine", "revision"} <= set(report["environment"])
    assert [result["figures"]["num_calls"] for result in report["results"]] == [18, 18]
    assert report["results"][0]["assumptions"]["device"]["name"] == "H100-80GB"


def test_the_command_names_what_is_wrong(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--system", "nobody"])
    assert error.value.code == 2
    assert "unknown system 'nobody'" in capsys.readouterr().err


def test_the_command_takes_a_calibration_for_the_device_it_is_of(tmp_path, capsys):
    preset = DEVICES["H100-80GB"]
    path = tmp_path / "calibration.json"
    measured = {"device": "H100-80GB", "model": "Qwen3-8B", "flops_ratio": 0.3}
    measured |= {"bandwidth_ratio": 0.5, "step_overhead_ms": 9.0}
    measured |= {"num_decode_steps": 9, "num_prefill_steps": 9}
    path.write_text(json.dumps(measured | {"error_p50_ratio": 0.1, "error_p90_ratio": 0.2}))
    arguments = ["--workflow", "debate-mmlu", "--rows", "2", "--scale", "0.1", "--max-tokens", "8"]
    arguments += ["--system", "dataflow"]
    makespans = []
    for number, more in enumerate(([], ["--calibration", str(path)])):
        output = tmp_path / f"{number}.json"
        assert main([*arguments, *more, "--output", str(output)]) == 0
        [result] = json.loads(output.read_text())["results"]
        makespans.append(result["figures"]["makespan_s"])
    assert result["assumptions"]["device"]["step_overhead_ms"] == 9.0
    assert makespans[1] > makespans[0]
    assert "H100-80GB as measured: 0.300 of the FLOP/s" in capsys.readouterr().out
    assert DEVICES["H100-80GB"] == preset, "for one run only"
    with pytest.raises(SystemExit):
        main([*arguments, "--device", "H200", "--calibration", str(path)])
    assert "pass --device H100-80GB" in capsys.readouterr().err
