"""What requests under way have said so far, read where upstream's front end keeps it."""

from __future__ import annotations

from typing import Any


def texts_so_far(engine_client: Any, request_id: str) -> dict[int, str]:
    """Returns a request's outputs so far by index, without what may yet become a stop string.

    The front end detokenizes every token as it comes, also of requests that want their output in
    one piece at the end. So looking changes nothing about a request, and costs it nothing.

    Args:
        engine_client: An ``AsyncLLM``; to be asked on its event loop.
        request_id: As given to ``generate``; one that is over or unknown has no outputs.
    """
    processor = engine_client.output_processor
    texts = {}
    for internal_id in processor.external_req_ids.get(request_id, ()):
        state = processor.request_states.get(internal_id)
        if state is not None and state.detokenizer is not None:
            text = state.detokenizer.get_next_output_text(finished=False, delta=False)
            if text:
                texts[state.request_index] = text
    return texts
