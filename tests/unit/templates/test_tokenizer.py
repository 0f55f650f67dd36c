from __future__ import annotations

import re
from itertools import product
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helium.errors import ConfigError, PlanError
from helium.templates import Encoding, TransformersTokenizer, WordTokenizer
from helium.templates.tokenizer import probe_boundary


def test_word_tokenizer_covers_the_text_and_agrees_between_instances() -> None:
    text = "<|im_start|>user\nTwo  words.\n <|im_end|>\n"
    encoding = WordTokenizer().encode(text)
    assert encoding == WordTokenizer().encode(text)
    ends = [*encoding.starts[1:], len(text)]
    pieces = [text[a:b] for a, b in zip(encoding.starts, ends, strict=True)]
    assert pieces == ["<|im_start|>", "user", "\nTwo", "  words.", "\n ", "<|im_end|>", "\n"]
    assert all(0 <= token < 1 << 31 for token in encoding.token_ids)


_PARTS = ("a", "bc", "é", " ", " ", "\n", "  ", "\t", "\r\n", "\u00a0", "\x1c", "<|im_end|>", "x.")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(_PARTS), max_size=12))
def test_word_tokenizer_cuts_like_its_regular_expression(parts: list[str]) -> None:
    text = "".join(parts)
    expected: list[tuple[int, int]] = []
    position = 0
    for piece in re.split(r"(<\|[a-z_]+\|>)", text):
        words = [piece] if piece.startswith("<|") else re.findall(r"\s*\S+|\s+", piece)
        for word in words:
            expected.append((crc32(word.encode()) >> 1, position))
            position += len(word)
    encoding = WordTokenizer().encode(text)
    assert list(zip(encoding.token_ids, encoding.starts, strict=True)) == expected
    assert len(encoding.starts) == len(expected)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(_PARTS), max_size=12), st.booleans())
def test_tokens_before_a_character_are_those_that_start_before_it(
    parts: list[str], is_lazy: bool
) -> None:
    text = "".join(parts)
    encoding = WordTokenizer().encode(text)
    starts = list(WordTokenizer().encode(text).starts)
    if not is_lazy:
        assert len(encoding.starts) == len(starts)  # from here on all of them are known
    for position in range(-1, len(text) + 2):
        expected = sum(start < position for start in starts)
        assert encoding.num_before(position) == expected
        assert Encoding(encoding.token_ids, starts).num_before(position) == expected


def test_word_boundaries_hold_beside_any_text() -> None:
    tokenizer = WordTokenizer()
    text = "one two  three\nfour "

    def encode_batch(texts: list[str]) -> list[Encoding]:
        return [tokenizer.encode(each) for each in texts]

    for position in range(1, len(text)):
        if tokenizer.is_boundary(text, position) and text[position].isspace():
            assert probe_boundary(encode_batch, text, position), (position, text[position:])


def test_probe_refuses_a_cut_inside_a_word(bpe: TransformersTokenizer) -> None:
    text = "the answer is summarize"
    assert not bpe.is_boundary(text, text.index("swer"))
    assert bpe.is_boundary(text, text.index(" is"))


def test_probe_refuses_the_edge_of_a_text_that_may_go_on(bpe: TransformersTokenizer) -> None:
    text = "Question"
    assert not bpe.is_boundary(text, len(text))
    assert not bpe.is_boundary(text, 0)


def test_tokens_on_both_sides_of_a_boundary_stay_for_any_neighbours(
    bpe: TransformersTokenizer,
) -> None:
    text = "please answer the question"
    cut = text.index(" the")
    assert bpe.is_boundary(text, cut)
    alone = bpe.encode(text)
    left = [t for t, s in zip(alone.token_ids, alone.starts, strict=True) if s < cut][-1:]
    for before, after in product(["", "x", "12", " ", "\n", "é"], ["", "s", "?", " 3", "\n\n"]):
        encoded = bpe.encode(before + text + after)
        shifted = cut + len(before)
        pairs = list(zip(encoded.token_ids, encoded.starts, strict=True))
        assert [t for t, s in pairs if s < shifted][-1:] == left
        assert any(s == shifted for _, s in pairs)


def test_special_tokens_are_those_the_tokenizer_splits_on(bpe: TransformersTokenizer) -> None:
    assert bpe.special_tokens() == ("<|im_start|>", "<|im_end|>")


def test_chat_template_errors_name_the_roles(bpe: TransformersTokenizer) -> None:
    with pytest.raises(PlanError, match=r"roles \['critic'\].*unknown role"):
        bpe.render_chat([{"role": "critic", "content": "x"}], add_reply=True)


def test_a_slow_tokenizer_is_refused() -> None:
    with pytest.raises(ConfigError, match="fast tokenizer"):
        TransformersTokenizer(object())
