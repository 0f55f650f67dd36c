"""A worker whose KV slots hold fingerprints of the token prefixes they should encode."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from vllm.v1.outputs import ModelRunnerOutput

from vllm_helium.tiering.moves import StepMoves

VOCAB = 40
_MASK = (1 << 63) - 1


class ShadowError(AssertionError):
    """The oracle found a wrong read, a leak or a broken invariant."""


class ShadowWorker:
    """Executes scheduler outputs on fingerprints instead of keys and values.

    Args:
        num_slots: Blocks of host memory.
    """

    def __init__(self, num_blocks: int, block_size: int, num_slots: int = 0) -> None:
        self.block_size = block_size
        self.kv = np.zeros((num_blocks, block_size), dtype=np.int64)
        self.host = np.zeros((num_slots, block_size), dtype=np.int64)
        self.tables: dict[str, list[int]] = {}
        self.tokens: dict[str, list[int]] = {}
        self.prints: dict[str, array] = {}
        self.seeds: dict[str, int] = {}
        self.epoch = 0
        self.num_slots_checked = self.num_copies = self.num_steps = 0
        self.num_stores = self.num_loads = self.num_prefetches = 0

    def change_weights(self) -> None:
        """Every KV slot written before is wrong from here on."""
        self.epoch += 1
        self.prints.clear()

    def fingerprints(self, request_id: str, size: int) -> array:
        prints = self.prints.get(request_id)
        if prints is None:
            prints = self.prints[request_id] = array("q")
        tokens = self.tokens[request_id]
        last = prints[-1] if prints else hash((self.seeds[request_id], self.epoch)) & _MASK
        for position in range(len(prints), size):
            last = (last * 6364136223846793005 + tokens[position] + 1442695040888963407) & _MASK
            last ^= last >> 29
            prints.append(last)
        return prints

    def step(self, output: Any) -> ModelRunnerOutput:
        """Copies, writes, then reads, as a model runner does.

        Raises:
            ShadowError: A request would read a slot that does not hold its prefix.
        """
        self.num_steps += 1
        metadata = output.kv_connector_metadata
        moves = metadata.moves if metadata is not None else StepMoves()
        self._store(*moves.stores)
        # A prefetch runs beside the step: at its beginning or at its end.
        is_early = self.num_steps % 2 == 0
        if is_early:
            self._prefetch(*moves.prefetches)
        for source, target in output.kv_cache_block_copies or ():
            self.kv[target] = self.kv[source]
            self.num_copies += 1
        self._load(*moves.loads)
        for request_id in output.finished_req_ids:
            for table in (self.tables, self.tokens, self.prints):
                table.pop(request_id, None)
        work = self._update(output)
        size = self.block_size
        flat = self.kv.reshape(-1)
        for request_id, start, count in work:
            prints = self.fingerprints(request_id, start + count)
            table = self.tables[request_id]
            if count == 1:
                flat[table[start // size] * size + start % size] = prints[start]
                continue
            positions = np.arange(start, start + count)
            slots = np.array(table)[positions // size] * size + positions % size
            flat[slots] = np.frombuffer(prints, dtype=np.int64)[start : start + count]
        sampled = []
        for request_id, start, count in work:
            end = start + count
            table = self.tables[request_id][: -(-end // size)]
            seen = self.kv[table].reshape(-1)[:end]
            expected = np.frombuffer(self.prints[request_id], dtype=np.int64)[:end]
            if not np.array_equal(seen, expected):
                position = int((seen != expected).argmax())
                raise ShadowError(
                    f"wrong KV: request {request_id} reads position {position} from block "
                    f"{table[position // size]}; {start} tokens were computed, {count} scheduled"
                )
            self.num_slots_checked += end
            tokens = self.tokens[request_id]
            if end == len(tokens):
                token = sample(request_id, end)
                tokens.append(token)
                sampled.append([token])
            else:
                sampled.append([])
        if not is_early:
            self._prefetch(*moves.prefetches)
        ids = [request_id for request_id, _, _ in work]
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: index for index, request_id in enumerate(ids)},
            sampled_token_ids=sampled,
        )

    def _store(self, blocks: list[int], slots: list[int]) -> None:
        self.host[slots] = self.kv[blocks]
        self.num_stores += len(blocks)

    def _load(self, blocks: list[int], slots: list[int]) -> None:
        self.kv[blocks] = self.host[slots]
        self.num_loads += len(blocks)

    def _prefetch(self, blocks: list[int], slots: list[int]) -> None:
        self.kv[blocks] = self.host[slots]
        self.num_prefetches += len(blocks)

    def _update(self, output: Any) -> list[tuple[str, int, int]]:
        work = []
        for new in output.scheduled_new_reqs:
            tokens = getattr(new, "prefill_token_ids", None) or new.prompt_token_ids
            self._start(new.req_id, new.block_ids[0], tokens)
            count = output.num_scheduled_tokens[new.req_id]
            work.append((new.req_id, new.num_computed_tokens, count))
        cached = output.scheduled_cached_reqs
        for index, request_id in enumerate(cached.req_ids):
            new_blocks = cached.new_block_ids[index]
            if request_id in cached.resumed_req_ids:
                tokens = cached.all_token_ids.get(request_id, self.tokens[request_id])
                self._start(request_id, new_blocks[0], tokens)
            elif new_blocks is not None:
                self.tables[request_id] += new_blocks[0]
            count = output.num_scheduled_tokens[request_id]
            work.append((request_id, cached.num_computed_tokens[index], count))
        return work

    def _start(self, request_id: str, table: list[int], tokens: list[int]) -> None:
        self.tables[request_id] = list(table)
        if self.tokens.get(request_id) != tokens:
            self.tokens[request_id] = list(tokens)
            self.prints.pop(request_id, None)


def sample(request_id: str, position: int) -> int:
    """The token a request samples at a position, whenever and however often it does."""
    return (int(request_id[1:]) * 7919 + position * 104729) % 99_991 % VOCAB
