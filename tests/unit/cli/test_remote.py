"""The subcommands that use a server, against our routes on a thread."""

import contextlib
import json

import pytest
from fastapi import FastAPI

from helium.cli.main import main
from helium.errors import EngineError
from tests.unit.runtime.engines import Engine, TypistWhenAsked, echo
from tests.unit.serving.thread_server import serve_on_thread
from vllm_helium.serving.workflow_routes import router

WORKFLOW = "tests.unit.cli.sample_workflow:completion"


@contextlib.contextmanager
def serve(folder, engine):
    """Serves the workflow routes over an engine of this process; yields the address."""
    app = FastAPI()
    app.include_router(router)
    with serve_on_thread(app, engine, folder) as url:
        yield url


@pytest.fixture
def batch(tmp_path):
    path = tmp_path / "batch.json"
    path.write_text(json.dumps({"question": ["a", "b"]}))
    return str(path)


def test_a_run_is_submitted_listed_watched_and_explained(tmp_path, batch, capsys):
    with serve(tmp_path, Engine()) as url:
        there = ["--server", url]
        output = tmp_path / "done.json"
        arguments = ["submit", WORKFLOW, "--batch", batch, "--id", "r1", "--wait"]
        assert main([*arguments, "--output", str(output), *there]) == 0
        done = json.loads(output.read_text())
        assert done["status"] == "done" and len(done["results"]["text"]) == 2
        capsys.readouterr()
        assert main(["submit", WORKFLOW, "--batch", batch, *there]) == 0
        name = capsys.readouterr().out.strip()
        assert name.startswith("completion-") and name.count("/") == 1
        assert main(["watch", name, *there]) == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert events[0]["type"] == "run_started" and events[-1]["type"] == "run_finished"
        assert main(["list", "--json", *there]) == 0
        listed = json.loads(capsys.readouterr().out)
        assert [run["id"] for run in listed] == ["r1", name.partition("/")[2]]
        assert main(["list", *there]) == 0
        assert name in capsys.readouterr().out
        assert main(["explain", "r1", *there]) == 0
        assert "llm" in capsys.readouterr().out


def test_what_calls_say_is_printed_as_they_say_it(tmp_path, batch, capsys):
    with serve(tmp_path, TypistWhenAsked()) as url:
        there = ["--server", url]
        assert main(["submit", WORKFLOW, "--batch", batch, "--id", "r1", *there]) == 0
        capsys.readouterr()
        assert main(["watch", "r1", "--tokens", *there]) == 0
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert events[-1]["type"] == "run_finished"
        num_deltas = sum(event["type"] == "call_delta" for event in events)
        assert num_deltas == 2 * 2 * TypistWhenAsked.num_parts
    assert main(["watch", "r1", "--tokens"]) == 1
    assert "add --server" in capsys.readouterr().err


def test_a_run_is_cancelled_by_its_id_alone(tmp_path, batch, capsys):
    with serve(tmp_path, Engine(1000.0)) as url:
        there = ["--server", url + "/v1"]
        assert main(["submit", WORKFLOW, "--batch", batch, "--id", "long", *there]) == 0
        assert main(["cancel", "long", *there]) == 0
        assert "cancelled" in capsys.readouterr().err


def test_what_the_server_refuses_is_said_in_one_line(tmp_path, batch, capsys):
    def bad(call):
        if call.prompt == "b":
            raise EngineError("no b")
        return echo(call)

    with serve(tmp_path, Engine(answer=bad)) as url:
        there = ["--server", url]
        assert main(["watch", "ghost", *there]) == 1
        assert "has no run 'ghost'" in capsys.readouterr().err
        assert main(["submit", WORKFLOW, "--set", "x=y", *there]) == 1
        assert "400" in capsys.readouterr().err
        assert main(["submit", WORKFLOW, "--batch", batch, "--wait", *there]) == 3
    assert main(["list", "--server", "http://127.0.0.1:9"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
