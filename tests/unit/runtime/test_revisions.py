"""Cached answers are those of what the engines serve now, though weights change while they run."""

import asyncio
import json

import msgspec
import pytest

from helium import graphs, ops
from helium.errors import EngineError
from helium.plan.operators import Sampling
from helium.runtime import ModelAnswer, PromptCache, Runtime

QUESTION = ops.placeholder("question")


class Versioned:
    """An engine whose answers say which weights made them; each call takes a few loop turns."""

    def __init__(self):
        self.weights = "w0"
        self.num_calls = 0
        self.is_asked = True
        self.during_calls = lambda: None

    async def register(self, plan):
        pass

    async def call(self, request):
        self.num_calls += 1
        await asyncio.sleep(0)
        answer = f"{self.weights} {request.call.model}"
        self.during_calls()
        return ModelAnswer((answer,))

    async def revisions(self):
        if not self.is_asked:
            raise EngineError("not now")
        weights = self.weights
        return lambda model: f"{weights} {model}"


def build(model=None):
    node = ops.llm([ops.Msg("user", QUESTION)], name="answer", model=model)
    return graphs.build({"out": node})


async def ask(engine, cache, rows=("a",), model=None):
    # A runtime each: what it stores is there when it is closed.
    async with Runtime(engine, revision=engine.revisions, prompt_cache=cache) as runtime:
        result = await runtime.run(build(model), {"question": list(rows)})
    return result.outputs["out"]


@pytest.fixture
def cache(tmp_path):
    cache = PromptCache(tmp_path / "prompts.db")
    yield cache
    cache.close()


def test_answers_of_earlier_weights_are_not_found(cache):
    engine = Versioned()

    async def main():
        assert await ask(engine, cache) == await ask(engine, cache) == ["w0 None"]
        assert engine.num_calls == 1
        engine.weights = "w1"
        assert await ask(engine, cache) == await ask(engine, cache) == ["w1 None"]
        assert engine.num_calls == 2

    asyncio.run(main())


def test_an_answer_is_not_stored_under_the_weights_it_was_looked_up_with(cache):
    engine = Versioned()

    async def main():
        engine.weights = "w1"
        # Looked up under w1; answered, in part perhaps, by w2.
        engine.during_calls = lambda: setattr(engine, "weights", "w2")
        await ask(engine, cache)
        assert cache.stats().num_entries == 0
        engine.during_calls = lambda: None
        assert await ask(engine, cache) == ["w2 None"] and engine.num_calls == 2

    asyncio.run(main())


def test_models_have_revisions_of_their_own(cache):
    engine = Versioned()

    async def main():
        assert await ask(engine, cache) == ["w0 None"]
        assert await ask(engine, cache, model="adapter") == ["w0 adapter"]
        assert await ask(engine, cache, model="adapter") == ["w0 adapter"]
        assert engine.num_calls == 2

    asyncio.run(main())


def test_engines_that_cannot_tell_are_called_as_if_nothing_was_cached(cache, caplog):
    engine = Versioned()

    async def main():
        await ask(engine, cache)
        engine.is_asked = False
        assert await ask(engine, cache, "ab") == ["w0 None"] * 2
        assert engine.num_calls == 3 and cache.stats().num_entries == 1
        assert "without the prompt cache" in caplog.text

    asyncio.run(main())


def test_answers_are_stored_while_there_is_always_something_to_look_up(cache, monkeypatch):
    from helium.runtime import cache_lookup

    monkeypatch.setattr(cache_lookup, "_MAX_QUESTIONS", 1)
    monkeypatch.setattr(cache_lookup, "_MAX_ANSWER_AGE_S", 0.0)
    engine, seen = Versioned(), []
    put = cache.put
    cache.put = lambda entries: (seen.append(engine.num_calls), put(entries))

    async def main():
        await ask(engine, cache, [f"q{number}" for number in range(20)])

    asyncio.run(main())
    assert min(seen) < 20 and cache.stats().num_entries == 20


@pytest.mark.parametrize("field", ["echo", "logprobs", "prompt_logprobs", "best_of"])
def test_a_call_has_no_field_that_the_key_leaves_out(field):
    """What changes an answer beyond its text is no sampling parameter of a workflow at all."""
    raw = json.dumps({"temperature": 0.0, field: 1})
    with pytest.raises(msgspec.ValidationError, match=field):
        msgspec.json.decode(raw, type=Sampling)
