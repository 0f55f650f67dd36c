"""Builds the engine of a group and runs its systems on it, one after the other, from a cold cache.

Imports vLLM; `engine_group` prepares the process first.
"""

from __future__ import annotations

import gc
import json
import time
import traceback
from pathlib import Path
from typing import Any

from vllm import LLM

from benchmarks.baselines.systems import System, system
from benchmarks.gpu import kit
from benchmarks.gpu.engine_systems import Engine, run_system
from benchmarks.gpu.fixed_lengths import answer_lengths
from benchmarks.gpu.step_log import StepLog
from benchmarks.gpu.workloads import build
from benchmarks.workflows import Workload
from helium.templates.tokenizer import TransformersTokenizer
from vllm_helium.llm_backend import LLMBackend

GPU_ENGINE = {
    "dtype": "bfloat16",
    "block_size": 16,
    "max_num_seqs": 512,
    "max_num_batched_tokens": 4096,
    "max_model_len": 16_384,
    "gpu_memory_utilization": 0.9,
    "attention_backend": "TRITON_ATTN",
}
GRAPH_SIZES = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Batches whose decode steps are captured: the launches of 36 layers outlast a small step."""

CPU_ENGINE = {
    "dtype": "float32",
    "block_size": 32,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 2048,
    "max_model_len": 8192,
    "kv_cache_memory_bytes": 256 << 20,
    "enforce_eager": True,
}
MAX_STEPS = 4000
"""Steps kept of a run for the calibration, evenly picked."""

DRAIN_S = 30.0
"""For calls that were cut off to leave the engine."""


class Group:
    """An engine and the file that its results go to."""

    def __init__(self, job: dict[str, Any], notes: dict[str, Any]) -> None:
        """Starts the engine; this is where most of the memory goes."""
        started_s = time.monotonic()
        self.job = job
        options = engine_options(job)
        self._llm = LLM(**options)
        config = self._llm.llm_engine.vllm_config
        self._core: Any = self._llm.llm_engine.engine_core.engine_core
        self.log = StepLog(self._core.scheduler)
        cache = config.cache_config
        self._capacity_tokens = cache.num_gpu_blocks * cache.block_size
        self._tokenizer = TransformersTokenizer(self._llm.get_tokenizer())
        self.emit(
            "engine",
            start_s=time.monotonic() - started_s,
            options=options,
            num_kv_blocks=cache.num_gpu_blocks,
            block_size=cache.block_size,
            uses_v2_runner=bool(config.use_v2_model_runner),
            async_scheduling=bool(config.scheduler_config.async_scheduling),
            scheduler=type(self._core.scheduler).__name__,
            card=kit.card(),
            **notes,
        )

    def emit(self, kind: str, **values: Any) -> None:
        """Appends a line to the results."""
        with Path(self.job["results"]).open("a") as stream:
            stream.write(json.dumps({"kind": kind, "group": self.job["group"], **values}) + "\n")

    def run(self, one: System, workload: Workload, limit_s: float) -> dict[str, Any]:
        """Runs one system with a cold prefix cache; returns its figures.

        Raises:
            RuntimeError: The cache could not be emptied afterwards.
        """
        self.log.clear()
        gc.collect()
        with LLMBackend(self._llm) as backend:
            has_seeds = self.job["device"] != "cpu"
            engine = Engine(backend, self._tokenizer, self._capacity_tokens, has_seeds)
            figures = run_system(one, workload, engine, answer_lengths(workload.name), limit_s)
        drained_s = time.monotonic() + DRAIN_S
        while self._llm.llm_engine.has_unfinished_requests() and time.monotonic() < drained_s:
            self._llm.llm_engine.step()
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache is still in use; the next run would find it warm")
        unplanned = getattr(self._core.scheduler, "num_unplanned_contexts", 0)
        return {
            **figures,
            "num_prefill_tokens": self.log.num_prefill_tokens,
            "num_steps": len(self.log.steps),
            "num_unplanned_contexts": unplanned,
        }

    def close(self) -> None:
        """Shuts the engine down."""
        self._llm.llm_engine.engine_core.shutdown()


def run_group(job: dict[str, Any], notes: dict[str, Any]) -> None:
    """Runs a job's systems on its workloads until its deadline, the first workload first."""
    group = Group(job, notes)
    workloads = {entry["label"]: build(entry) for entry in job["workloads"]}
    # One small run first: kernels are compiled for the shapes that come.
    small = build(job["workloads"][0] | {"rows": 1, "seed": 9})
    warm = group.run(system("dataflow"), small, job["run_limit_s"])
    group.emit("warm_up", status=warm["status"], makespan_s=warm["makespan_s"])
    for label, workload in workloads.items():
        for name in job["systems"]:
            labels = {"workload": label, "system": name}
            left_s = job["deadline_s"] - time.time()
            if left_s < job["min_run_s"]:
                reason = f"no time left: {max(0.0, left_s):.0f} s of the group's"
                group.emit("skipped", **labels, reason=reason)
                continue
            try:
                figures = group.run(system(name), workload, min(job["run_limit_s"], left_s))
            except Exception as error:
                traceback.print_exc()
                group.emit("failed", **labels, reason=f"{type(error).__name__}: {error}"[:1000])
                continue
            group.emit("run", **labels, **figures)
            every = -(-len(group.log.steps) // MAX_STEPS) or 1
            group.emit("steps", **labels, steps=[list(s) for s in group.log.steps[::every]])
    group.emit("end")
    group.close()


def engine_options(job: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the job's ``LLM``."""
    options: dict[str, Any] = {
        "model": job["model"],
        "load_format": "dummy",
        "enable_prefix_caching": True,
        "seed": 0,
        "helium": job["helium"],
        "scheduler_cls": job["scheduler_cls"],
    }
    if job["device"] == "cpu":
        return options | CPU_ENGINE | job["engine"]
    mode = job["mode"]
    compilation: dict[str, Any] = {
        "mode": 0,  # no torch.compile: it would take minutes of a run that has eight
        "custom_ops": ["all" if mode["plain_kernels"] else "none"],
        "cudagraph_mode": "FULL_DECODE_ONLY" if mode["graphs"] else "NONE",
    }
    if mode["graphs"]:
        compilation["cudagraph_capture_sizes"] = list(GRAPH_SIZES)
    if not mode["plain_kernels"]:
        priority = {"rms_norm": ["native"], "fused_add_rms_norm": ["native"]}
        options["kernel_config"] = {"ir_op_priority": priority}
    return options | GPU_ENGINE | {"compilation_config": compilation} | job["engine"]
