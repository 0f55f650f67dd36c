import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from helium.errors import ConfigError
from vllm_helium.models.tiny import MARKUP, MIN_VOCAB, make_tiny_llama


def read_all(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_equal_arguments_give_equal_files(tmp_path):
    first = make_tiny_llama(tmp_path / "a", seed=3)
    second = make_tiny_llama(tmp_path / "b", seed=3)
    assert read_all(first) == read_all(second)


def test_another_seed_gives_other_weights(tmp_path):
    first = load_file(make_tiny_llama(tmp_path / "a") / "model.safetensors")
    second = load_file(make_tiny_llama(tmp_path / "b", seed=1) / "model.safetensors")
    assert first.keys() == second.keys()
    assert not np.array_equal(first["lm_head.weight"], second["lm_head.weight"])


@pytest.mark.parametrize("text", ["plain", "a\tb\n\n c", "Größe 日本 😀", "\x00\x7f\u00a0"])
def test_token_ids_are_the_bytes(tmp_path, text):
    tokenizer = Tokenizer.from_file(str(make_tiny_llama(tmp_path) / "tokenizer.json"))
    ids = tokenizer.encode(text).ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_markup_is_one_token_each(tmp_path):
    tokenizer = Tokenizer.from_file(str(make_tiny_llama(tmp_path) / "tokenizer.json"))
    assert tokenizer.encode("".join(MARKUP)).ids == [256, 257, 258, 259]


def test_every_id_of_a_larger_vocabulary_decodes(tmp_path):
    tokenizer = Tokenizer.from_file(str(make_tiny_llama(tmp_path, vocab=300) / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == 300
    words = [tokenizer.decode([i]) for i in range(MIN_VOCAB, 300)]
    assert len(set(words)) == 40
    assert "" not in words


def test_shapes_follow_the_arguments(tmp_path):
    folder = make_tiny_llama(tmp_path, layers=3, hidden=128, heads=4, kv_heads=2, vocab=272)
    tensors = load_file(folder / "model.safetensors")
    assert tensors["model.embed_tokens.weight"].shape == (272, 128)
    assert tensors["model.layers.2.self_attn.k_proj.weight"].shape == (64, 128)
    assert len(tensors) == 3 + 3 * 9
    config = json.loads((folder / "config.json").read_text())
    assert config["num_hidden_layers"] == 3
    assert config["num_key_value_heads"] == 2


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab": 259}, "vocab is 259"),
        ({"hidden": 60, "heads": 4}, "even size"),
        ({"heads": 2, "kv_heads": 3}, "divide heads"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_tiny_llama(tmp_path / "model", **sizes)
    assert not (tmp_path / "model").exists()


def test_making_models_imports_neither_torch_nor_vllm(tmp_path):
    script = (
        "import sys; from vllm_helium.models import ensure_smollm2, make_tiny_llama; "
        f"make_tiny_llama({str(tmp_path / 'm')!r}); "
        "print({name.partition('.')[0] for name in sys.modules} & {'torch', 'vllm'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
