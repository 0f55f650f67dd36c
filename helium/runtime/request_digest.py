"""What a run was asked for, as a digest: equal requests for an id are the same run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from helium.plan.logical_plan import LogicalPlan


def request_digest(
    plan: LogicalPlan, columns: Mapping[str, str | tuple[str, ...]], cache_salt: str | None
) -> str:
    """Returns the SHA-256 of a workflow as written, its batch and its tenant, 64 hex digits."""
    request = (plan.digest(), sorted(columns.items()), cache_salt)
    return hashlib.sha256(msgspec.json.encode(request)).hexdigest()
