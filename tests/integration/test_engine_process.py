"""The instrument itself: what the comparisons of the other files rest on."""

import pytest

pytestmark = pytest.mark.engine

SHARED = "You are one of several experts. Answer briefly, and say what you are unsure of. " * 3


def prompts(tag):
    return [f"{SHARED}{tag} question {number}" for number in range(6)]


def test_runs_repeat_exactly_and_outputs_depend_on_the_whole_prompt(run_engine):
    rounds = [prompts("a"), prompts("a"), ["x" + prompt[1:] for prompt in prompts("a")]]
    first = run_engine(rounds)
    assert run_engine(rounds) == first

    cold, warm, changed = first
    assert [o.token_ids for o in warm] == [o.token_ids for o in cold]
    # Only the very first character differs: nothing of the output may be that of another prompt.
    outputs = [o.token_ids for o in cold] + [o.token_ids for o in changed]
    assert len(set(outputs)) == len(outputs)

    assert cold[0].num_cached_tokens == 0
    num_tokens = len(prompts("a")[0])
    assert all(o.num_cached_tokens == (num_tokens - 1) // 32 * 32 for o in warm)
    assert all(o.num_cached_tokens == 0 for o in changed[:1])


def test_prompts_may_be_token_ids(run_engine):
    text = prompts("b")[0]
    as_text, as_ids = run_engine([[text], [list(text.encode())]], enable_prefix_caching=False)
    assert as_ids == as_text
    assert as_ids[0].num_cached_tokens == 0


def test_stock_gives_the_same_outputs_and_hits(run_engine, stock_python):
    rounds = [prompts("c"), prompts("c") + prompts("d")]
    assert run_engine(rounds) == run_engine(rounds, python=stock_python)
