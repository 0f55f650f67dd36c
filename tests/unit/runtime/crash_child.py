"""A process that works on a run until it is done, or killed.

Usage: crash_child.py FOLDER RUN MODE

Every call made and every event told is a line of a file in FOLDER. In the mode ``random`` the
answers differ from process to process.
"""

import asyncio
import contextlib
import os
import random
import sys
from pathlib import Path

import msgspec

from helium import function, graphs, ops
from helium.plan.operators import Sampling
from helium.runtime import ModelAnswer, RunStore, Runtime, RuntimeOptions

NUM_ROWS = 24
NUM_CALLS = 3 * NUM_ROWS
BATCH = {"question": [f"q{row} {'.' * 900}" for row in range(NUM_ROWS)]}


@function(name="crash_child.trim")
def trim(text: str) -> str:
    return text[:20]


def build(mode):
    sampling = Sampling(temperature=1.0) if mode == "random" else Sampling()
    question = ops.placeholder("question")
    first = ops.llm([ops.Msg("user", ["First: ", question])], name="first", sampling=sampling)
    second = ops.llm([ops.Msg("user", ["Second: ", trim(first)])], name="second", sampling=sampling)
    third = ops.llm([ops.Msg("user", ["Third: ", second])], name="third", sampling=sampling)
    return graphs.build({"first": first, "third": third})


class SlowEngine:
    def __init__(self, folder, mode, seconds=0.005):
        self.log = open(folder / "calls", "a", buffering=1)  # noqa: SIM115
        self.mode = mode
        self.seconds = seconds
        self.rng = random.Random()

    async def register(self, plan):
        pass

    async def call(self, request):
        text = request.call.messages[-1][1]
        self.log.write(f"{os.getpid()} {text!r}\n")
        await asyncio.sleep(self.seconds * self.rng.random())
        salt = os.getpid() if self.mode == "random" else ""
        return ModelAnswer((f"<{text}>{salt}",), 7, 0, 5)


async def work(folder, run, mode, *, is_resumed=False, max_bytes=None, seconds=0.005):
    engine = SlowEngine(folder, mode, seconds)
    options = RuntimeOptions(max_open_calls=4)
    with (
        contextlib.closing(RunStore(folder / "runs.db", max_bytes=max_bytes)) as store,
        open(folder / "events", "a", buffering=1) as log,
    ):
        async with Runtime(engine, store=store, options=options) as runtime:
            if is_resumed:
                handle = await runtime.resume(run)
            else:
                handle = await runtime.submit(build(mode), BATCH, run=run)
            async for event in handle.events():
                log.write(msgspec.json.encode(event).decode() + "\n")
            return await handle.result()


if __name__ == "__main__":
    asyncio.run(work(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
