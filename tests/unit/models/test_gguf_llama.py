import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from helium.errors import ConfigError
from vllm_helium.models.gguf_llama import build_tokenizer, convert_llama_gguf, digest_tensors
from vllm_helium.models.tiny import _byte_characters

gguf = pytest.importorskip("gguf")

LAYERS, HIDDEN, INNER, HEADS, KV_HEADS = 2, 64, 96, 4, 2
HEAD_DIM = HIDDEN // HEADS
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "he ll", "Ġ h", "Ġ 1", "1 2"]
TOKENS = SPECIAL + _byte_characters() + [merge.replace(" ", "") for merge in MERGES]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


def rotary_permutation(heads):
    """Row of the Hugging Face matrix that llama.cpp stores at each position."""
    half = HEAD_DIM // 2
    return [
        head * HEAD_DIM + part * half + pair
        for head in range(heads)
        for pair in range(half)
        for part in range(2)
    ]


@pytest.fixture
def weights():
    generator = np.random.default_rng(7)

    def matrix(rows, columns):
        return generator.standard_normal((rows, columns), dtype=np.float32)

    named = {
        "token_embd": matrix(len(TOKENS), HIDDEN),
        "output_norm": generator.random(HIDDEN, dtype=np.float32),
    }
    for layer in range(LAYERS):
        shapes = {
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
            "attn_output": (HIDDEN, HIDDEN),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, INNER),
        }
        for name, shape in shapes.items():
            named[f"blk.{layer}.{name}"] = matrix(*shape)
        for name in ("attn_norm", "ffn_norm"):
            named[f"blk.{layer}.{name}"] = generator.random(HIDDEN, dtype=np.float32)
    return named


def write_gguf(path, weights, *, pre="smollm", arch="llama", extra=()):
    """Writes the weights as llama.cpp would: q and k permuted, matrices quantized."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, weight in [*weights.items(), *extra]:
        if name.endswith("attn_q"):
            weight = weight[rotary_permutation(HEADS)]
        if name.endswith("attn_k"):
            weight = weight[rotary_permutation(KV_HEADS)]
        if weight.ndim == 1:
            writer.add_tensor(f"{name}.weight", weight)
        else:
            writer.add_tensor(f"{name}.weight", quantized(name, weight), raw_dtype=kind_of(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def kind_of(name):
    kinds = gguf.GGMLQuantizationType
    return kinds.Q8_0 if name == "token_embd" else kinds.Q4_1


def quantized(name, weight):
    return gguf.quants.quantize(weight, kind_of(name))


def rounded(name, weight):
    """What is left of a weight after quantization, in the original order of rows."""
    if weight.ndim == 1:
        return weight
    return gguf.quants.dequantize(quantized(name, weight), kind_of(name))


@pytest.fixture
def converted(tmp_path, weights):
    folder = tmp_path / "model"
    folder.mkdir()
    digest = convert_llama_gguf(write_gguf(tmp_path / "m.gguf", weights), folder)
    return folder, digest


def test_weights_are_dequantized_and_rows_of_q_and_k_put_back(converted, weights):
    tensors = load_file(converted[0] / "model.safetensors")
    assert len(tensors) == len(weights)
    for theirs, ours in (
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("blk.1.attn_q", "model.layers.1.self_attn.q_proj"),
        ("blk.1.attn_k", "model.layers.1.self_attn.k_proj"),
        ("blk.0.attn_v", "model.layers.0.self_attn.v_proj"),
        ("blk.0.attn_output", "model.layers.0.self_attn.o_proj"),
        ("blk.0.attn_norm", "model.layers.0.input_layernorm"),
        ("blk.0.ffn_norm", "model.layers.0.post_attention_layernorm"),
        ("blk.1.ffn_gate", "model.layers.1.mlp.gate_proj"),
        ("blk.1.ffn_up", "model.layers.1.mlp.up_proj"),
        ("blk.1.ffn_down", "model.layers.1.mlp.down_proj"),
    ):
        expected = rounded(theirs, weights[theirs])
        assert tensors[f"{ours}.weight"].dtype == np.float32
        np.testing.assert_array_equal(tensors[f"{ours}.weight"], expected, err_msg=ours)


def test_digest_names_the_written_weights(converted):
    folder, digest = converted
    tensors = load_file(folder / "model.safetensors")
    assert digest_tensors(tensors) == digest
    tensors["model.norm.weight"][3] += 1
    assert digest_tensors(tensors) != digest


def test_config_holds_the_metadata(converted):
    config = json.loads((converted[0] / "config.json").read_text())
    expected = {
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
        "rope_theta": 50000.0,
        "rms_norm_eps": 1e-5,
        "vocab_size": len(TOKENS),
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "dtype": "float32",
    }
    assert {key: config[key] for key in expected} == expected
    tokenizer_config = json.loads((converted[0] / "tokenizer_config.json").read_text())
    assert tokenizer_config["chat_template"] == TEMPLATE
    assert tokenizer_config["eos_token"] == "<|im_end|>"


def test_an_output_matrix_unties_the_embeddings(tmp_path, weights):
    head = ("output", weights["token_embd"][::-1].copy())
    convert_llama_gguf(write_gguf(tmp_path / "m.gguf", weights, extra=[head]), tmp_path)
    assert not json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]
    tensors = load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(tensors["lm_head.weight"], rounded(*head))


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("hello", ["hell", "o"]),
        ("hello hello", ["hell", "o", "Ġ", "hell", "o"]),
        ("12", ["1", "2"]),
        (" 1", ["Ġ", "1"]),
        (" h1", ["Ġh", "1"]),
        ("hell<|im_end|>o", ["hell", "<|im_end|>", "o"]),
        ("é", ["Ã", "©"]),
    ],
)
def test_tokenizer_merges_words_and_never_numerals(tmp_path, weights, text, tokens):
    tokenizer = build_tokenizer(gguf.GGUFReader(write_gguf(tmp_path / "m.gguf", weights)))
    encoding = tokenizer.encode(text)
    assert encoding.tokens == tokens
    assert tokenizer.decode(encoding.ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"pre": "qwen2"}, "tokenizer.ggml.pre"), ({"arch": "gemma"}, "general.architecture")],
)
def test_another_kind_of_model_is_refused(tmp_path, weights, changes, message):
    path = write_gguf(tmp_path / "m.gguf", weights, **changes)
    with pytest.raises(ConfigError, match=message):
        convert_llama_gguf(path, tmp_path)


def test_an_unknown_tensor_is_refused(tmp_path, weights):
    extra = ("blk.0.attn_gate", np.zeros((HIDDEN, HIDDEN), dtype=np.float32))
    path = write_gguf(tmp_path / "m.gguf", weights, extra=[extra])
    with pytest.raises(ConfigError, match="attn_gate"):
        convert_llama_gguf(path, tmp_path)
