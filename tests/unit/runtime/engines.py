"""Engines for tests: they answer by a function of the call and keep a record."""

import asyncio

from helium.runtime import ModelAnswer


def echo(call):
    """Answers with the call's last text and its sampling, so that unequal calls differ."""
    text = call.prompt if call.prompt is not None else call.messages[-1][1]
    return tuple(f"{text}|{call.sampling}|{choice}" for choice in range(call.sampling.n))


class Engine:
    """Takes ``seconds`` per call; ``answer`` may raise, or return texts."""

    def __init__(self, seconds=0.0, answer=echo):
        self.seconds = seconds
        self.answer = answer
        self.requests = []
        self.plans = []
        self.num_open = self.max_open = self.num_cancelled = 0

    async def register(self, plan):
        self.plans.append(plan)

    async def call(self, request):
        self.requests.append(request)
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        try:
            await asyncio.sleep(self.seconds)
            return ModelAnswer(self.answer(request.call), 10, 4, 3 * request.call.sampling.n)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_open -= 1


class TypistWhenAsked(Engine):
    """Says a part more of a call's texts whenever it is asked how far it is, and all in the end."""

    num_parts = 4

    def __init__(self, answer=echo):
        super().__init__(0.0, answer)
        self.under_way = {}

    async def call(self, request):
        self.requests.append(request)
        is_over = asyncio.Event()
        self.under_way[id(request)] = [0, is_over]
        await is_over.wait()
        del self.under_way[id(request)]
        return ModelAnswer(self.answer(request.call), 10, 4, 3)

    def texts(self, request):
        state = self.under_way[id(request)]
        state[0] += 1
        if state[0] >= self.num_parts:
            state[1].set()
        texts = self.answer(request.call)
        return {i: text[: len(text) * state[0] // self.num_parts] for i, text in enumerate(texts)}
