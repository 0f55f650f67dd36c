"""Six workflows through LLM, HTTP and the command: every way gives what naive calls give."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import serve, stop
from tests.e2e.six_workflows import workloads
from tests.e2e.test_workflows import register, request
from vllm_helium.models.tiny import make_tiny_llama

pytestmark = [pytest.mark.engine, pytest.mark.slow]

REPO = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")]),
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """Way of running -> workflow -> outputs, from an engine in a process of its own."""
    folder = tmp_path_factory.mktemp("six")
    model = make_tiny_llama(folder / "tiny")
    result = folder / "outputs.json"
    command = [sys.executable, "-m", "tests.e2e.six_workflows", str(model), str(result)]
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=REPO, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(result.read_text())


def test_every_optimization_on_or_off_gives_the_naive_outputs(outputs):
    naive = outputs.pop("naive")
    assert len(naive) == 6 and len(outputs) >= 12
    for way, found in outputs.items():
        assert found == naive, way
    outputs["naive"] = naive


def test_http_and_the_command_give_the_naive_outputs(outputs, tmp_path):
    server = serve(tmp_path, "--helium", "--max-model-len", "8192")
    try:
        for workload in workloads():
            naive = outputs["naive"][workload.name]
            path = register(server, workload.graph, workload.name)
            body = {"inputs": dict(workload.batch), "wait": True}
            status, done = request(server, "POST", path + "/runs", body)
            assert status == 200 and done["failures"] == []
            assert done["results"] == naive, workload.name
            plan, batch = tmp_path / "plan.json", tmp_path / "batch.json"
            plan.write_bytes(workload.graph.plan.to_json())
            batch.write_text(json.dumps(dict(workload.batch)))
            command = [sys.executable, "-m", "helium.cli.main", "run", str(plan)]
            command += ["--batch", str(batch), "--engine", server.base_url + "/v1"]
            command += ["--store", str(tmp_path / "runs.db")]
            ran = subprocess.run(
                command, env=ENVIRONMENT, cwd=REPO, capture_output=True, text=True, timeout=300
            )
            assert ran.returncode == 0, ran.stderr[-2000:]
            assert json.loads(ran.stdout)["outputs"] == naive, workload.name
    finally:
        stop(server)
