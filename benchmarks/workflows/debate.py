"""Debate: three agents answer, then read each other's answers. Source: Helium, §7."""

from __future__ import annotations

from benchmarks.workflows.mapreduce import NUM_QUESTIONS_TATQA, tatqa_batch
from benchmarks.workflows.text import instructions, multiple_choice
from benchmarks.workflows.workload import Workload, column, scaled
from helium import graphs, ops
from helium.dsl.node import Node
from helium.plan.operators import Sampling

_ROLES = ("a sceptic", "a practitioner", "a theorist")
_NUM_ROUNDS = 2


def build_mmlu(
    size: int = 200,
    *,
    distinct: bool = False,
    seed: int = 0,
    scale: float = 1.0,
    max_tokens: int = 512,
) -> Workload:
    """Three agents, two rounds: 6 LLM operators, all distinct; three answers per question.

    Args:
        size: Questions.
        distinct: Changes nothing; the agents are distinct as published.
        scale: Factor on all lengths of texts.
    """
    question = ops.placeholder("question")
    answers = debate([question], Sampling(max_tokens=max_tokens), scale)
    outputs = {f"answer_{agent}": node for agent, node in enumerate(answers, start=1)}
    batch = {
        "question": column(
            size, lambda row: multiple_choice(scaled(85, scale), f"mmlu/{seed}/{row}")
        )
    }
    return Workload("debate-mmlu", graphs.build(outputs), batch)


def build_tatqa(
    size: int = 100,
    *,
    distinct: bool = False,
    seed: int = 0,
    scale: float = 1.0,
    max_tokens: int = 512,
) -> Workload:
    """Six debates over one context: 36 LLM operators, all distinct.

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
            answers = debate(
                [context, "\nQuestion: ", question], Sampling(max_tokens=max_tokens), scale
            )
        for agent, node in enumerate(answers, start=1):
            outputs[f"answer_{number}_{agent}"] = node
    return Workload("debate-tatqa", graphs.build(outputs), tatqa_batch(size, seed, scale))


def debate(
    parts: list[str | Node], sampling: Sampling, scale: float, num_system_words: int | None = None
) -> list[Node]:
    """Records the debate about ``parts``; returns every agent's last answer.

    Args:
        num_system_words: Of the system prompt, which all agents share; the published 8 by default.
    """
    num_words = scaled(8, scale) if num_system_words is None else num_system_words
    system = instructions("You take part in a debate.", num_words, "the question")
    answers = []
    for agent, role in enumerate(_ROLES, start=1):
        sentence = f"\nAnswer as {role} and defend your answer with reasons."
        messages = [ops.Msg("system", system), ops.Msg("user", [*parts, sentence])]
        answers.append(ops.llm(messages, name=f"agent_{agent}/round_1", sampling=sampling))
    task = instructions("These are the answers of the other agents.", scaled(38, scale), "them")
    for round_number in range(2, _NUM_ROUNDS + 1):
        turns = []
        for agent, own in enumerate(answers, start=1):
            others = [answer for answer in answers if answer is not own]
            content: list[str | Node] = [task]
            for other in others:
                content += ["\nOther answer: ", other]
            name = f"agent_{agent}/round_{round_number}"
            message = ops.Msg("user", content)
            turns.append(ops.llm([message], history=own, name=name, sampling=sampling))
        answers = turns
    return answers
