"""Ten times more work than fits: nothing stands still, starves or leaks."""

from __future__ import annotations

import os
import time

import pytest

pytest.importorskip("vllm")

from tests.unit.scheduler.soak import Soak, SoakError
from vllm_helium.scheduler.shares import Shares

SOAK_MINUTES = float(os.environ.get("HELIUM_SOAK_MINUTES", "1"))


@pytest.mark.parametrize("is_async", [False, True])
def test_an_overloaded_engine_serves_everybody(is_async):
    soak = Soak(seed=1, is_async=is_async)
    for number in range(300):
        soak.step()
        if number % 100 == 0:
            soak.check()
    soak.drain()
    # The run must have exercised what it claims to check.
    assert soak.num_added > 200 and soak.num_aborted > 5 and soak.num_leases > 10
    assert soak.num_preempted > 0
    assert soak.num_runs > 10


def test_the_soak_sees_a_tenant_that_starves(monkeypatch):
    monkeypatch.setattr(Shares, "serve", lambda *args: None)
    monkeypatch.setattr(Shares, "charge", lambda *args: None)
    soak = Soak(seed=1, is_async=False)
    with pytest.raises(SoakError, match="waited while"):
        for _ in range(600):
            soak.step()


def test_the_soak_sees_blocks_that_are_kept_for_leases_while_calls_are_preempted(monkeypatch):
    soak = Soak(seed=1, is_async=False)
    count = soak.pool.get_num_free_blocks
    monkeypatch.setattr(soak.pool, "get_num_free_blocks", lambda: max(0, count() - 20))
    with pytest.raises(SoakError, match="free or merely leased"):
        for _ in range(600):
            soak.step()


@pytest.mark.slow
def test_an_overloaded_engine_serves_everybody_for_long():
    """One minute, or HELIUM_SOAK_MINUTES; every round has another seed."""
    end = time.monotonic() + 60 * SOAK_MINUTES
    seed = 100
    while seed == 100 or time.monotonic() < end:
        soak = Soak(seed=seed, is_async=bool(seed % 2))
        for number in range(2_000):
            soak.step()
            if number % 200 == 0:
                soak.check()
        soak.drain()
        seed += 1
