"""A pytest plugin that makes upstream's tests run with Helium on.

Upstream's tests build ``VllmConfig``, ``Scheduler`` and ``AsyncScheduler`` themselves, so
switching on takes two steps: every configuration gets a Helium part before it is finalized, and a
construction of one of the two scheduler classes yields ours. Subclasses of upstream's are left
alone.
"""

from __future__ import annotations

import functools
import json
import os
from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    settings = json.loads(os.environ["UPSTREAM_HELIUM"]) or True
    try:
        _switch_on_config(settings)
        _switch_on_schedulers()
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(
            f"Helium cannot be switched on: {error!r}; this interpreter's vllm is not the fork"
        ) from error


def _switch_on_config(settings: Any) -> None:
    from vllm.config import VllmConfig

    from vllm_helium.config import make_helium_config

    helium_config = make_helium_config(settings)
    finish = VllmConfig.__post_init__
    if "helium_config" not in VllmConfig.__dataclass_fields__:
        raise AttributeError("VllmConfig has no field 'helium_config'")

    @functools.wraps(finish)
    def finish_with_helium(self: VllmConfig) -> None:
        if self.helium_config is None:
            self.helium_config = helium_config
        finish(self)

    VllmConfig.__post_init__ = finish_with_helium


def _switch_on_schedulers() -> None:
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    from vllm_helium.scheduler.scheduler import HeliumAsyncScheduler, HeliumScheduler

    ours = {Scheduler: HeliumScheduler, AsyncScheduler: HeliumAsyncScheduler}

    def new(cls: type, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(ours.get(cls, cls))

    # Ours derive from upstream's, so Python goes on to call ``__init__`` of what ``new`` returns.
    Scheduler.__new__ = new
