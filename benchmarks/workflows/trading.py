"""Trading-Nb: analysts, a debate, N trading branches with a risk debate each, a fund manager.

Source: Helium, §7 (the end-to-end workflow); lengths of prompts as measured there.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.workflows.text import instructions, prose
from benchmarks.workflows.workload import Workload, column, scaled
from helium import graphs, ops
from helium.dsl.node import Node
from helium.plan.operators import Sampling

_ANALYSTS = {
    "fundamentals": (154, {"balance_sheet": 1700, "income": 879, "cash_flow": 922, "insider": 475}),
    "market": (569, {"price": 11_867, "indicators": 13_377}),
    "news": (132, {f"news_{number}": 585 for number in range(1, 6)}),
    "social": (183, {f"social_{number}": 3_451 for number in range(1, 4)}),
}
"""Analyst -> words of the system prompt, and column -> words of its texts."""

_KINDS = {"value": 121, "news": 123, "technical": 124, "arbitrage": 126}
"""Kind of branch -> words of the trader's system prompt; branches take them in turn."""

_RISK = {"risky": 97, "safe": 67, "neutral": 48}
"""Member of the risk debate -> words of the system prompt."""


def build(
    size: int = 16,
    *,
    num_branches: int = 8,
    num_rounds: int = 2,
    distinct: bool = False,
    seed: int = 0,
    day: int = 1,
    scale: float = 1.0,
    max_tokens: int = 512,
) -> Workload:
    """Trading-Nb over stocks: 20 + 2r + N(3r + 2) LLM operators.

    As published there are four kinds of branches, taken in turn, so from five branches on some are
    identical; with ``distinct`` every branch has a trader and a risk debate of its own.

    Args:
        size: Stocks.
        num_branches: N.
        num_rounds: r, rounds of both debates, at least 1.
        day: Fundamentals are those of the quarter; everything else changes from day to day.
        scale: Factor on all lengths of texts.
    """
    sampling = Sampling(max_tokens=max_tokens)
    agents = _Agents(ops.placeholder("stock"), sampling, scale)
    summaries = [_analyst(agents, analyst) for analyst in _ANALYSTS]
    manager = _research(agents, summaries, num_rounds)
    judges = []
    for branch in range(num_branches):
        kind = list(_KINDS)[branch % len(_KINDS)]
        style = f"branch {branch + 1}" if distinct else ""
        with ops.scope(f"branch_{branch + 1}"):
            judges.append(_branch(agents, kind, style, manager, summaries, num_rounds))
    reports = [(f"Decision of desk {number}", judge) for number, judge in enumerate(judges, 1)]
    system = agents.system("You manage a fund and have the last word.", 128, "the portfolio")
    decision = agents.ask("fund_manager", system, "Decide on the position in", 78, reports)
    graph = graphs.build({"decision": decision})
    name = f"trading-{num_branches}b{'-distinct' if distinct else ''}"
    return Workload(name, graph, trading_batch(size, seed=seed, day=day, scale=scale))


def trading_batch(
    size: int, *, seed: int = 0, day: int = 1, scale: float = 1.0
) -> dict[str, list[str]]:
    """Returns stocks with the material of one day."""
    batch = {"stock": column(size, lambda row: f"stock {seed}-{row:03d}")}
    for analyst, (_, columns) in _ANALYSTS.items():
        date = "quarter" if analyst == "fundamentals" else f"day {day}"
        for name, num_words in columns.items():
            key = f"trading/{seed}/{name}/{date}"
            batch[name] = column(
                size,
                lambda row, key=key, num_words=num_words: prose(
                    scaled(num_words, scale), f"{key}/{row}"
                ),
            )
    return batch


