"""Seeded requests whose prompts are computed in chunks, on CPU engines.

Upstream samples a token after every chunk of a prompt and drops it, and then turns the request's
random generator back by an offset. Generators of the CPU have no offset, so the first such request
ends the engine. Here a dropped sample is drawn without the request's generator, which is therefore
where it was, and the tokens of a seed do not depend on how its prompt was cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker


class SeededCPUModelRunner(CPUModelRunner):
    """Draws no sample that is dropped from a seeded generator."""

    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        with self._only_kept_samples_seeded():
            return super()._sample(*args, **kwargs)

    def _bookkeeping_sync(self, *args: Any, **kwargs: Any) -> Any:
        with self._only_kept_samples_seeded():
            return super()._bookkeeping_sync(*args, **kwargs)

    @contextmanager
    def _only_kept_samples_seeded(self) -> Iterator[None]:
        generators = self.input_batch.generators
        dropped = np.flatnonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])
        set_aside = {i: generators.pop(i) for i in dropped.tolist() if i in generators}
        try:
            yield
        finally:
            generators.update(set_aside)


class SeededCPUWorker(CPUWorker):
    """Upstream's worker with our runner."""

    def init_device(self) -> None:
        super().init_device()
        # Upstream names the runner's class inside this method; the subclass adds no state to it.
        if type(self.model_runner) is CPUModelRunner:
            self.model_runner.__class__ = SeededCPUModelRunner
