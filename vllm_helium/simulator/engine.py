"""One engine in virtual time: vLLM's scheduler and KV manager, and a step that only takes time.

As in vLLM's engine core, up to ``max_concurrent_batches`` steps are under way: with asynchronous
scheduling the next step is scheduled while the one before still runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vllm import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from helium.cost import RooflineModel
from helium.errors import EngineError
from vllm_helium.simulator.access_trace import AccessTrace
from vllm_helium.simulator.decode_steps import shorten_decode_steps
from vllm_helium.simulator.engine_options import EngineOptions
from vllm_helium.simulator.evictions import count_evictions
from vllm_helium.simulator.figures import CallRecord, EngineFigures
from vllm_helium.simulator.host_link import HostLink
from vllm_helium.simulator.virtual_time import VirtualClock

_ARRIVAL_GAP_S = 1e-9
"""Calls of one moment arrive one after the other, as on any server; queues order by it."""

Finished = Callable[[CallRecord], None]
"""Told of a finished call, at the moment it finishes."""


@dataclass(slots=True)
class _Call:
    request: Request
    output_token_ids: Sequence[int]
    record: CallRecord
    finished: Finished


class _Work(NamedTuple):
    """What a step computes: the arguments of ``RooflineModel.step_ms``."""

    prefill_tokens: int
    prefill_context_tokens: float
    decode_sequences: int
    decode_context_tokens: int


class _Step(NamedTuple):
    scheduled: SchedulerOutput
    output: ModelRunnerOutput
    end_s: float


class SimulatedEngine:
    """Steps a scheduler; ``calls`` holds the records of finished calls in order of their end.

    ``virtual_time.run`` drives it. Where it is stepped by hand, a scheduler that asks the time
    (this fork's, for the age of planned calls) needs ``clock.as_time()`` around the steps.

    Args:
        options: What the engine is built from.
        cost: Device, model and the time of a step.
        clock: Shared by all engines of a simulation.
        trace: Records every access to the cache, for the offline bound.
        has_short_steps: Leaves out work of decode steps that changes nothing; off where the
            scheduler's own time is measured.

    Raises:
        ConfigError: The KV cache holds nothing, or the options do not fit each other.
    """

    def __init__(
        self,
        options: EngineOptions,
        cost: RooflineModel,
        clock: VirtualClock,
        *,
        trace: AccessTrace | None = None,
        has_short_steps: bool = True,
    ) -> None:
        self.cost = cost
        self.num_blocks = options.blocks_on(cost)
        self.figures = EngineFigures()
        self.calls: list[CallRecord] = []
        self._max_model_len = options.max_model_len
        self._clock = clock
        self._trace = trace
        config = options.vllm_config(cost.shape, self.num_blocks)
        self._depth = config.max_concurrent_batches
        scheduler_cls = config.scheduler_config.get_scheduler_cls()
        self.scheduler: Any = scheduler_cls(
            vllm_config=config,
            kv_cache_config=options.kv_cache_config(cost.shape, self.num_blocks),
            structured_output_manager=StructuredOutputManager(config),
            block_size=options.block_size,
            hash_block_size=options.block_size,
        )
        self._hasher = _block_hasher(self.scheduler, config, options.block_size)
        if hasattr(self.scheduler.kv_cache_manager, "clock"):
            self.scheduler.kv_cache_manager.clock = clock.now
        if hasattr(self.scheduler, "prewarmer"):
            self.scheduler.prewarmer.clock = clock.now
        self._num_evictions = count_evictions(self.scheduler)
        if has_short_steps:
            shorten_decode_steps(self.scheduler)
        block_bytes = cost.shape.kv_bytes_per_token * options.block_size
        self.link = HostLink(
            cost.device.link_bandwidth,
            block_bytes,
            cost.device.bandwidth * cost.device.bandwidth_ratio,
        )
        self._under_way: dict[str, _Call] = {}
        self._steps: deque[_Step] = deque()
        self._device_free_s = 0.0
        self._num_added = 0

    def add(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        output_token_ids: Sequence[int],
        params: SamplingParams,
        finished: Finished,
        cache_salt: str | None = None,
    ) -> None:
        """Adds a call that will be answered with the given tokens.

        Args:
            prompt_token_ids: int32 [num_tokens].
            output_token_ids: The whole answer; the engine stops where ``params`` says.

        Raises:
            EngineError: The sequence is too long for the engine.
        """
        limit = min(self._max_model_len, (self.num_blocks - 1) * self.scheduler.block_size)
        longest = len(prompt_token_ids) + len(output_token_ids)
        if longest > limit or not prompt_token_ids:
            raise EngineError(
                f"simulated engine: {len(prompt_token_ids)} prompt and {len(output_token_ids)} "
                f"output tokens; a sequence has 1 to {limit} tokens, raise max_model_len or "
                "num_blocks"
            )
        now = self._clock.now()
        self._num_added += 1
        request = Request(
            request_id=request_id,
            prompt_token_ids=prompt_token_ids,
            sampling_params=params,
            pooling_params=None,
            arrival_time=now + self._num_added * _ARRIVAL_GAP_S,
            cache_salt=cache_salt,
            block_hasher=self._hasher,
        )
        record = CallRecord(request_id, now, len(prompt_token_ids))
        self._under_way[request_id] = _Call(request, output_token_ids, record, finished)
        self.scheduler.add_request(request)

    def abort(self, request_id: str) -> None:
        """Drops a call; nobody is told."""
        if self._under_way.pop(request_id, None) is not None:
            self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)

    def prepare(self) -> None:
        """Schedules steps as long as there is work and room for one more under way.

        Raises:
            EngineError: The scheduler holds calls back although nothing is under way.
        """
        while len(self._steps) < self._depth and self.scheduler.has_requests():
            scheduled = self.scheduler.schedule()
            is_empty = not scheduled.total_num_scheduled_tokens
            if is_empty and not self._steps and (report_s := self.link.next_report_s()):
                # All that waits, waits for a transfer; it is reported with an empty step.
                self._device_free_s = max(self._device_free_s, report_s)
            elif is_empty and not self._steps and self.scheduler.has_unfinished_requests():
                self.scheduler.update_from_output(scheduled, _output_of([], []))
                scheduled = self.scheduler.schedule()
                is_empty = not scheduled.total_num_scheduled_tokens
                if is_empty:
                    raise EngineError(
                        f"simulated engine: {type(self.scheduler).__name__} schedules nothing for "
                        f"{self.scheduler.get_request_counts()[1]} waiting calls while nothing is "
                        "under way"
                    )
            self._start(scheduled)
            if is_empty:
                return  # whatever waits, waits for a step that is under way

    def next_event_s(self) -> float | None:
        """Returns when the oldest step ends."""
        return self._steps[0].end_s if self._steps else None

    def happen(self) -> None:
        """Ends the oldest step: its tokens arrive and calls finish."""
        step = self._steps.popleft()
        assert step.end_s == self._clock.now(), f"{step.end_s} s is not {self._clock.now()} s"
        step.output.kv_connector_output = self.link.report(step.end_s)
        results = self.scheduler.update_from_output(step.scheduled, step.output)
        for result in results.values():
            for output in result.outputs:
                if output.prefill_stats is not None or output.finish_reason is not None:
                    self._deliver(output)

    def reset_prefix_cache(self) -> None:
        """Forgets everything cached.

        Raises:
            EngineError: Calls are under way.
        """
        self.prepare()
        while self._steps:  # steps without tokens, which only report what has finished
            self._clock.advance_to(max(self._clock.now(), self._steps[0].end_s))
            self.happen()
        if not self.scheduler.reset_prefix_cache():
            raise EngineError("simulated engine: the cache is in use; let the calls finish first")

    def measured(self) -> EngineFigures:
        """Returns the figures so far."""
        self.figures.num_evictions = self._num_evictions()
        return self.figures

    def _start(self, scheduled: SchedulerOutput) -> None:
        work, output = self._execute(scheduled)
        if self._trace is not None:
            for new in scheduled.scheduled_new_reqs:
                request = self.scheduler.requests[new.req_id]
                self._trace.admit(request.prompt_token_ids, request.cache_salt)
        step_s = 0.0
        if scheduled.total_num_scheduled_tokens:
            step_s = self.cost.step_ms(*work) / 1e3
            self.figures.num_steps += 1
            self.figures.num_prefill_tokens += work.prefill_tokens
            self.figures.num_decode_tokens += work.decode_sequences
            self.figures.busy_s += step_s
        start_s = max(self._device_free_s, self._clock.now())
        start_s = self.link.start_step(scheduled.kv_connector_metadata, start_s)
        self._device_free_s = start_s + step_s
        self._steps.append(_Step(scheduled, output, self._device_free_s))

    def _execute(self, scheduled: SchedulerOutput) -> tuple[_Work, ModelRunnerOutput]:
        """Samples for every request whose tokens are all computed, by position in its answer."""
        request_ids: list[str] = []
        sampled: list[list[int]] = []
        prefill = context = decode = decode_context = 0
        for request_id, num_tokens in scheduled.num_scheduled_tokens.items():
            call = self._under_way.get(request_id)
            request = self.scheduler.requests[request_id]
            computed = request.num_computed_tokens  # this step's included
            position = computed - request.num_prompt_tokens
            if num_tokens == 1 and position > 0:
                decode += 1
                decode_context += computed
            else:
                prefill += num_tokens
                # Each token attends to those before it: on average to the middle of the chunk.
                context += num_tokens * (2 * computed - num_tokens)
            request_ids.append(request_id)
            if request.is_prefill_chunk:
                sampled.append([])
            else:
                # A request of the scheduler's own asks for no answer.
                answer = call.output_token_ids if call is not None else ()
                # A step scheduled before the answer's end was known samples one token too many.
                sampled.append([answer[position] if position < len(answer) else 0])
        mean_context = context / (2 * prefill) if prefill else 0.0
        work = _Work(prefill, mean_context, decode, decode_context)
        return work, _output_of(request_ids, sampled)

    def _deliver(self, output: Any) -> None:
        call = self._under_way.get(output.request_id)
        if call is None:
            return
        record, request, now = call.record, call.request, self._clock.now()
        if output.prefill_stats is not None:
            record.first_token_s = now
            record.num_cached_tokens = output.prefill_stats.num_cached_tokens
            self.figures.num_prompt_tokens += record.num_prompt_tokens
            self.figures.num_cached_tokens += record.num_cached_tokens
        if output.finish_reason is None:
            return
        del self._under_way[output.request_id]
        record.finish_s = now
        record.num_output_tokens = request.num_output_tokens
        record.num_preemptions = request.num_preemptions
        self.figures.num_calls += 1
        self.figures.num_output_tokens += record.num_output_tokens
        self.figures.num_preemptions += record.num_preemptions
        self.calls.append(record)
        if self._trace is not None:
            outputs = list(request.output_token_ids)
            self._trace.finish(request.prompt_token_ids, outputs, request.cache_salt)
        call.finished(record)


def _output_of(request_ids: list[str], sampled: list[list[int]]) -> ModelRunnerOutput:
    indices = {request_id: index for index, request_id in enumerate(request_ids)}
    return ModelRunnerOutput(request_ids, indices, sampled)


def _block_hasher(scheduler: Any, config: Any, block_size: int) -> Callable[[Request], Any] | None:
    """Returns vLLM's hasher, unless caching is off or the manager's index needs no hashes."""
    cache_config = config.cache_config
    needs_hashes = getattr(scheduler.kv_cache_manager, "needs_block_hashes", True)
    if not cache_config.enable_prefix_caching or not needs_hashes:
        return None
    hash_function = get_hash_fn_by_name(cache_config.prefix_caching_hash_algo)
    init_none_hash(hash_function)
    return get_request_block_hasher(block_size, hash_function)
