"""In the kit's tokenizer, what a model writes keeps its tokens in later prompts."""

from __future__ import annotations

import json
import random

import pytest

from benchmarks.gpu import model_folder, workloads

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

ENTRIES = [entry | {"rows": 2} for entry in workloads.TINY]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    words = workloads.all_words([workloads.build(entry) for entry in ENTRIES])
    return model_folder.write_model(tmp_path_factory.mktemp("model"), "tiny", words)


@pytest.fixture(scope="module")
def tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


def test_every_id_is_a_word_that_encodes_to_itself(folder, tokenizer):
    special = set(tokenizer.all_special_ids)
    ids = [number for number in range(len(tokenizer)) if number not in special]
    random.Random(0).shuffle(ids)
    text = tokenizer.decode(ids)
    assert tokenizer.encode(text, add_special_tokens=False) == ids
    assert len(tokenizer) == json.loads((folder / "config.json").read_text())["vocab_size"]


def test_an_answer_keeps_its_tokens_in_a_conversation(tokenizer):
    answer_ids = [7, 900, 31, 7]
    messages = [{"role": "user", "content": "stock 0-000"}]
    asked = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    messages.append({"role": "assistant", "content": tokenizer.decode(answer_ids)})
    told = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert told[: len(asked) + len(answer_ids)] == [*asked, *answer_ids]


def test_every_word_of_the_workloads_is_known(tokenizer):
    for entry in ENTRIES:
        texts = [text for column in workloads.build(entry).batch.values() for text in column]
        for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]:
            assert tokenizer.unk_token_id not in ids


def test_more_words_than_the_vocabulary_holds_are_refused(tmp_path):
    words = [f"word{number}" for number in range(5000)]
    with pytest.raises(ValueError, match="do not fit a vocabulary of 4096"):
        model_folder.write_model(tmp_path, "tiny", words)
