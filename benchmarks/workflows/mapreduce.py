"""MapReduce: experts answer in parallel, a summarizer decides. Source: Helium, §7."""

from __future__ import annotations

from benchmarks.workflows.text import instructions, multiple_choice, prose
from benchmarks.workflows.workload import Workload, column, scaled
from helium import graphs, ops
from helium.dsl.node import Node
from helium.plan.operators import Sampling

ROLES = (
    "mathematician", "physicist", "physician", "historian", "lawyer", "economist", "psychologist",
    "chemist", "engineer", "philosopher", "biologist", "statistician", "linguist", "geographer",
)  # fmt: skip
NUM_EXPERTS_TATQA = 7
NUM_QUESTIONS_TATQA = 6


def build_mmlu(
    size: int = 200,
    *,
    distinct: bool = False,
    seed: int = 0,
    scale: float = 1.0,
    max_tokens: int = 512,
) -> Workload:
    """Fourteen experts and a summarizer over multiple-choice questions: 15 LLM operators.

    As published, seven roles appear twice each, so 8 of the operators are distinct; with
    ``distinct`` there are fourteen roles.

    Args:
        size: Questions.
        scale: Factor on all lengths of texts.
    """
    sampling = Sampling(max_tokens=max_tokens)
    question = ops.placeholder("question")
    roles = ROLES if distinct else ROLES[:7] * 2
    answers = [
        _expert([question], role, f"expert_{index}", sampling, scale)
        for index, role in enumerate(roles, start=1)
    ]
    summary = _summarizer([question], answers, sampling, scale)
    batch = {
        "question": column(
            size, lambda row: multiple_choice(scaled(85, scale), f"mmlu/{seed}/{row}")
        )
    }
    return Workload("mapreduce-mmlu", graphs.build({"answer": summary}), batch)


def build_tatqa(
    size: int = 100,
    *,
    distinct: bool = False,
    seed: int = 0,
    scale: float = 1.0,
    max_tokens: int = 512,
) -> Workload:
    """Six map-reduces of seven experts over one context: 48 LLM operators, all distinct.

    Args:
        size: Contexts, each with six questions.
        distinct: Changes nothing; the agents are distinct as published.
        scale: Factor on all lengths of texts.
    """
    sampling = Sampling(max_tokens=max_tokens)
    context = ops.placeholder("context")
    summaries = {}
    for number in range(1, NUM_QUESTIONS_TATQA + 1):
        question = ops.placeholder(f"question_{number}")
        lead = instructions("Use the table and the text below.", scaled(12, scale), "the report")
        parts = [lead, "\n", context, "\nQuestion: ", question]
        with ops.scope(f"q{number}"):
            answers = [
                _expert(parts, role, f"expert_{index}", sampling, scale)
                for index, role in enumerate(ROLES[:NUM_EXPERTS_TATQA], start=1)
            ]
            material = ["Context: ", context, "\nQuestion: ", question]
            summaries[f"answer_{number}"] = _summarizer(material, answers, sampling, scale)
    return Workload("mapreduce-tatqa", graphs.build(summaries), tatqa_batch(size, seed, scale))


def tatqa_batch(
    size: int, seed: int, scale: float, num_context_words: int = 375
) -> dict[str, list[str]]:
    """Returns contexts with six questions each."""
    batch = {
        "context": column(
            size, lambda row: prose(scaled(num_context_words, scale), f"tatqa/{seed}/{row}")
        )
    }
    for number in range(1, NUM_QUESTIONS_TATQA + 1):
        key = f"tatqa/{seed}/question_{number}"
        batch[f"question_{number}"] = column(
            size, lambda row, key=key: prose(scaled(22, scale), f"{key}/{row}")
        )
    return batch


def _expert(
    parts: list[str | Node], role: str, name: str, sampling: Sampling, scale: float
) -> Node:
    lead = "You answer exam questions and give reasons for your choice."
    system = instructions(lead, scaled(13, scale), "the question")
    sentence = f"\nAnswer as a {role} would, step by step, and end with your choice."
    messages = [ops.Msg("system", system), ops.Msg("user", [*parts, sentence])]
    return ops.llm(messages, name=name, sampling=sampling)


def _summarizer(
    material: list[str | Node], answers: list[Node], sampling: Sampling, scale: float
) -> Node:
    lead = "You combine the answers of several experts into a final one."
    system = instructions(lead, scaled(13, scale), "the answers")
    task = instructions("Several experts answered the question below.", scaled(32, scale))
    parts: list[str | Node] = [task, "\n", *material]
    for number, answer in enumerate(answers, start=1):
        parts += [f"\nExpert {number}: ", answer]
    messages = [ops.Msg("system", system), ops.Msg("user", parts)]
    return ops.llm(messages, name="summarizer", sampling=sampling)
