"""Helium's engine configuration: frozen, validated once, carried inside ``VllmConfig``.

The same fields are the ``--helium-*`` options of ``vllm serve``; see
``vllm_helium.integration.engine_args``. This module must not import vllm: ``vllm.config`` imports
it while it is being loaded.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from helium.errors import ConfigError

if TYPE_CHECKING:
    from vllm.config import VllmConfig


@dataclass(config=ConfigDict(extra="forbid", strict=True), frozen=True, kw_only=True)
class HeliumConfig:
    """Workflow-aware serving; ``VllmConfig.helium_config`` is ``None`` when it is off."""

    order: Literal["row", "plan", "fcfs"] = Field(
        default="row",
        description="Order of waiting requests: 'row' finishes the rows of a batch one after the "
        "other, by rank inside a row, so that a row's prefixes are used while they are cached; "
        "'plan' follows the registered plans' ranks alone; 'fcfs' is upstream's first come, first "
        "served.",
    )
    stage_rows: int = Field(
        default=2,
        ge=0,
        le=1 << 20,
        description="Rows by which a call goes ahead in the order 'row' for each call on the "
        "longest chain that waits for it, so that the last rows' chains do not begin so late that "
        "nothing else is left to run beside them; 0 goes strictly row after row.",
    )
    prefill_tokens: int = Field(
        default=640,
        ge=0,
        le=1 << 20,
        description="Prompt tokens a step computes beside running decodes while planned requests "
        "are there, so that prefill does not hold up decoding; 0 leaves upstream's budget. The "
        "default is about what an H100 computes in the time a decode step takes to read weights "
        "and KV.",
    )
    fair_share: bool = Field(
        default=True,
        description="Runs take turns by the tokens they were served, and runs of one tenant (one "
        "cache_salt) share that tenant's part; off: one order over all runs.",
    )
    victims: Literal["plan", "last"] = Field(
        default="plan",
        description="Which running request is preempted when the KV cache is full: 'plan' takes "
        "the latest arrival's run and there the call that its plan needs last; 'last' is "
        "upstream's, the one admitted last.",
    )
    aging_s: float = Field(
        default=300.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds a planned request waits before it goes ahead of the plan order of its "
        "run, by arrival: the bound on how long a call is overtaken by others of its run. Between "
        "runs, shares bound it.",
    )
    max_plans: int = Field(
        default=256,
        ge=1,
        le=65_536,
        description="Plans an engine keeps registered; beyond it the least recently used goes.",
    )
    max_plan_mib: int = Field(
        default=256,
        ge=1,
        description="MiB of registered plans (as JSON) an engine keeps; beyond it the least "
        "recently used goes.",
    )

    prefix_index: Literal["tree", "stock"] = Field(
        default="tree",
        description="Index of the prefix cache: 'tree' is the templated radix tree over tokens, "
        "'stock' is upstream's map of block hashes.",
    )
    min_partial_tokens: int = Field(
        default=8,
        ge=0,
        le=65_536,
        description="Shortest run inside a block worth reusing, in tokens, because a reuse copies "
        "one block; 0 reuses whole blocks only. The default is half of the usual GPU block.",
    )
    prompt_tails: bool = Field(
        default=True,
        description="Whether the last, partial block of a prompt may be reused as soon as it is "
        "computed, while its request goes on; off: when the request ends.",
    )
    hold_tokens: int = Field(
        default=32,
        ge=0,
        le=65_536,
        description="Prompt tokens for which a waiting request is held a step, because another "
        "one's prefill computes them right now and they can be copied afterwards; 0 never holds. "
        "The default is more than a usual GPU block: there, whole blocks are shared without it.",
    )
    lease_share: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="Largest share of all KV blocks that leases of template prefixes may hold.",
    )
    lease_s: float = Field(
        default=60.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds a lease of a template prefix lasts after its last use. The default is "
        "about two full batches of long outputs.",
    )
    prewarm: bool = Field(
        default=True,
        description="Whether static prefixes that a registered plan uses twice or more are "
        "computed and leased before their calls come.",
    )
    prewarm_min_tokens: int = Field(
        default=64,
        ge=1,
        description="Shortest static prefix, in tokens, that is prewarmed and leased; the default "
        "is four of the usual GPU blocks.",
    )
    ordinary_share: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="Share of all KV blocks in which ordinary traffic competes by recency alone; "
        "what plans protect beyond the rest is evicted first.",
    )
    max_runs: int = Field(
        default=1024,
        ge=1,
        le=1 << 20,
        description="Workflow runs whose pending uses an engine follows; beyond it the oldest "
        "run's blocks become ordinary ones.",
    )

    state_dir: str = Field(
        default="",
        description="Folder where the server keeps registered workflows and runs, so that they "
        "outlive it and runs go on after a restart. Empty: they end with the server.",
    )
    prompt_cache: str = Field(
        default="",
        description="File of answers of earlier greedy and seeded calls of workflows, by tenant; "
        "servers of this machine may share it. Empty: no call is answered from a cache.",
    )
    prompt_cache_mib: int = Field(
        default=1024,
        ge=1,
        le=1 << 20,
        description="MiB of answers the prompt cache keeps; beyond it the least recently used go.",
    )
    functions: str = Field(
        default="",
        description="Modules, separated by commas, that register the functions which workflows of "
        "the server may call by name.",
    )

    host_gib: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="GiB of pinned host memory per worker in which evicted KV blocks live on; 0 "
        "turns the host tier off.",
    )
    host_step_mib: float = Field(
        default=512.0,
        gt=0,
        allow_inf_nan=False,
        description="MiB that one step loads from the host tier while other requests run, which "
        "wait for it; longer prefixes come in over several steps. The default takes about 10 ms on "
        "a PCIe 5 link.",
    )
    host_min_load_blocks: int = Field(
        default=1,
        ge=1,
        description="Shortest run of blocks worth loading from the host tier instead of computing "
        "it again.",
    )
    host_link_gbps: float = Field(
        default=25.0,
        gt=0,
        allow_inf_nan=False,
        description="GB/s that the link to host memory moves in one direction, for the estimates "
        "that choose between loading and computing, and between waiting and being waited for. The "
        "default is what a PCIe 4 x16 link reaches.",
    )
    host_prefetch: bool = Field(
        default=False,
        description="Bring the prefix of the next waiting request back from the host tier beside "
        "the running step, before the request is admitted.",
    )

    def finalize(self, vllm_config: VllmConfig) -> None:
        """Sets what depends on the rest of the configuration; called by ``VllmConfig``."""
        from vllm_helium.integration.engine_config import finalize

        finalize(vllm_config)


def make_helium_config(value: Any) -> HeliumConfig | None:
    """Turns ``LLM(helium=...)`` or the parsed command line into a configuration.

    Args:
        value: ``False`` or ``None`` for off, ``True`` for the defaults, a ``HeliumConfig``, or a
            mapping of its fields.

    Raises:
        ConfigError: A field is unknown or its value is not valid.
    """
    if value is None or value is False:
        return None
    if value is True:
        return HeliumConfig()
    if isinstance(value, HeliumConfig):
        return value
    if not isinstance(value, dict):
        raise ConfigError(
            f"helium: expected True, False, a dict or a HeliumConfig, got {type(value).__name__}"
        )
    try:
        return HeliumConfig(**value)
    except ValidationError as error:
        known = ", ".join(field.name for field in fields(HeliumConfig))
        problems = "; ".join(
            f"helium.{'.'.join(map(str, item['loc']))}: {item['msg']}, got {item['input']!r}"
            for item in error.errors()
        )
        raise ConfigError(f"{problems}; the fields are: {known}") from None
