"""What the prefix index needs to know about a request: its tokens, namespace, labels and tags."""

from __future__ import annotations

from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys
from vllm.v1.request import Request

from vllm_helium.prefix_cache.index import Match, TokenBuffer
from vllm_helium.prefix_cache.plan_uses import (
    NO_PLAN,
    PlanUses,
    PlanUsesRegistry,
    Segments,
)
from vllm_helium.prefix_cache.template_leases import TemplateLease

_ATTRIBUTE = "helium_path"
PREWARM_ATTRIBUTE = "helium_prewarm"
"""On a request that only computes a prefix: its ``TemplateLease`` and ``StaticPrefix``."""


class RequestPath:
    """A request's path through the prefix index; made on first use, kept on the request."""

    __slots__ = (
        "_segments",
        "_uses",
        "is_prewarm",
        "labels",
        "match",
        "namespace",
        "num_static_tokens",
        "num_waits",
        "tokens",
    )

    def __init__(self, request: Request, block_size: int, plans: PlanUsesRegistry) -> None:
        self.tokens = TokenBuffer()
        self.namespace = namespace_of(request)
        self.labels = _labels(request, block_size)
        self.match: Match | None = None
        self.num_waits = 0  # steps in which the host tier held the request back
        self._segments: Segments = []
        self.num_static_tokens = 0
        self._uses: PlanUses | TemplateLease | None
        prewarm = getattr(request, PREWARM_ATTRIBUTE, None)
        self.is_prewarm = prewarm is not None
        if prewarm is not None:
            self._uses, prefix = prewarm
            self._segments = self._uses.segments(prefix)
            self.num_static_tokens = request.num_tokens
            return
        context = getattr(request, "helium", None)
        self._uses = uses = plans.run(context)
        if uses is not None:
            self._segments, self.num_static_tokens = uses.segments(context)

    @property
    def plan(self) -> int:
        return NO_PLAN if self._uses is None else self._uses.plan_id

    @property
    def segments(self) -> Segments:
        """Tags of the request's tokens; none once its run has ended, for its tags went with it."""
        if self._uses is None or self._uses.is_closed:
            return []
        return self._segments

    def has_label(self, block_index: int) -> bool:
        return any(index == block_index for index, _ in self.labels)


def request_path(request: Request, block_size: int, plans: PlanUsesRegistry) -> RequestPath:
    """The request's path with its tokens up to date; O(new tokens)."""
    path: RequestPath | None = getattr(request, _ATTRIBUTE, None)
    if path is None:
        path = RequestPath(request, block_size, plans)
        setattr(request, _ATTRIBUTE, path)
    elif request.resumable or request.streaming_queue is not None:
        # A streaming session replaces tokens it had, which a comparison of lengths cannot see.
        path.tokens.clear()
        path.labels = _labels(request, block_size)
    path.tokens.sync(request._all_token_ids)
    return path


def known_path(request: Request) -> RequestPath | None:
    """The request's path as it was last used, or ``None`` where it was never used."""
    return getattr(request, _ATTRIBUTE, None)


def is_prewarm(request: Request) -> bool:
    """Whether a request is the engine's own and only computes a prefix."""
    return hasattr(request, PREWARM_ATTRIBUTE)


def namespace_of(request: Request) -> bytes:
    """Requests of different adapters or cache salts never share a prefix."""
    lora = request.lora_request
    if lora is None and not request.cache_salt:
        return b""
    adapter = (lora.lora_name, lora.lora_path) if lora is not None else None
    return repr((adapter, request.cache_salt)).encode()


def _labels(request: Request, block_size: int) -> list[tuple[int, bytes]]:
    """Upstream's extra hash keys of multimodal and embedded content, per block of the prompt."""
    if not request.mm_features and request.prompt_embeds is None:
        return []
    labels = []
    for index in range(-(-request.num_prompt_tokens // block_size)):
        start = index * block_size
        keys, _ = generate_block_hash_extra_keys(request, start, start + block_size, 0)
        content = [key for key in keys or () if key[0] not in ("lora", "cache_salt")]
        if content:
            labels.append((index, repr(content).encode()))
    return labels
