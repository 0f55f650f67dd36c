"""How long the answers of the benchmark workflows are, for engines that make them up.

Means per agent as Qwen3-8B gave them with a limit of 512 tokens; an agent is known by how its
system prompt begins and by the turn of its conversation. Where nothing is said, answers are as long
as allowed. Source: measured on the reference workflows, Helium, §7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from helium.plan.calls import Call
from vllm_helium.simulator.fake_model import OutputLengths


class AgentLength(NamedTuple):
    """Mean answer of an agent.

    Attributes:
        opening: First words of its system prompt.
        turn: Of its conversation, from 0; ``None`` for every turn.
        within: What the last message holds as well.
    """

    opening: str
    mean_tokens: float
    turn: int | None = None
    within: str = ""


_EXPERT, _SUMMARIZER = "You answer exam questions", "You combine the answers"
_ANALYST = "You are a financial analyst"

AGENTS: Mapping[str, tuple[AgentLength, ...]] = {
    "mapreduce-mmlu": (AgentLength(_EXPERT, 294), AgentLength(_SUMMARIZER, 168)),
    "mapreduce-tatqa": (AgentLength(_EXPERT, 391), AgentLength(_SUMMARIZER, 250)),
    "debate-mmlu": (AgentLength("", 298, turn=0), AgentLength("", 360, turn=1)),
    "debate-tatqa": (AgentLength("", 376, turn=0), AgentLength("", 404, turn=1)),
    "reflection-tatqa": (
        AgentLength(_ANALYST, 120, turn=0),
        AgentLength(_ANALYST, 139, turn=1),
        AgentLength("You check which figures", 258),
        AgentLength("You check how an answer", 511),
    ),
    "iterative-amazon": (
        AgentLength("", 216, within="Summarize these reviews"),
        AgentLength("", 401, within="Extend the summary"),
    ),
    "parallel-amazon": (AgentLength("You judge", 435, within="Extract every remark"),),
    **{
        f"trading-{n}b": (AgentLength("You are a trader who follows a arbitrage", 357),)
        for n in (4, 8, 12, 16)
    },
}


def output_lengths(workflow: str, spread: float = 0.25) -> OutputLengths:
    """Returns the lengths of a workflow's answers; those of a workflow without any are maximal."""
    agents = AGENTS.get(workflow.removesuffix("-distinct"), ())

    def mean(call: Call) -> float | None:
        opening = call.messages[0][1] if call.messages else ""
        last = call.messages[-1][1] if call.messages else ""
        turn = sum(role == "assistant" for role, _ in call.messages)
        for agent in agents:
            if (
                opening.startswith(agent.opening)
                and agent.turn in (None, turn)
                and agent.within in last
            ):
                return agent.mean_tokens
        return None

    return OutputLengths(mean, spread)
