"""Computes a plan's static prefixes before the calls that start with them, and leases them.

A prefix is prewarmed by a request of the engine's own: its prompt is the prefix and its one output
token is thrown away, because no client knows the request. So it works wherever a plan can be
registered, is scheduled like ordinary traffic, and gives its blocks back as any request does.

Source: Helium, §4 (proactive caching).
"""

from __future__ import annotations

import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.lora.request import LoRARequest
from vllm.v1.request import Request, RequestStatus

from helium.protocol import EnginePlan, PlanOperator
from vllm_helium.config import HeliumConfig
from vllm_helium.prefix_cache.static_prefixes import StaticPrefix, static_prefixes


class Prewarmer:
    """The prewarm requests of one scheduler; does nothing where they would not pay or not be safe.

    Attributes:
        num_requests: Prewarm requests made.
        num_tokens: Their prompt tokens, those found in the cache included.
        clock: Seconds on the clock of ``Request.arrival_time``.
    """

    def __init__(self, scheduler: Any, config: HeliumConfig, vllm_config: VllmConfig) -> None:
        self._scheduler = scheduler
        self._config = config
        model = vllm_config.model_config
        names = model.served_model_name
        self._base_models = {None, model.model, *([names] if isinstance(names, str) else names)}
        self._vocab_size = model.get_vocab_size()
        self._max_tokens = model.max_model_len - 1
        self._is_on = (
            config.prewarm
            and scheduler.kv_cache_manager.has_tree
            and model.runner_type == "generate"
            # Their placeholder tokens mean nothing without the inputs they stand for.
            and not model.is_multimodal_model
            # Such engines step together; one must not start by itself.
            and vllm_config.parallel_config.data_parallel_size == 1
        )
        self._ids = (f"helium-prewarm-{number}" for number in itertools.count())
        self._under_way: dict[str, str] = {}
        self._adapters: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self.num_requests = self.num_tokens = 0
        self.clock: Callable[[], float] = time.time

    def plan_registered(self, digest: str, plan: EnginePlan) -> None:
        """Prewarms what the plan's calls to the engine's own model start with."""
        if not self._is_on or digest in self._live():
            return
        self._prewarm(digest, plan, lambda o: o.model in self._base_models, None)

    def adapter_used(self, digest: str, plan: EnginePlan, request: Request) -> None:
        """Prewarms an adapter's prefixes when its first call comes: only calls bring adapters."""
        adapter = request.lora_request
        if not self._is_on or adapter is None or request.cache_salt != plan.cache_salt:
            return
        key = (digest, adapter.lora_name, adapter.lora_path)
        if key in self._adapters:
            return
        self._adapters[key] = None
        if len(self._adapters) > self._config.max_runs:
            self._adapters.popitem(last=False)
        self._prewarm(digest, plan, lambda o: o.model == adapter.lora_name, adapter)

    def plan_dropped(self, digest: str) -> None:
        """Gives up prewarm requests of a plan that is gone."""
        for request_id, owner in list(self._live_requests().items()):
            if owner == digest:
                self._scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        for key in [key for key in self._adapters if key[0] == digest]:
            del self._adapters[key]

    def describe(self) -> dict[str, Any]:
        """Counts for the status report."""
        return {
            "is_on": self._is_on,
            "num_requests": self.num_requests,
            "num_tokens": self.num_tokens,
            "num_under_way": len(self._live_requests()),
        }

    def _live_requests(self) -> dict[str, str]:
        """Prewarm requests that have not finished, with the digests of their plans."""
        known = self._scheduler.requests
        self._under_way = {name: owner for name, owner in self._under_way.items() if name in known}
        return self._under_way

    def _live(self) -> set[str]:
        return set(self._live_requests().values())

    def _prewarm(
        self,
        digest: str,
        plan: EnginePlan,
        includes: Callable[[PlanOperator], bool],
        adapter: LoRARequest | None,
    ) -> None:
        manager = self._scheduler.kv_cache_manager
        prefixes = static_prefixes(
            plan,
            includes,
            min_tokens=self._config.prewarm_min_tokens,
            max_tokens=self._max_tokens,
            max_total_tokens=manager.num_lease_tokens,
        )
        for prefix in prefixes:
            # A plan is a client's word; a token the model does not have would stop the engine.
            if max(prefix.token_ids) >= self._vocab_size:
                continue
            request = self._request(prefix, plan.cache_salt, adapter)
            if manager.lease_template(request, digest, prefix, self._config.lease_s):
                self._under_way[request.request_id] = digest
                self.num_requests += 1
                self.num_tokens += len(prefix.token_ids)
                self._scheduler.add_request(request)

    def _request(
        self, prefix: StaticPrefix, cache_salt: str | None, adapter: LoRARequest | None
    ) -> Request:
        return Request(
            request_id=next(self._ids),
            prompt_token_ids=prefix.token_ids,
            sampling_params=SamplingParams(
                max_tokens=1, temperature=0.0, ignore_eos=True, detokenize=False
            ),
            pooling_params=None,
            arrival_time=self.clock(),
            lora_request=adapter,
            cache_salt=cache_salt,
        )
