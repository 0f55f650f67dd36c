"""Which blocks an engine's calls read and write, in order: what an offline bound is computed from.

Blocks are known by the whole prefix they end, as in the engine's cache; the engine's own index is
not asked, so that the trace is the same whatever index runs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field


@dataclass
class AccessTrace:
    """Accesses of one engine.

    Attributes:
        blocks: The block of every access; equal numbers are equal prefixes.
        is_lookup: Whether the access asks for a prompt's block, or only writes one; [len(blocks)].
    """

    block_size: int
    blocks: list[int] = field(default_factory=list)
    is_lookup: list[bool] = field(default_factory=list)
    _numbers: dict[Hashable, int] = field(default_factory=dict)

    @property
    def num_lookups(self) -> int:
        """Full prompt blocks asked for."""
        return sum(self.is_lookup)

    def admit(self, prompt_token_ids: Sequence[int], cache_salt: str | None) -> None:
        """Records the lookup of a prompt; at least its last token is always computed."""
        blocks = self._path(prompt_token_ids, cache_salt)
        num_lookups = (len(prompt_token_ids) - 1) // self.block_size
        self.blocks += blocks
        self.is_lookup += [index < num_lookups for index in range(len(blocks))]

    def finish(
        self, prompt_token_ids: Sequence[int], output_token_ids: Sequence[int], salt: str | None
    ) -> None:
        """Records the blocks an answer has filled; the last token's KV is never computed."""
        tokens = [*prompt_token_ids, *output_token_ids[:-1]]
        blocks = self._path(tokens, salt)[len(prompt_token_ids) // self.block_size :]
        self.blocks += blocks
        self.is_lookup += [False] * len(blocks)

    def clear(self) -> None:
        """Forgets the accesses so far."""
        self.blocks.clear()
        self.is_lookup.clear()

    def _path(self, token_ids: Sequence[int], salt: str | None) -> list[int]:
        numbers, size = self._numbers, self.block_size
        path: list[int] = []
        number = -1 if salt is None else -2 - numbers.setdefault(salt, len(numbers))
        for start in range(0, len(token_ids) - size + 1, size):
            key = (number, tuple(token_ids[start : start + size]))
            number = numbers.setdefault(key, len(numbers))
            path.append(number)
        return path
