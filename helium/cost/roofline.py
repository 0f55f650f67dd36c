"""A roofline model of continuous batching: step time from FLOPs and bytes.

A step takes the longer of its arithmetic and its memory traffic, plus a fixed overhead. Presets
hold published figures of devices and architectures; the efficiencies are assumptions, stated here,
to be calibrated per installation.
"""

from __future__ import annotations

from dataclasses import dataclass

from helium.errors import ConfigError


@dataclass(frozen=True)
class Device:
    """An accelerator, or the CPU.

    Attributes:
        flops: Peak dense FLOP/s in the model's data type.
        bandwidth: Peak memory bandwidth, bytes/s.
        memory_bytes: Memory of the device.
        flops_ratio: Share of the peak that prefill reaches (assumption).
        bandwidth_ratio: Share of the peak that decode reaches (assumption).
        step_overhead_ms: Time of a step that does nothing: scheduling, launches, sampling
            (assumption).
        memory_ratio: Share of the memory the engine may use (vLLM's default).
        link_bandwidth: To host memory, each direction, bytes/s (assumption: what copies of a few
            MiB reach on PCIe 5 x16, whose data sheet says 64 GB/s).
    """

    name: str
    flops: float
    bandwidth: float
    memory_bytes: float
    flops_ratio: float = 0.55
    bandwidth_ratio: float = 0.75
    step_overhead_ms: float = 4.0
    memory_ratio: float = 0.9
    link_bandwidth: float = 55e9


