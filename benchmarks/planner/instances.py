"""Small workflows whose optimal schedule can be proven, after the paper's App. B.

Shapes and lengths follow the paper's workflows, cut down to two to four agents and rows; texts are
filler words, since only their lengths and where they are shared matter to a schedule.

Source: Helium, §7 and App. B (7 instances; 8,192 tokens of KV).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from helium.cost import Estimates, Profile, TokenStepModel, operator_signatures
from helium.plan.compiled_plan import CompiledPlan, bind
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Input, Llm, Message, Operator, Output, Reference
from helium.plan.text import text
from helium.planner.lowering import Lowering
from helium.planner.problem import Problem
from helium.templates import WordTokenizer

MODEL = TokenStepModel(kv_capacity_tokens=8_192)


@dataclass(frozen=True)
class Instance:
    """A workflow with the expected output length of every LLM operator.

    Attributes:
        column_words: Words per value of every column.
        output_tokens: Per LLM operator.
    """

    name: str
    operators: tuple[Operator, ...]
    column_words: Mapping[str, int]
    output_tokens: Mapping[str, int]
    num_rows: int
    num_engines: int = 1

    def compile(self) -> tuple[CompiledPlan, Profile]:
        """Returns the bound plan, and a profile that holds the output lengths."""
        plan = LogicalPlan(self.operators)
        plan.validate()
        batch = {
            column: [_words(f"{column}{row}", count) for row in range(self.num_rows)]
            for column, count in self.column_words.items()
        }
        profile = Profile()
        signatures = operator_signatures(plan)
        for operator, num_tokens in self.output_tokens.items():
            profile.observe_output(signatures[operator], num_tokens)
        return bind(plan, batch), profile

    def problem(self) -> Problem:
        """Returns the call-by-call scheduling problem under the paper's model."""
        compiled, profile = self.compile()
        tokenizer = WordTokenizer()
        lowering = Lowering(compiled, tokenizer, Estimates(compiled, tokenizer, profile))
        return lowering.call_problem(MODEL, self.num_engines)


def map_reduce(agents: int, rows: int, engines: int = 1) -> Instance:
    """Experts answer the same question, a summarizer reads all answers."""
    question = Reference("question")
    experts = [f"expert{i}" for i in range(agents)]
    operators: list[Operator] = [Input("question", column="question")]
    for expert in experts:
        role = _words(expert, 40)
        operators.append(
            _llm(expert, "system", 13, "Question:", question, f"\n\nYour role: {role}")
        )
    answers = [part for expert in experts for part in ("\n\nAnswer: ", Reference(expert))]
    operators.append(_llm("summarize", "summary", 13, "Question:", question, *answers))
    outputs = {**dict.fromkeys(experts, 294), "summarize": 168}
    return _instance("MapReduce", operators, {"question": 110}, outputs, agents, rows, engines)


def debate(agents: int, rows: int, engines: int = 1) -> Instance:
    """Two rounds; in the second, each agent continues with the others' answers."""
    operators: list[Operator] = [Input("question", column="question")]
    firsts = [f"agent{i}" for i in range(agents)]
    for first in firsts:
        role = _words(first, 30)
        operators.append(
            _llm(first, "system", 8, "Question:", Reference("question"), f"\n\nRole: {role}")
        )
    for first in firsts:
        others = [
            part for o in firsts if o != first for part in ("\n\nAnother says: ", Reference(o))
        ]
        message = Message("user", text(*others, "\n\n" + _words("revise", 38)))
        operators.append(Llm(f"{first}_again", messages=(message,), history=first))
    outputs = {**dict.fromkeys(firsts, 298), **{f"{first}_again": 360 for first in firsts}}
    return _instance("Debate", operators, {"question": 90}, outputs, agents, rows, engines)


def reflection(agents: int, rows: int, engines: int = 1) -> Instance:
    """An analyst, one to three critics in turn, and the analyst again in its conversation."""
    context, question = Reference("context"), Reference("question")
    operators: list[Operator] = [
        Input("context", column="context"),
        Input("question", column="question"),
        _llm("analyst", "analyst", 132, "Context:", context, "\n\nQuestion:", question),
    ]
    critics = [f"critic{i}" for i in range(agents - 1)]
    known: list[str | Reference] = ["\n\nResponse: ", Reference("analyst")]
    for critic in critics:
        operators.append(
            _llm(critic, critic, 75, "Context:", context, "\n\nQuestion:", question, *known)
        )
        known += ["\n\nCritique: ", Reference(critic)]
    final = Message("user", text("Consider the critique. ", *known[2:]))
    operators.append(Llm("final", messages=(final,), history="analyst"))
    lengths = dict(zip(critics, (258, 511, 300), strict=False))
    outputs = {"analyst": 120, **lengths, "final": 139}
    columns = {"context": 420, "question": 30}
    return _instance("Reflection", operators, columns, outputs, agents, rows, engines)


