"""Salt x adapter x {prefix, tail, lease, prewarm}: shared within a tenant, never across."""

from __future__ import annotations

import itertools

import pytest
from vllm.lora.request import LoRARequest

from tests.unit.prefix_cache.test_kv_cache_manager import (
    BLOCK,
    admit,
    finish,
    make_manager,
    make_request,
    serve,
)
from vllm_helium.prefix_cache.static_prefixes import StaticPrefix

SALTS = (None, "one", "two")
ADAPTERS = (
    None,
    LoRARequest("a", 1, "/a"),
    LoRARequest("b", 2, "/b"),
    LoRARequest("a", 3, "/other-a"),
)
TENANTS = list(itertools.product(SALTS, ADAPTERS))
NAMES = [f"{salt}-{adapter and adapter.lora_path}" for salt, adapter in TENANTS]
PROMPT = list(range(3 * BLOCK + 3))
DIGEST = "0" * 64


def fields_of(tenant):
    return {"cache_salt": tenant[0], "lora_request": tenant[1]}


def leave_prefix(manager, tenant):
    """Whole blocks only: the request's tail is in use by nobody and is too short."""
    serve(manager, "writer", PROMPT[: 3 * BLOCK], **fields_of(tenant))
    return 3 * BLOCK


def leave_tail(manager, tenant):
    serve(manager, "writer", PROMPT, **fields_of(tenant))
    return len(PROMPT)


def leave_lease(manager, tenant):
    request = make_request("writer", PROMPT, **fields_of(tenant))
    admit(manager, request)
    assert manager.lease_prefix(request, len(PROMPT), 60.0)
    finish(manager, request)
    return len(PROMPT)


def leave_prewarm(manager, tenant):
    prefix = StaticPrefix((1,), (len(PROMPT),), PROMPT, 0)
    request = make_request("writer", PROMPT, **fields_of(tenant))
    assert manager.lease_template(request, DIGEST, prefix, 60.0)
    admit(manager, request)
    finish(manager, request)
    manager.new_step_starts()
    again = make_request("again", PROMPT, **fields_of(tenant))
    assert not manager.lease_template(again, DIGEST, prefix, 60.0)
    return len(PROMPT)


KINDS = (leave_prefix, leave_tail, leave_lease, leave_prewarm)


@pytest.mark.parametrize("leave", KINDS, ids=lambda leave: leave.__name__[6:])
@pytest.mark.parametrize("owner", TENANTS, ids=NAMES)
def test_kv_is_shared_within_a_tenant_and_never_across(leave, owner):
    for reader in TENANTS:
        manager = make_manager(num_blocks=64)
        num_tokens = leave(manager, owner)
        prompt = [*PROMPT[:num_tokens], 900]
        num_cached, copies = serve(manager, "reader", prompt, **fields_of(reader))
        if reader is owner:  # equality of adapters looks at their names alone
            assert num_cached == num_tokens
        else:
            assert (num_cached, copies) == (0, [])


@pytest.mark.parametrize("owner", TENANTS, ids=NAMES)
def test_a_tenants_template_lease_is_no_other_tenants(owner):
    manager = make_manager(num_blocks=64)
    leave_prewarm(manager, owner)
    prefix = StaticPrefix((1,), (len(PROMPT),), PROMPT, 0)
    for reader in TENANTS:
        request = make_request("reader", PROMPT, **fields_of(reader))
        assert manager.lease_template(request, DIGEST, prefix, 60.0) == (reader is not owner)
    assert manager.describe()["num_template_leases"] == len(TENANTS)
    manager.drop_plan(DIGEST)
    assert manager.describe()["num_leased_nodes"] == 0
    manager.pool.index.check_integrity()
