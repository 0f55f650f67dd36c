"""The instrument itself: what the comparisons of the other files rest on."""

import pytest

pytestmark = pytest.mark.engine

SHARED = "You are one of several experts. Answer briefly, and say what you are unsure of. " * 3


def prompts(tag):
    return [f"{SHARED}{tag} question {number}" for number in range(6)]


def test_runs_repeat_and_outputs_depend_on_the_whole_prompt(run_engine):
    changed = [f"x{prompt[1:]}" for prompt in prompts("a")]
    as_ids = [list(prompt.encode()) for prompt in prompts("a")]
    rounds = [prompts("a"), prompts("a"), changed, as_ids]
    first = run_engine(rounds)
    assert run_engine(rounds) == first

    cold, warm, other, ids = first
    assert [o.token_ids for o in warm] == [o.token_ids for o in cold]
    assert ids == warm
    # Only the very first character differs: no output may be that of another prompt.
    outputs = [o.token_ids for o in (*cold, *other)]
    assert len(set(outputs)) == len(outputs)

    num_tokens = len(as_ids[0])
    assert [o.num_cached_tokens for o in (cold[0], other[0])] == [0, 0]
    # Whole blocks of 32 on stock, and more only where hits may end inside a block.
    assert all(num_tokens // 32 * 32 <= o.num_cached_tokens < num_tokens for o in warm)


def test_stock_gives_the_same_outputs_and_hits(run_engine, stock_python):
    rounds = [prompts("c"), prompts("c") + prompts("d")]
    assert run_engine(rounds) == run_engine(rounds, python=stock_python)
