"""Fixtures of the shadow-KV oracle."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def engine_config(tmp_path_factory) -> Callable[[bool, str], object]:
    """Upstream's configuration by (async, policy), built once each."""
    # Here, so that property tests without an engine import none.
    from tests.property.shadow_kv import build_engine_config
    from vllm_helium.models.tiny import make_tiny_llama

    model = make_tiny_llama(tmp_path_factory.mktemp("shadow") / "llama")
    built = {}

    def get(is_async, policy):
        if (is_async, policy) not in built:
            built[is_async, policy] = build_engine_config(model, is_async=is_async, policy=policy)
        return built[is_async, policy]

    return get