def iterative(agents: int, rows: int, engines: int = 1) -> Instance:
    """A summary refined chunk by chunk."""
    operators: list[Operator] = [Input(f"chunk{i}", column=f"chunk{i}") for i in range(agents)]
    operators.append(_llm("step0", "refine", 5, _words("begin", 132), Reference("chunk0")))
    for i in range(1, agents):
        operators.append(
            _llm(
                f"step{i}", "refine", 5, _words("refine", 121), Reference(f"step{i - 1}"),
                "\n\nNext chunk: ", Reference(f"chunk{i}"),
            )
        )  # fmt: skip
    outputs = {f"step{i}": 216 + 60 * i for i in range(agents)}
    columns = {f"chunk{i}": 700 for i in range(agents)}
    return _instance("Iterative", operators, columns, outputs, agents, rows, engines)


def parallel(agents: int, rows: int, engines: int = 1) -> Instance:
    """Experts read two chunks each, summarize theirs; a writer reads the summaries."""
    operators: list[Operator] = [
        Input("item", column="item"),
        Input("chunk0", column="chunk0"),
        Input("chunk1", column="chunk1"),
    ]
    outputs: dict[str, int] = {}
    summaries: list[str | Reference] = []
    for agent in range(agents):
        system = f"expert{agent}"
        extracts: list[str | Reference] = []
        for chunk in range(2):
            name = f"extract{agent}_{chunk}"
            operators.append(
                _llm(
                    name, system, 160, _words("extract", 101), Reference("item"),
                    "\n\nChunk: ", Reference(f"chunk{chunk}"),
                )
            )  # fmt: skip
            outputs[name] = 200
            extracts += ["\n\nExtract: ", Reference(name)]
        name = f"summary{agent}"
        operators.append(_llm(name, system, 160, _words("summarize", 110), *extracts))
        outputs[name] = 256
        summaries += ["\n\nSummary: ", Reference(name)]
    operators.append(_llm("writer", "writer", 186, _words("write", 142), *summaries))
    outputs["writer"] = 256
    columns = {"item": 20, "chunk0": 500, "chunk1": 500}
    return _instance("Parallel", operators, columns, outputs, agents, rows, engines)


def trading(agents: int, rows: int, engines: int = 1) -> Instance:
    """Two analysts, a manager, and traders that a risk manager judges, in little."""
    operators: list[Operator] = [
        Input("stock", column="stock"),
        Input("news", column="news"),
        Input("prices", column="prices"),
    ]
    stock = Reference("stock")
    outputs: dict[str, int] = {}
    reports: list[str | Reference] = []
    for source in ("news", "prices"):
        name = f"{source}_analyst"
        operators.append(_llm(name, name, 150, "Stock:", stock, "\n\nData: ", Reference(source)))
        outputs[name] = 256
        reports += ["\n\nReport: ", Reference(name)]
    operators.append(_llm("manager", "manager", 143, "Stock:", stock, *reports))
    outputs["manager"] = 200
    verdicts: list[str | Reference] = []
    for agent in range(agents):
        trader, risk = f"trader{agent}", f"risk{agent}"
        role = _words(f"kind{agent % 2}", 60)
        operators.append(
            _llm(trader, trader, 120, "Stock:", stock, "\n\nPlan: ", Reference("manager"), role)
        )
        operators.append(
            _llm(risk, "risk", 97, "Stock:", stock, *reports, "\n\nTrade: ", Reference(trader))
        )
        outputs[trader], outputs[risk] = 180, 150
        verdicts += ["\n\nVerdict: ", Reference(risk)]
    operators.append(_llm("fund", "fund", 128, "Stock:", stock, *verdicts))
    outputs["fund"] = 200
    columns = {"stock": 3, "news": 600, "prices": 900}
    return _instance("Trading-mini", operators, columns, outputs, agents, rows, engines)


def _instance(
    name: str,
    operators: list[Operator],
    column_words: Mapping[str, int],
    output_tokens: Mapping[str, int],
    agents: int,
    rows: int,
    engines: int,
) -> Instance:
    last = operators[-1].name
    ends = [o.name for o in operators if isinstance(o, Llm) and o.name.endswith("_again")] or [last]
    outputs = [Output(f"out_{end}", source=end) for end in ends]
    title = f"{name} {agents}x{rows}" + (f" on {engines}" if engines > 1 else "")
    return Instance(title, (*operators, *outputs), column_words, output_tokens, rows, engines)


def _llm(name: str, system: str, num_words: int, *user: str | Reference) -> Llm:
    spaced = [
        f"{part} " if isinstance(part, str) and not part[-1].isspace() else part for part in user
    ]
    return Llm(
        name,
        messages=(
            Message("system", text(_words(system, num_words))),
            Message("user", text(*spaced)),
        ),
    )


def _words(stem: str, count: int) -> str:
    return " ".join(f"{stem}-{i}" for i in range(count))


INSTANCES = (
    map_reduce(2, 3), map_reduce(3, 3), map_reduce(4, 2), map_reduce(4, 4),
    debate(2, 3), debate(3, 2), reflection(3, 2), reflection(4, 3),
    iterative(3, 3), iterative(4, 4), parallel(2, 2), parallel(3, 2),
    trading(2, 2), trading(3, 2), map_reduce(3, 4, engines=2), trading(2, 2, engines=2),
)  # fmt: skip
