"""Workflows for the tests of the command."""

from helium import function, graphs, ops, workflow
from helium.plan.operators import Sampling


@function(name="cli_test.upper")
def upper(text: str) -> str:
    return text.upper()


@workflow
def review(question, tone):
    draft = ops.llm([ops.Msg("user", [tone, ": ", question])], name="draft")
    return {"final": ops.llm([ops.Msg("user", upper(draft))], name="final")}


graph = review.build()
plan = graph.plan
seeded = Sampling(n=2, stop=("x",), temperature=0.5, seed=3)
completion = graphs.build({"text": ops.llm(prompt=[ops.placeholder("question")], sampling=seeded)})
not_a_workflow = 3
