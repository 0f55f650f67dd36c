"""Engines inside the pytest process that leave nothing behind.

Upstream keeps one parallel state and one frozen copy of its environment variables per process. An
engine that is merely dropped gives them back when the garbage collector finds it, and by then they
may be another engine's. Here every engine is shut down where its test ends; of engines open at the
same time, all are shut down when the last of them ends, since they share that state.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import FAST_ENGINE_ARGUMENTS, FAST_ENGINE_ENVIRONMENT

_ended: list[Any] = []
"""Engine core clients that are done with but share the process with open ones."""
_num_open = 0


@contextlib.contextmanager
def in_process_llm(model: str | Path, **options: Any) -> Iterator[Any]:
    """Gives an ``LLM`` whose engine runs in this process, and shuts it down.

    Args:
        options: Arguments of ``LLM`` over ``FAST_ENGINE_ARGUMENTS``.
    """
    global _num_open
    with pytest.MonkeyPatch.context() as environment:
        for name, value in FAST_ENGINE_ENVIRONMENT.items():
            environment.setenv(name, value)
        from vllm import LLM

        if not _num_open:
            _clean_up()
        _num_open += 1
        llm = None
        try:
            llm = LLM(str(model), **(FAST_ENGINE_ARGUMENTS | options))
            yield llm
        finally:
            _num_open -= 1
            if llm is not None:
                _ended.append(llm.llm_engine.engine_core)
            llm = None
            if not _num_open:
                while _ended:
                    _ended.pop().shutdown()
                _clean_up()


def _clean_up() -> None:
    """Collects engines somebody dropped, and clears what upstream keeps per process."""
    from vllm.distributed import cleanup_dist_env_and_memory

    gc.unfreeze()  # an engine freezes the heap, and with it whatever it was started beside
    gc.collect()
    cleanup_dist_env_and_memory()
