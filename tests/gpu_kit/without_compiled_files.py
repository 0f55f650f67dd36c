"""A process without vLLM's compiled files, on a GPU that is only claimed: what the kit relies on.

    python without_compiled_files.py FOLDER

FOLDER gets vLLM's Python files as links, without any compiled one, and a model folder. Prints JSON:
the operators that stand in, and how an engine of every mode would be built.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[2]


def link_tree(target: Path) -> None:
    """Lays vLLM out as the kit's archive does: Python files, stand-ins, a CUDA build's name."""
    from benchmarks.gpu.pack import STUB
    from benchmarks.gpu.plain_ops import COMPILED_MODULES

    source = Path(next(iter(find_spec("vllm").submodule_search_locations)))
    for folder, _, names in os.walk(source):
        place = target / "vllm" / Path(folder).relative_to(source)
        place.mkdir(parents=True, exist_ok=True)
        for name in names:
            if not name.endswith((".so", ".pyc")):
                (place / name).symlink_to(Path(folder, name))
    for name in COMPILED_MODULES:
        target.joinpath(*name.split(".")).with_suffix(".py").write_text(STUB)
    metadata = target / "vllm-0.32.0+helium.kit.cu13.dist-info"
    metadata.mkdir()
    content = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+helium.kit.cu13\n"
    (metadata / "METADATA").write_text(content)


def claim_gpu() -> None:
    """Makes torch say that there is an H100."""
    import torch

    properties = SimpleNamespace(
        name="NVIDIA H100 80GB HBM3", total_memory=85 * 10**9, multi_processor_count=132,
        major=9, minor=0,
    )  # fmt: skip
    torch.cuda.is_available = lambda: True
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.get_device_name = lambda device=None: properties.name
    torch.cuda.get_device_properties = lambda device=None: properties


def main(folder: Path) -> None:
    sys.path.insert(0, str(ROOT))
    link_tree(folder / "tree")
    sys.path.insert(0, str(folder / "tree"))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder / "tree"), str(ROOT)])
    claim_gpu()
    from benchmarks.gpu import model_folder, plain_ops, run_workflows, workloads

    # They put the repository first, where an editable install leaves a CPU build's name.
    sys.path.insert(0, str(folder / "tree"))
    found = {"missing": plain_ops.missing_modules(), "operators": plain_ops.install()}
    import vllm.platforms as platforms

    platforms.builtin_platform_plugins = {"cuda": lambda: "vllm.platforms.cuda.CudaPlatform"}
    from vllm.platforms import current_platform

    found["platform"] = [type(current_platform).__name__, current_platform.is_cuda()]
    from vllm.engine.arg_utils import EngineArgs

    from benchmarks.gpu import group_runs

    words = workloads.all_words([workloads.build(workloads.TINY[1])])
    model = model_folder.write_model(folder / "model", "Qwen3-8B", words)
    found["engines"] = []
    for mode, helium in zip(
        run_workflows.MODES, (True, False, {"prefix_index": "stock"}), strict=True
    ):
        if not mode["v2_runner"]:
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        job = {"model": str(model), "helium": helium, "scheduler_cls": None, "device": "cuda",
               "mode": mode, "engine": {}}  # fmt: skip
        config = EngineArgs(**group_runs.engine_options(job)).create_engine_config()
        found["engines"].append(
            [
                bool(config.use_v2_model_runner),
                bool(config.scheduler_config.async_scheduling),
                config.scheduler_config.get_scheduler_cls().__name__,
                config.compilation_config.cudagraph_mode.name,
                config.attention_config.backend.name,
            ]
        )
    # What a worker imports: none of it may ask for a compiled file.
    import vllm.model_executor.models.qwen3
    import vllm.v1.attention.backends.triton_attn
    import vllm.v1.worker.gpu.model_runner
    import vllm.v1.worker.gpu_model_runner
    import vllm.v1.worker.gpu_worker  # noqa: F401

    found["compiled"] = sorted(
        name
        for name, module in sys.modules.items()
        if name.startswith("vllm.") and (getattr(module, "__file__", None) or "").endswith(".so")
    )
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