@dataclass(frozen=True)
class ModelShape:
    """A dense transformer with grouped-query attention.

    Attributes:
        num_parameters: All weights, embeddings included.
        embedding_parameters: Weights of the input embedding, which is a lookup and no arithmetic;
            0 where the output layer is tied to it.
        bytes_per_value: Of weights and KV (2 for bfloat16).
    """

    name: str
    num_parameters: float
    embedding_parameters: float
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    bytes_per_value: int = 2

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * self.bytes_per_value

    @property
    def active_parameters(self) -> float:
        """Weights that take part in the arithmetic of a token."""
        return self.num_parameters - self.embedding_parameters

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights read in a step."""
        return self.active_parameters * self.bytes_per_value

    def attention_flops(self, num_tokens: float, num_context_tokens: float) -> float:
        """FLOPs of ``num_tokens`` queries over ``num_context_tokens`` keys each, all layers."""
        width = self.num_layers * self.num_heads * self.head_size
        return 4.0 * num_tokens * num_context_tokens * width


# Source: NVIDIA's data sheets; dense bfloat16, SXM unless it says NVL.
DEVICES = {
    "H100-80GB": Device("H100-80GB", 989e12, 3.35e12, 80e9),
    "H100-NVL": Device("H100-NVL", 835e12, 3.9e12, 94e9),
    "H200": Device("H200", 989e12, 4.8e12, 141e9),
    # Two shared cores with AVX-512 in float32: an assumption, not a data sheet.
    "cpu": Device("cpu", 120e9, 15e9, 8e9, step_overhead_ms=2.0, link_bandwidth=5e9),
}

# Source: the config.json each model is published with.
MODELS = {
    "Qwen3-8B": ModelShape("Qwen3-8B", 8.19e9, 151_936 * 4_096, 36, 32, 8, 128),
    "Qwen3-14B": ModelShape("Qwen3-14B", 14.77e9, 151_936 * 5_120, 40, 40, 8, 128),
    "Qwen3-32B": ModelShape("Qwen3-32B", 32.76e9, 151_936 * 5_120, 64, 64, 8, 128),
    "Llama-3.1-8B": ModelShape("Llama-3.1-8B", 8.03e9, 128_256 * 4_096, 32, 32, 8, 128),
    "SmolLM2-135M": ModelShape("SmolLM2-135M", 134.5e6, 0, 30, 9, 3, 64, bytes_per_value=4),
}


@dataclass(frozen=True)
class RooflineModel:
    """Step times, and from them the cost of a call in a steady batch; all in milliseconds.

    Attributes:
        batch_size: Sequences that decode together, which share a step's fixed costs. At most what
            the KV cache holds matters; 64 is what workflows of the paper's size keep running.
        is_serial: Arithmetic and memory traffic add up instead of overlapping: the pessimistic end
            of what a device does, for sensitivity studies.
    """

    device: Device
    shape: ModelShape
    batch_size: int = 64
    is_serial: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size must be 1 or more, got {self.batch_size}")
        if self.kv_capacity_tokens < 1:
            raise ConfigError(
                f"{self.shape.name} does not fit {self.device.name}: weights take "
                f"{self.shape.num_parameters * self.shape.bytes_per_value / 1e9:.1f} GB of "
                f"{self.device.memory_bytes * self.device.memory_ratio / 1e9:.1f} GB; use a larger "
                "device or a smaller model"
            )

    @classmethod
    def preset(cls, device: str, model: str, batch_size: int = 64) -> RooflineModel:
        """Returns the model of a known device and architecture.

        Raises:
            ConfigError: One of them is unknown, or the model does not fit.
        """
        for kind, name, known in (("device", device, DEVICES), ("model", model, MODELS)):
            if name not in known:
                raise ConfigError(f"unknown {kind} {name!r}; known: {list(known)}")
        return cls(DEVICES[device], MODELS[model], batch_size)

    @property
    def unit(self) -> str:
        return "ms"

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of KV the device holds beside the weights."""
        free = self.device.memory_bytes * self.device.memory_ratio
        free -= self.shape.num_parameters * self.shape.bytes_per_value
        return int(free // self.shape.kv_bytes_per_token)

    def step_ms(
        self,
        prefill_tokens: float,
        prefill_context_tokens: float,
        decode_sequences: int,
        decode_context_tokens: float,
    ) -> float:
        """Returns the time of one engine step.

        Args:
            prefill_tokens: Prompt tokens computed in this step, over all requests.
            prefill_context_tokens: Keys each of them attends to, on average.
            decode_sequences: Sequences that generate one token each.
            decode_context_tokens: Keys they attend to, summed over the sequences.
        """
        tokens = prefill_tokens + decode_sequences
        flops = 2.0 * self.shape.active_parameters * tokens
        flops += self.shape.attention_flops(prefill_tokens, prefill_context_tokens)
        flops += self.shape.attention_flops(1, decode_context_tokens)
        kv_tokens = decode_context_tokens + tokens
        kv_tokens += prefill_context_tokens if prefill_tokens else 0.0
        read = self.shape.weight_bytes + kv_tokens * self.shape.kv_bytes_per_token
        times_ms = self._compute_ms(flops), self._traffic_ms(read)
        return (sum if self.is_serial else max)(times_ms) + self.device.step_overhead_ms

    def usage(self, prefill_tokens: float, cached_tokens: float, output_tokens: float) -> float:
        """See ``CostModel``: prefill arithmetic, own KV traffic, and a share of the fixed costs."""
        mean_context = cached_tokens + prefill_tokens / 2
        flops = 2.0 * self.shape.active_parameters * prefill_tokens
        flops += self.shape.attention_flops(prefill_tokens, mean_context)
        prompt = cached_tokens + prefill_tokens
        kv_tokens = output_tokens * (prompt + (output_tokens + 1) / 2)
        decode_ms = self._traffic_ms(kv_tokens * self.shape.kv_bytes_per_token)
        fixed_ms = self._traffic_ms(self.shape.weight_bytes) + self.device.step_overhead_ms
        return self._compute_ms(flops) + decode_ms + output_tokens * fixed_ms / self.batch_size

    def delay(self, prompt_tokens: float, output_tokens: float) -> float:
        """See ``CostModel``: the steps of its decode, in a batch of sequences like it."""
        context = self.batch_size * (prompt_tokens + output_tokens / 2)
        context = min(context, self.kv_capacity_tokens)
        step_ms = self.step_ms(0, 0, self.batch_size, context)
        return output_tokens * step_ms

    def _compute_ms(self, flops: float) -> float:
        return 1e3 * flops / (self.device.flops * self.device.flops_ratio)

    def _traffic_ms(self, num_bytes: float) -> float:
        return 1e3 * num_bytes / (self.device.bandwidth * self.device.bandwidth_ratio)
