"""The tokenizer of the simulator: real counts, safe cuts, answers that keep their tokens."""

from __future__ import annotations

from zlib import crc32

from hypothesis import given
from hypothesis import strategies as st

from vllm_helium.simulator.tokenizer import PieceTokenizer

TEXTS = st.text(alphabet=st.sampled_from("ab xyzé7.,\n\t<|_>"), max_size=60)


@given(TEXTS)
def test_tokens_cover_the_text(text):
    encoding = PieceTokenizer().encode(text)
    starts = list(encoding.starts)
    assert len(starts) == len(encoding.token_ids)
    assert starts == sorted(set(starts)) and starts[:1] == ([0] if text else [])
    assert list(encoding.token_ids) == PieceTokenizer().token_ids(text)


@given(TEXTS, TEXTS, TEXTS)
def test_boundaries_stand_whatever_is_beside_the_text(before, text, after):
    tokenizer = PieceTokenizer()
    for position in range(len(text) + 1):
        if tokenizer.is_boundary(text, position):
            cut = len(before) + position
            parts = (before + text + after)[:cut], (before + text + after)[cut:]
            whole = tokenizer.token_ids(before + text + after)
            assert whole == [token for part in parts for token in tokenizer.token_ids(part)]


def test_there_are_boundaries():
    tokenizer = PieceTokenizer()
    text = "one two\nthree"
    assert [p for p in range(len(text)) if tokenizer.is_boundary(text, p)] == [3, 7, 8]


def test_long_words_have_several_tokens():
    tokenizer = PieceTokenizer()
    assert len(tokenizer.token_ids("a considerable")) == 3
    assert len(tokenizer.token_ids("")) == 0


def test_a_conversation_repeats_prompt_and_answer_token_by_token():
    tokenizer = PieceTokenizer()
    question = [{"role": "user", "content": "Why?"}]
    answer = "because it is so"
    first = tokenizer.token_ids(tokenizer.render_chat(question, add_reply=True))
    spoken = [*tokenizer.token_ids(answer), tokenizer.end_of_turn]
    more = [{"role": "assistant", "content": answer}, {"role": "user", "content": "Really?"}]
    second = tokenizer.token_ids(tokenizer.render_chat(question + more, add_reply=True))
    assert second[: len(first) + len(spoken)] == first + spoken


def test_ids_are_hashes_and_the_same_in_every_process():
    expected = [crc32(piece) >> 1 for piece in (b"two", b" words", b"<|im_end|>")]
    assert PieceTokenizer().token_ids("two words<|im_end|>") == expected
