"""The command, from arguments to exit status, over a small HTTP server."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helium.cli.main import main
from tests.unit.cli.http_server import serve

REPO = Path(__file__).resolve().parents[3]
WORKFLOW = "tests.unit.cli.sample_workflow:review"


@pytest.fixture
def server():
    with serve() as running:
        yield running


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A data folder of the test's own, and a batch beside it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "batch.csv").write_text("question\na\nb\nc\n")
    return tmp_path / "vllm-helium"


@pytest.fixture
def helium(tmp_path, capsys):
    """Runs the command; returns its status, output and messages."""

    def command(*arguments):
        status = main([argument.format(folder=tmp_path) for argument in arguments])
        return status, *capsys.readouterr()

    return command


def run_arguments(server, *more):
    batch = ("--batch", "{folder}/batch.csv", "--set", "tone=Kindly")
    return ("run", WORKFLOW, *batch, "--engine", server.url, *more)


FINALS = [f"<<KINDLY: {letter}>>" for letter in "ABC"]


def test_run_prints_the_result(helium, server):
    status, out, err = helium(*run_arguments(server, "--id", "r1"))
    result = json.loads(out)
    assert status == 0 and result["outputs"] == {"final": FINALS}
    assert result["version"] == 1 and result["run"] == "r1"
    assert "done: 6 calls, 0 shared" in err and "66 prompt tokens, 24 of them cached" in err
    assert {body["model"] for body in server.bodies} == {"served"}
    # Without the model's tokenizer the engine is told nothing.
    assert server.plans == [] and not any("workflow" in body for body in server.bodies)


def test_a_run_is_traced_and_analyzed(helium, server, tmp_path):
    trace, text, page = (tmp_path / name for name in ("trace.json", "run.txt", "run.html"))
    status, _, _ = helium(*run_arguments(server, "--trace", str(trace), "--analyze", str(text)))
    assert status == 0
    events = json.loads(trace.read_text())["traceEvents"]
    assert sum(event["ph"] == "X" and event["cat"] == "engine" for event in events) == 6
    assert "Critical path, measured" in text.read_text()
    helium(*run_arguments(server, "--analyze", str(page)))
    assert page.read_text().startswith("<!doctype html>")


def test_two_engines_share_the_work(helium, server):
    with serve() as other:
        status, out, _ = helium(*run_arguments(server, "--engine", other.url))
        assert status == 0 and json.loads(out)["outputs"] == {"final": FINALS}
        assert server.bodies and other.bodies
        assert len(server.bodies) + len(other.bodies) == 6


def test_sampling_and_tenant_reach_the_server(helium, server):
    arguments = ("run", WORKFLOW.replace("review", "completion"), "--engine", server.url)
    status, out, _ = helium(*arguments, "--set", "question=q", "--tenant", "t1")
    assert status == 0 and json.loads(out)["outputs"] == {"text": [["<q>", "<q>"]]}
    (body,) = server.bodies
    assert (body["n"], body["stop"], body["cache_salt"]) == (2, ["x"], "t1")
    assert body["seed"] == 3 and "workflow" not in body


def test_a_refused_row_fails_alone_and_the_status_says_so(helium, server, tmp_path):
    server.refused = {"Kindly: b"}
    path = tmp_path / "result.json"
    status, out, err = helium(*run_arguments(server, "--output", str(path)))
    assert status == 3 and out == ""
    assert json.loads(path.read_text())["outputs"]["final"] == [FINALS[0], None, FINALS[2]]
    assert "draft[1] failed" in err and "the prompt is refused" in err
    assert len(server.bodies) == 5


def test_a_server_in_trouble_is_asked_again(helium, server):
    server.failures = [503, 429, 500]
    status, out, _ = helium(*run_arguments(server))
    assert status == 0 and json.loads(out)["outputs"] == {"final": FINALS}
    assert len(server.bodies) == 6 + 3


def test_a_server_that_is_not_there_fails_the_rows(helium, server):
    with serve() as gone:
        url = gone.url
    arguments = run_arguments(server, "--max-attempts", "1")
    status, _, err = helium(
        *[url if argument == server.url else argument for argument in arguments]
    )
    assert status == 3 and f"{url}: Connection error" in err


def test_resume_does_only_what_is_left(helium, server):
    server.refused = {"Kindly: b"}
    assert helium(*run_arguments(server, "--id", "r1"))[0] == 3
    server.refused, server.bodies = set(), []
    status, out, _ = helium("resume", "r1", "--engine", server.url)
    assert status == 0 and json.loads(out)["outputs"] == {"final": FINALS}
    assert len(server.bodies) == 2


def test_list_watch_and_delete(helium, server):
    helium(*run_arguments(server, "--id", "r1", "--name", "reviews"))
    status, out, _ = helium("list")
    assert status == 0 and "r1" in out and "reviews" in out and "6/6" in out and "done" in out
    (info,) = json.loads(helium("list", "--json")[1])
    assert (info["id"], info["status"], info["num_done"]) == ("r1", "done", 6)
    status, out, _ = helium("watch", "r1")
    kinds = [json.loads(line)["type"] for line in out.splitlines()]
    assert kinds[0] == "run_started" and kinds[-1] == "run_finished"
    assert kinds.count("call_finished") == 6 and kinds.count("function_finished") == 3
    assert helium("delete", "r1")[0] == 0
    assert json.loads(helium("list", "--json")[1]) == []


def test_the_cache_is_used_with_a_revision_counted_and_cleared(helium, server):
    assert helium("cache", "stats")[0] == 1
    for _ in range(2):
        status, out, _ = helium(*run_arguments(server, "--revision", "m1", "--tenant", "t"))
        assert status == 0 and json.loads(out)["outputs"] == {"final": FINALS}
    assert len(server.bodies) == 6
    stats = json.loads(helium("cache", "stats", "--json")[1])
    assert stats["num_entries"] == 6 and stats["num_hits"] == 6
    assert "6 of" in helium("cache", "stats")[1]
    helium(*run_arguments(server, "--revision", "m2", "--tenant", "t"))
    assert len(server.bodies) == 12
    assert "0 entries deleted" in helium("cache", "clear", "--tenant", "other")[2]
    assert "12 entries deleted" in helium("cache", "clear", "--tenant", "t")[2]


def test_explain_calls_nothing_and_sees_the_cache(helium, server):
    arguments = ("explain", *run_arguments(server)[1:-2])
    status, out, _ = helium(*arguments, "--engines", "2")
    assert status == 0 and "draft" in out and "final" in out
    assert json.loads(helium(*arguments, "--format", "json")[1])
    assert server.bodies == []
    helium(*run_arguments(server, "--revision", "m1"))
    assert helium(*arguments, "--revision", "m1")[0] == 0
    assert len(server.bodies) == 6


def test_explain_of_a_workflow_that_is_cached_whole(helium, server):
    workflow = WORKFLOW.replace("review", "completion")
    arguments = (workflow, "--set", "question=q", "--revision", "m1")
    assert helium("run", *arguments, "--engine", server.url)[0] == 0
    status, out, _ = helium("run", *arguments, "--engine", server.url)
    assert status == 0 and json.loads(out)["outputs"] == {"text": [["<q>", "<q>"]]}
    assert len(server.bodies) == 1
    assert helium("explain", *arguments)[0] == 0


def test_profile_runs_a_sample_and_remembers(helium, server):
    arguments = run_arguments(server)[1:-2]
    status, out, _ = helium("profile", *arguments, "--engine", server.url, "--rows", "2")
    assert status == 0 and len(server.bodies) == 4
    lines = {line.split()[0]: line.split()[1:] for line in out.splitlines()}
    assert lines["draft"][:2] == ["2", "5.0"] and lines["final"][:2] == ["2", "5.0"]
    assert helium("profile", *arguments) == (0, out, "")
    assert len(server.bodies) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "no.such:thing", "--engine", "http://x/v1"), "cannot be imported"),
        (("run", WORKFLOW, "--engine", "http://x/v1"), "batch: lacks ['tone', 'question']"),
        (
            ("run", WORKFLOW, "--engine", "http://x/v1", "--tokenizer", "/no/such"),
            "tokenizer '/no/such' cannot be loaded",
        ),
        (("resume", "nope", "--engine", "http://x/v1"), "run 'nope' is not in"),
        (("watch", "nope"), "run 'nope' is not in"),
        (("cancel", "nope"), "run 'nope' is not in"),
        (("list", "--store", "/dev/null/x"), "cannot be opened"),
    ],
)
def test_an_error_is_one_line_and_status_1(helium, arguments, message, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)  # it takes seconds to import
    status, out, err = helium(*arguments)
    assert status == 1 and out == "" and message in err
    assert err.startswith("helium: ") and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("run",),
        ("run", WORKFLOW),
        ("fly",),
        ("explain", WORKFLOW, "--format", "x"),
        ("profile", WORKFLOW, "--rows", "0"),
        ("run", WORKFLOW, "--engine", "u", "--call-timeout", "-1"),
    ],
)
def test_wrong_usage_is_status_2(helium, arguments):
    with pytest.raises(SystemExit) as caught:
        helium(*arguments)
    assert caught.value.code == 2


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("ending", ["interrupt", "cancel"])
def test_a_run_in_another_process_is_cancelled_or_interrupted_and_resumed(
    helium, server, tmp_path, ending
):
    server.gate.clear()
    arguments = [a.format(folder=tmp_path) for a in run_arguments(server, "--id", "r1")]
    child = subprocess.Popen(
        [sys.executable, "-m", "helium.cli.main", *arguments],
        cwd=REPO,
        env=os.environ,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A job in the background inherits an ignored SIGINT; this child must have the usual one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for(lambda: len(server.bodies) == 3 or child.poll() is not None)
    assert "is running" in helium("resume", "r1", "--engine", server.url)[2]
    if ending == "interrupt":
        child.send_signal(signal.SIGINT)
    else:
        assert helium("cancel", "r1")[0] == 0
    err = child.communicate(timeout=60)[1]
    (info,) = json.loads(helium("list", "--json")[1])
    if ending == "interrupt":
        assert (child.returncode, info["status"]) == (130, "interrupted")
        assert "helium resume r1" in err and "Traceback" not in err
    else:
        assert (child.returncode, info["status"]) == (3, "cancelled")
        assert "the run was cancelled" in err
    server.gate.set()
    status, out, _ = helium("resume", "r1", "--engine", server.url, "--import", WORKFLOW[:-7])
    assert status == 0 and json.loads(out)["outputs"] == {"final": FINALS}


def test_ray_engines_are_started_used_and_ended(helium, data, monkeypatch):
    from tests.unit.runtime.engines import Engine
    from vllm_helium import ray_engines

    class Actor(Engine):
        is_closed = False

        async def close(self):
            self.is_closed = True

    started = []

    def start(model, num_engines, **arguments):
        started.append((model, num_engines, arguments))
        actors.extend(Actor(answer=lambda call: ("said",)) for _ in range(num_engines))
        return actors

    actors = []
    monkeypatch.setattr(ray_engines, "ray_engines", start)
    monkeypatch.setattr("helium.cli.options.load_tokenizer", lambda name: None)
    where = ("--ray", "2", "--model", "m", "--engine-args", '{{"block_size": 32}}')
    batch = ("--batch", "{folder}/batch.csv", "--set", "tone=Kindly")
    status, out, _ = helium("run", WORKFLOW, *batch, *where)
    assert status == 0 and json.loads(out)["outputs"]["final"] == ["said"] * 3
    assert started == [("m", 2, {"block_size": 32})]
    assert len(actors) == 2 and all(actor.is_closed for actor in actors)
    # Whatever the rows' equal answers make equal is one call.
    assert sum(len(actor.requests) for actor in actors) >= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--ray", "2"), "--model NAME"),
        (("--engine", "http://127.0.0.1:9/v1", "--engine-args", "{{}}"), None),
        (("--engine", "http://127.0.0.1:9/v1", "--engine-args", '{{"a": 1}}'), "add --ray N"),
    ],
)
def test_options_of_engines_that_do_not_go_together_are_refused(helium, options, message):
    arguments = ("--batch", "{folder}/batch.csv", "--set", "tone=Kindly", "--max-attempts", "1")
    status, _, err = helium("run", WORKFLOW, *arguments, *options)
    assert (message is None or (status == 1 and message in err)) and "Traceback" not in err


def test_where_ray_is_missing_the_command_says_what_to_install(helium, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("helium.cli.options.load_tokenizer", lambda name: None)
    arguments = ("--batch", "{folder}/batch.csv", "--set", "tone=Kindly")
    status, _, err = helium("run", WORKFLOW, *arguments, "--ray", "1", "--model", "m")
    assert status == 1 and "Ray is not installed" in err and err.count("\n") == 1