@dataclass(frozen=True)
class _Agents:
    stock: Node
    sampling: Sampling
    scale: float

    def system(self, lead: str, num_words: int, topic: str, style: str = "") -> ops.Msg:
        if style:
            lead = f"{lead} You work for {style}."
        return ops.Msg("system", instructions(lead, scaled(num_words, self.scale), topic, style))

    def ask(
        self,
        name: str,
        system: ops.Msg,
        lead: str,
        num_words: int,
        material: list[tuple[str, Node]],
    ) -> Node:
        """Records a call whose user turn is static text, the stock, then the material."""
        task = instructions(f"{lead} the stock named below.", scaled(num_words, self.scale))
        parts: list[str | Node] = [task, "\nStock: ", self.stock]
        for title, node in material:
            parts += [f"\n{title}: ", node]
        messages = [system, ops.Msg("user", parts)]
        return ops.llm(messages, name=name, sampling=self.sampling)

    def reply(self, name: str, history: Node, material: list[tuple[str, Node]]) -> Node:
        """Records the next turn of a debate."""
        lead = "Answer the arguments brought forward so far."
        parts: list[str | Node] = [instructions(lead, scaled(40, self.scale), "the stock")]
        for title, node in material:
            parts += [f"\n{title}: ", node]
        message = ops.Msg("user", parts)
        return ops.llm([message], history=history, name=name, sampling=self.sampling)


def _analyst(agents: _Agents, analyst: str) -> Node:
    num_words, columns = _ANALYSTS[analyst]
    system = agents.system(f"You are a {analyst} analyst.", num_words, f"{analyst} data")
    with ops.scope(f"{analyst}_analyst"):
        extracts = []
        for name in columns:
            title = name.partition("_")[0] if name[-1].isdigit() else name.replace("_", " ")
            lead = f"Extract what matters from the {title} of"
            material = [(title.capitalize(), ops.placeholder(name))]
            extracts.append((title, agents.ask(f"extract_{name}", system, lead, 50, material)))
        notes = [(f"Notes on {title}", node) for title, node in extracts]
        return agents.ask("summary", system, "Summarize your notes on", 75, notes)


def _research(agents: _Agents, summaries: list[Node], num_rounds: int) -> Node:
    reports = _reports(summaries)
    sides = {"bull": (138, "for"), "bear": (144, "against")}
    turns: dict[str, Node] = {}
    for side, (num_words, direction) in sides.items():
        system = agents.system(f"You are a {side} researcher.", num_words, "the outlook")
        lead = f"Argue {direction} buying"
        turns[side] = agents.ask(f"{side}/round_1", system, lead, 60, reports)
    debate = _titled(turns, 1)
    for number in range(2, num_rounds + 1):
        said = _titled(turns, number - 1)
        turns = {
            side: agents.reply(f"{side}/round_{number}", own, said) for side, own in turns.items()
        }
        debate += _titled(turns, number)
    system = agents.system("You manage the research team.", 143, "the debate")
    return agents.ask("research_manager", system, "Judge the debate about", 60, debate)


def _branch(
    agents: _Agents,
    kind: str,
    style: str,
    manager: Node,
    summaries: list[Node],
    num_rounds: int,
) -> Node:
    lead = f"You are a trader who follows a {kind} strategy."
    system = agents.system(lead, _KINDS[kind], f"{kind} trading", style)
    material = [("Research", manager)]
    trader = agents.ask("trader", system, f"Propose a {kind} trade in", 71, material)
    reports = [*_reports(summaries), ("Proposal", trader)]
    turns: dict[str, Node] = {}
    for member, num_words in _RISK.items():
        lead = f"You are the {member} member of the risk team."
        system = agents.system(lead, num_words, "the risk of the trade", style)
        turns[member] = agents.ask(f"{member}/round_1", system, "Discuss a trade in", 85, reports)
    debate = _titled(turns, 1)
    for number in range(2, num_rounds + 1):
        said = _titled(turns, number - 1)
        turns = {
            member: agents.reply(f"{member}/round_{number}", own, said)
            for member, own in turns.items()
        }
        debate += _titled(turns, number)
    system = agents.system("You judge the debate of the risk team.", 140, "the risk debate", style)
    return agents.ask("judge", system, "Decide on the trade in", 37, debate)


def _reports(summaries: list[Node]) -> list[tuple[str, Node]]:
    titles = (f"{analyst.capitalize()} report" for analyst in _ANALYSTS)
    return list(zip(titles, summaries, strict=True))


def _titled(turns: dict[str, Node], number: int) -> list[tuple[str, Node]]:
    return [(f"{member.capitalize()}, round {number}", node) for member, node in turns.items()]
