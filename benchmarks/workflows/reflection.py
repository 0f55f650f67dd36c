"""Reflection: an analyst answers, two critics object, the analyst revises. Source: Helium, §7."""

from __future__ import annotations

from benchmarks.workflows.mapreduce import NUM_QUESTIONS_TATQA, tatqa_batch
from benchmarks.workflows.text import instructions
from benchmarks.workflows.workload import Workload, scaled
from helium import graphs, ops
from helium.dsl.node import Node
from helium.plan.operators import Sampling


def build_tatqa(
    size: int = 200,
    *,
    distinct: bool = False,
    seed: int = 0,
    scale: float = 1.0,
    max_tokens: int = 512,
) -> Workload:
    """Six reflections of four calls over one context: 24 LLM operators, all distinct.

    Args:
        size: Contexts, each with six questions.
        distinct: Changes nothing; the agents are distinct as published.
        scale: Factor on all lengths of texts.
    """
    context = ops.placeholder("context")
    outputs = {}
    for number in range(1, NUM_QUESTIONS_TATQA + 1):
        question = ops.placeholder(f"question_{number}")
        with ops.scope(f"q{number}"):
            sampling = Sampling(max_tokens=max_tokens)
            outputs[f"answer_{number}"] = _reflect(context, question, sampling, scale)
    batch = tatqa_batch(size, seed, scale, num_context_words=350)
    return Workload("reflection-tatqa", graphs.build(outputs), batch)


def _reflect(context: Node, question: Node, sampling: Sampling, scale: float) -> Node:
    def system(lead: str, num_words: int, topic: str) -> ops.Msg:
        return ops.Msg("system", instructions(lead, scaled(num_words, scale), topic))

    def user(lead: str, num_words: int, *parts: str | Node) -> ops.Msg:
        return ops.Msg("user", [instructions(lead, scaled(num_words, scale), "the task"), *parts])

    material = ("\nContext: ", context, "\nQuestion: ", question)
    analyst = ops.llm(
        [
            system("You are a financial analyst.", 132, "the financial report"),
            user("Answer the question from the report.", 41, *material),
        ],
        name="analyst",
        sampling=sampling,
    )
    extraction = ops.llm(
        [
            system("You check which figures an answer uses.", 75, "the extracted figures"),
            user("Criticize the extraction.", 24, *material, "\nResponse: ", analyst),
        ],
        name="extraction_critic",
        sampling=sampling,
    )
    calculation = ops.llm(
        [
            system("You check how an answer calculates.", 74, "the calculation"),
            user(
                "Criticize the calculation.",
                30,
                *material,
                "\nResponse: ",
                analyst,
                "\nCritique of the extraction: ",
                extraction,
            ),
        ],
        name="calculation_critic",
        sampling=sampling,
    )
    revision = user(
        "Revise your answer in view of both critiques.",
        23,
        "\nExtraction: ",
        extraction,
        "\nCalculation: ",
        calculation,
    )
    return ops.llm([revision], history=analyst, name="revision", sampling=sampling)
