"""A real byte-level BPE, small enough to train in a moment."""

from __future__ import annotations

import pytest

from helium.templates import TransformersTokenizer

_CORPUS = [
    "The quick brown fox jumps over a dog. Question: what is the answer?\n\nAnswer: 42, or 7.",
    "Summaries of the summarizer summarize 123 4567 reports; please answer the question.\n",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n",
] * 8


@pytest.fixture(scope="session")
def bpe() -> TransformersTokenizer:
    """A byte-level BPE of the GPT family, trained here, with ChatML."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        show_progress=False,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    model.train_from_iterator(_CORPUS, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model)
    fast.chat_template = (
        "{% for m in messages %}"
        "{% if m['role'] not in ['system', 'user', 'assistant'] %}"
        "{{ raise_exception('unknown role') }}{% endif %}"
        "<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return TransformersTokenizer(fast)
