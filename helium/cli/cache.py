"""``helium cache stats | clear``."""

from __future__ import annotations

import sys
from contextlib import closing

import msgspec

from helium.cli.options import Options
from helium.errors import CacheError
from helium.runtime import PromptCache


def stats(options: Options) -> int:
    """Prints the totals of the prompt cache."""
    with closing(_open(options)) as cache:
        totals = cache.stats()
    if options.json:
        print(msgspec.json.encode(totals).decode())
        return 0
    num_asked = totals.num_hits + totals.num_misses
    ratio = totals.num_hits / num_asked if num_asked else 0.0
    print(f"{'entries':10} {totals.num_entries}")
    print(f"{'bytes':10} {totals.num_bytes} of {totals.max_bytes}, {totals.num_file_bytes} on disk")
    print(f"{'hits':10} {totals.num_hits} of {num_asked} ({ratio:.1%})")
    print(f"{'evicted':10} {totals.num_evicted}")
    return 0


def clear(options: Options) -> int:
    """Deletes entries of the prompt cache."""
    with closing(_open(options)) as cache:
        num_deleted = cache.clear(options.tenant)
    print(f"{num_deleted} entries deleted", file=sys.stderr)
    return 0


def _open(options: Options) -> PromptCache:
    if not options.cache.exists():
        raise CacheError(
            f"prompt cache {options.cache}: there is none; a run with --revision makes one"
        )
    return PromptCache(options.cache, max_bytes=options.cache_bytes)
