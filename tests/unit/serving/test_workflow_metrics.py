"""Runs are counted by workflow and operator, in a bounded number of series."""

import asyncio

from prometheus_client import CollectorRegistry, generate_latest

from helium import graphs, ops
from helium.errors import EngineError
from tests.unit.runtime.engines import Engine, echo
from tests.unit.serving.app import register, serving
from vllm_helium.bounded_series import OTHER
from vllm_helium.serving.workflow_metrics import WorkflowMetrics


def test_calls_tokens_and_failures_are_counted_by_operator(tmp_path):
    def answer(call):
        if call.messages[-1][1] == "draft bad":
            raise EngineError("no")
        return echo(call)

    topic = ops.placeholder("topic")
    draft = ops.llm([ops.Msg("user", ["draft ", topic])], name="draft")
    final = ops.llm([ops.Msg("user", ["final ", draft])], name="final")

    async def main():
        async with serving(tmp_path, Engine(answer=answer)) as client:
            path = await register(client, graphs.build({"text": final}))
            body = {"inputs": {"topic": ["a", "bad", "c"]}, "wait": True}
            await client.post(path + "/runs", json=body)
            while client.service._followers:
                await asyncio.sleep(0)
            registry = CollectorRegistry()
            registry.register(client.service.metrics)
            return path.rpartition("/")[2], generate_latest(registry).decode()

    workflow, text = asyncio.run(main())
    labels = f'{{operator="draft",workflow="{workflow}"}}'
    assert f"vllm:helium_workflow_calls_total{labels} 2.0" in text
    assert f"vllm:helium_workflow_prompt_tokens_total{labels} 20.0" in text
    assert f"vllm:helium_workflow_failures_total{labels} 1.0" in text
    assert 'vllm:helium_workflow_runs_total{status="done"} 1.0' in text


def test_the_least_recently_active_operator_makes_room_and_sums_stay_right():
    metrics = WorkflowMetrics(max_series=2)
    for operator in ("a", "b", "a", "c", "a"):
        metrics._series.of(("w", operator)).num_calls += 1
    calls = next(metrics.collect())
    values = {sample.labels["operator"]: sample.value for sample in calls.samples}
    assert values == {"a": 3, "c": 1, OTHER[1]: 1}
