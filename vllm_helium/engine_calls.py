"""A runtime's call as an engine request, and the engine's output as its answer."""

from __future__ import annotations

from typing import Any

import msgspec
from vllm import SamplingParams
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

from helium.errors import EngineError
from helium.plan.calls import Call
from helium.plan.operators import Sampling
from helium.runtime.backend import EngineUnavailable, ModelAnswer, ModelCall, reported
from vllm_helium.request import write_context


def render(call: Call, tokenizer: Any) -> list[int]:
    """Returns the prompt's token ids, int32 [num_tokens], through the model's chat template."""
    if call.prompt is not None:
        return list(tokenizer.encode(call.prompt))
    messages = [{"role": role, "content": content} for role, content in call.messages]
    return list(
        tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    )


def sampling_params(sampling: Sampling) -> SamplingParams:
    """Translates an operator's sampling; the whole answer comes in one output."""
    values = msgspec.structs.asdict(sampling)
    structured = values.pop("structured")
    values["stop"] = list(values["stop"])
    return SamplingParams(
        **values,
        structured_outputs=StructuredOutputsParams(**structured) if structured else None,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def request_params(request: ModelCall, *, with_context: bool) -> SamplingParams:
    """Returns the call's sampling parameters, carrying its context where the engine reads it."""
    params = sampling_params(request.call.sampling)
    if with_context and request.context is not None:
        params.extra_args = {}
        write_context(params.extra_args, request.context)
    return params


def check_model(call: Call, served: str | list[str] | None) -> None:
    """Refuses a call to a model this engine does not serve.

    Raises:
        EngineError: Names both.
    """
    names = [served] if isinstance(served, str) else list(served or ())
    if call.model is not None and call.model not in names:
        raise EngineError(f"this engine serves {names}, not {call.model!r}")


def answer_of(output: RequestOutput) -> ModelAnswer:
    """Turns a finished output into an answer.

    Raises:
        EngineUnavailable: The engine gave the call up though nobody here asked it to: it shuts
            down, perhaps because another rank has died, or makes room for new weights.
        EngineError: The engine ended the call before it was done.
    """
    reasons = [choice.finish_reason for choice in output.outputs]
    if "error" in reasons:
        raise EngineError(f"the engine ended the call early: {reasons}")
    if "abort" in reasons:
        raise EngineUnavailable(f"the engine gave the call up: {reasons}")
    queue_ms, misses = reported(getattr(output, "helium", None))
    return ModelAnswer(
        texts=tuple(choice.text for choice in output.outputs),
        num_prompt_tokens=len(output.prompt_token_ids or ()),
        num_cached_tokens=output.num_cached_tokens or 0,
        num_output_tokens=sum(len(choice.token_ids) for choice in output.outputs),
        queue_ms=queue_ms or _queue_ms(output.metrics),
        misses=misses,
    )


def _queue_ms(metrics: Any) -> float:
    """Returns the time in the queue by upstream's statistics, 0 where they are off."""
    queued, scheduled = (getattr(metrics, name, 0.0) for name in ("queued_ts", "scheduled_ts"))
    return max(0.0, 1e3 * (scheduled - queued)) if queued and scheduled else 0.0
