"""Ordinary traffic over the real CPU engine: one engine per process, told when to replay.

Usage: python -m benchmarks.prefix_cache.ordinary_engine SETTING.json  (started by ordinary_replay)

Reads a line per turn from standard input, serves a few steps and answers with a line of JSON. A
fixed number of users converse without pauses, so which step computes what depends on no clock:
replays by one system differ in time alone, and time stands still while it is another's turn.
"""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.prefix_cache.chat_traffic import Conversation, conversations, turn_ids

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
BLOCK_SIZE = 32
MAX_MODEL_LEN = 2_048
NUM_USERS = 16
STEPS_PER_TURN = 25


class EngineArm:
    """The parent's handle on an engine's process.

    Args:
        setting: ``system``, ``num_blocks``, and what the conversations are drawn from.
    """

    def __init__(self, setting: dict[str, Any]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, "setting.json")
        path.write_text(json.dumps(setting | {"model": f"{self._folder.name}/llama"}))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.prefix_cache.ordinary_engine", str(path)],
            cwd=Path(__file__).resolve().parents[2],
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()  # it is up

    def turn(self) -> dict[str, Any] | None:
        """Serves ``STEPS_PER_TURN`` more steps of the replay, the first from an empty cache.

        Returns:
            What ``_Engine.replay`` gives once all conversations have ended; the next turn begins
            another replay.
        """
        assert self._process.stdin is not None
        print("turn", file=self._process.stdin, flush=True)
        return self._answer() or None

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise SystemExit(f"the engine's process ended with {self._process.wait()}; see above")


def main() -> None:
    setting = json.loads(Path(sys.argv[1]).read_text())
    engine = _Engine(setting)
    print("{}", flush=True)
    replay = engine.replay()
    for _ in sys.stdin:
        report = next(replay)
        if report:
            replay = engine.replay()
        print(json.dumps(report), flush=True)
    engine.close()


@dataclass
class _User:
    """Who has one conversation after the other; ``history`` is the current one's tokens."""

    conversation: Conversation
    turn: int
    history: list[int]


@dataclass
class _Pending:
    user: _User
    first_step: int


class _Engine:
    def __init__(self, setting: dict[str, Any]) -> None:
        from vllm import LLM

        from vllm_helium.models.tiny import make_tiny_llama
        from vllm_helium.simulator.evictions import count_evictions

        self._traffic = conversations(**setting["traffic"])
        self._llm = LLM(
            str(make_tiny_llama(Path(setting["model"]))),
            helium=setting["system"] == "helium",
            dtype="float32",
            block_size=BLOCK_SIZE,
            num_gpu_blocks_override=setting["num_blocks"],
            kv_cache_memory_bytes=1 << 28,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=NUM_USERS,
            max_num_batched_tokens=512,
            enforce_eager=True,
        )
        self._engine = self._llm.llm_engine
        self._core = self._engine.engine_core.engine_core
        self._num_evictions = count_evictions(self._core.scheduler)
        self._ids = itertools.count()

    def close(self) -> None:
        self._engine.engine_core.shutdown()

    def replay(self) -> Iterator[dict[str, Any]]:
        """Serves all conversations from an empty cache; pauses with an empty dict.

        The last dict has, by step, seconds on the wall (``wall_s``) and of CPU (``cpu_s``), what is
        asked after it included, and by call its first and its last step (``calls``).
        """
        assert self._llm.reset_prefix_cache(), "the cache is in use"
        gc.collect()
        gc.freeze()
        waiting = deque(self._traffic)
        pending: dict[str, _Pending] = {}
        counts = {"calls": 0, "prompt_tokens": 0, "cached_tokens": 0, "output_tokens": 0}
        num_evictions = self._num_evictions()
        times: dict[str, list[float]] = {"wall_s": [], "cpu_s": []}
        calls: list[tuple[int, int]] = []
        answers: dict[str, list[int]] = {}
        for _ in range(NUM_USERS):
            self._next(waiting, None, pending, 0)
        for step in itertools.count():
            if step and step % STEPS_PER_TURN == 0:
                yield {}
            start_s, start_cpu_s = time.perf_counter(), time.process_time()
            for output in self._engine.step():
                if not output.finished:
                    continue
                call = pending.pop(output.request_id)
                calls.append((call.first_step, step))
                answer = list(output.outputs[0].token_ids)
                answers[f"{call.user.conversation.number}/{call.user.turn}"] = answer
                counts["calls"] += 1
                counts["prompt_tokens"] += len(output.prompt_token_ids)
                counts["cached_tokens"] += output.num_cached_tokens or 0
                counts["output_tokens"] += len(answer)
                call.user.history += answer
                self._next(waiting, call.user, pending, step + 1)
            times["wall_s"].append(time.perf_counter() - start_s)
            times["cpu_s"].append(time.process_time() - start_cpu_s)
            if not pending:
                break
        counts |= {
            "steps": len(times["wall_s"]),
            "evictions": self._num_evictions() - num_evictions,
        }
        answers_digest = hashlib.sha256(json.dumps(answers, sort_keys=True).encode()).hexdigest()
        yield times | {"counts": counts, "calls": calls, "answers": answers_digest}

    def _next(
        self,
        waiting: deque[Conversation],
        user: _User | None,
        pending: dict[str, _Pending],
        step: int,
    ) -> None:
        """Asks a user's next question, or the first of the next conversation."""
        from vllm import SamplingParams

        if user is not None and user.turn + 1 < len(user.conversation.turns):
            user.turn += 1
        elif waiting:
            user = _User(waiting.popleft(), 0, [])
        else:
            return
        turn = user.conversation.turns[user.turn]
        user.history += turn.question
        name = turn_ids(self._ids, user.conversation.number, user.turn)
        params = SamplingParams(temperature=0.0, max_tokens=turn.answer_tokens, ignore_eos=True)
        pending[name] = _Pending(user, step)
        self._engine.add_request(name, {"prompt_token_ids": list(user.history)}, params)


if __name__ == "__main__":
    main()
