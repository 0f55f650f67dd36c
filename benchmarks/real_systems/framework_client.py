"""Runs a workflow with LangGraph or AgentScope; for an environment that has them.

    python framework_client.py JOB RESULT

Imports nothing of this project. JOB holds ``framework``, ``api``, ``model`` and ``workflow``,
as ``jobs.py`` describes it. RESULT gets the seconds it took, without imports, and every call:
operator, row, digest of its prompt, text. Both frameworks are used as their
documentation shows: all rows at once, independent agents side by side.

Retries are left as the clients have them. Both ends give up an unused connection after 5 s: a
request written on one in the moment in which vLLM closes it fails with "Server disconnected without
sending a response", and the client makes it again.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import operator as operators
import sys
import time
from pathlib import Path
from typing import Annotated, Any, TypedDict

TIMEOUT_S = 3600.0
IMPORTS = {
    "langgraph": ("langgraph.graph",),
    "agentscope": ("agentscope.agent", "agentscope.model"),
}


def main() -> None:
    job_path, result_path = map(Path, sys.argv[1:])
    job = json.loads(job_path.read_text())
    run = {"langgraph": run_langgraph, "agentscope": run_agentscope}[job["framework"]]
    for module in ("openai", job["framework"], *IMPORTS[job["framework"]]):
        importlib.import_module(module)  # no system is charged for its imports
    calls: list[list[Any]] = []
    started = time.perf_counter()
    asyncio.run(run(job["workflow"], job["api"], job["model"], calls))
    elapsed_s = time.perf_counter() - started
    result_path.write_text(json.dumps({"elapsed_s": elapsed_s, "calls": calls}))


async def run_langgraph(
    workflow: dict[str, Any], api: str, model: str, calls: list[list[Any]]
) -> None:
    """A node per operator, an edge per dependency; ``abatch`` over the rows."""
    from langgraph.graph import END, START, StateGraph
    from openai import AsyncOpenAI

    class State(TypedDict):
        row: int
        answers: Annotated[dict[str, str], operators.or_]

    client = AsyncOpenAI(base_url=api, api_key="none", timeout=TIMEOUT_S)

    def node_of(operator: dict[str, Any]) -> Any:
        async def node(state: State) -> dict[str, Any]:
            messages = rendered(operator, workflow["columns"], state["row"], state["answers"])
            answer = await client.chat.completions.create(
                model=model,
                messages=[{"role": role, "content": content} for role, content in messages],
                max_tokens=operator["max_tokens"],
                temperature=0,
            )
            text = answer.choices[0].message.content or ""
            calls.append([operator["name"], state["row"], digest(messages), text])
            return {"answers": {operator["name"]: text}}

        return node

    graph = StateGraph(State)
    read = {name for operator in workflow["operators"] for name in operator["reads"]}
    for operator in workflow["operators"]:
        graph.add_node(operator["name"], node_of(operator))
        if operator["reads"]:
            graph.add_edge(operator["reads"], operator["name"])
        else:
            graph.add_edge(START, operator["name"])
        if operator["name"] not in read:
            graph.add_edge(operator["name"], END)
    compiled = graph.compile()
    num_rows = len(next(iter(workflow["columns"].values())))
    inputs = [{"row": row, "answers": {}} for row in range(num_rows)]
    config = {"recursion_limit": 10 + 2 * len(workflow["operators"])}
    await compiled.abatch(inputs, config=config)


async def run_agentscope(
    workflow: dict[str, Any], api: str, model: str, calls: list[list[Any]]
) -> None:
    """An agent per call, agents that wait for nothing more side by side, rows side by side."""
    from agentscope.agent import Agent, ContextConfig, InjectionConfig
    from agentscope.credential import OpenAICredential
    from agentscope.message import AssistantMsg, UserMsg
    from agentscope.model import OpenAIChatModel

    def model_of(max_tokens: int) -> OpenAIChatModel:
        return OpenAIChatModel(
            OpenAICredential(api_key="none", base_url=api),
            model,
            OpenAIChatModel.Parameters(max_tokens=max_tokens, temperature=0),
            stream=False,
            client_kwargs={"timeout": TIMEOUT_S},
        )

    models = {o["max_tokens"]: model_of(o["max_tokens"]) for o in workflow["operators"]}

    async def ask(operator: dict[str, Any], row: int, answers: dict[str, str]) -> None:
        messages = rendered(operator, workflow["columns"], row, answers)
        turns = list(messages)
        system = turns.pop(0)[1] if turns[0][0] == "system" else ""
        agent = Agent(
            "agent",
            system,
            models[operator["max_tokens"]],
            injection_config=InjectionConfig(inject_runtime_state=False),
            context_config=ContextConfig(compression_tool_enabled=False),
        )
        says = {"user": UserMsg, "assistant": AssistantMsg}
        history = [says[role](role, content) for role, content in turns]
        if history[:-1]:
            await agent.observe(history[:-1])
        reply = await agent.reply(history[-1])
        text = reply.get_text_content() or ""
        calls.append([operator["name"], row, digest(messages), text])
        answers[operator["name"]] = text

    async def run_row(row: int) -> None:
        answers: dict[str, str] = {}
        for depth in sorted({operator["depth"] for operator in workflow["operators"]}):
            stage = [o for o in workflow["operators"] if o["depth"] == depth]
            await asyncio.gather(*(ask(operator, row, answers) for operator in stage))

    num_rows = len(next(iter(workflow["columns"].values())))
    await asyncio.gather(*(run_row(row) for row in range(num_rows)))


def rendered(
    operator: dict[str, Any], columns: dict[str, list[str]], row: int, answers: dict[str, str]
) -> list[list[str]]:
    def text(part: dict[str, str]) -> str:
        if "text" in part:
            return part["text"]
        return columns[part["column"]][row] if "column" in part else answers[part["operator"]]

    return [[role, "".join(map(text, parts))] for role, parts in operator["messages"]]


def digest(messages: list[list[str]]) -> str:
    return hashlib.sha256(json.dumps(messages).encode()).hexdigest()


if __name__ == "__main__":
    main()
