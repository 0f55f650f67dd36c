"""One run of the matrix, kept under a key of everything its figures depend on.

A run is known by its setting, the system, the workload itself (its graph and rows) and the code
that decides its outcome. Stock vLLM under a plain order depends on far less of this repository than
our own systems, so that its runs stay valid while scheduler and planner change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.baselines.systems import System
from benchmarks.simulated_run import Setting, run_system

REPO = Path(__file__).resolve().parents[2]
STORE = REPO / "benchmarks" / "results" / "local"

_EVERY_RUN = (
    "benchmarks/baselines/dataflow.py",
    "benchmarks/baselines/orders.py",
    "benchmarks/baselines/parrot.py",
    "benchmarks/baselines/system_runner.py",
    "benchmarks/output_lengths.py",
    "benchmarks/simulated_run.py",
    "helium/cost/roofline.py",
    "helium/plan/compiled_plan.py",
    "helium/plan/interpret.py",
    "helium/plan/rows.py",
    "helium/plan/text.py",
    "vllm_helium/simulator",
)
_PLANNED = (
    *_EVERY_RUN, "helium/cost", "helium/plan", "helium/planner", "helium/templates",
    "helium/protocol.py", "vllm_helium/request.py",
)  # fmt: skip
_OUR_RUNTIME = (*_PLANNED, "helium")
_OUR_ENGINE = (*_OUR_RUNTIME, "patches", "csrc", "vllm_helium")
_SUFFIXES = (".py", ".h", ".cpp", ".patch", ".toml")
_NOT_ON_THE_PATH = ("helium/cli", "helium/explain", "vllm_helium/kernels", "vllm_helium/serving")

SECONDS_PER_CALL = 0.03
"""Wall time of a simulated call where nothing is known yet; thousands of calls take minutes."""


@dataclass(frozen=True)
class Case:
    """A system on a setting."""

    setting: Setting
    system: System

    def __post_init__(self) -> None:
        # A hash of all fields: systems hold mappings, which have none.
        object.__setattr__(self, "_text", json.dumps(asdict(self), sort_keys=True))

    def __hash__(self) -> int:
        return hash(self._text)  # type: ignore[attr-defined]

    @property
    def title(self) -> str:
        """One line for people; the same in every version of the code."""
        return f"{self.setting.title()}: {self.system.name}"

    def key(self) -> str:
        """Returns the digest of everything the figures depend on."""
        digest = hashlib.sha256()
        system = replace(self.system, name="", source="")
        chosen = [_chosen(self.setting), _chosen(system)]
        digest.update(json.dumps(chosen, sort_keys=True).encode())
        digest.update(_workload_digest(self.setting).encode())
        digest.update(code_digest(_code_of(self.system)).encode())
        return digest.hexdigest()[:24]

    @property
    def num_calls(self) -> int:
        """Calls of the workflow as written, both days where one warms the caches."""
        return _num_calls(self.setting) * (1 + self.setting.is_warm)


@dataclass
class Store:
    """Finished runs on disk, one JSON file per key.

    Attributes:
        num_new: Runs made since the store was opened.
    """

    folder: Path = STORE
    num_new: int = 0
    _rates: dict[str, float] = field(default_factory=dict)

    def find(self, case: Case) -> dict[str, Any] | None:
        """Returns the case's run, if it was made with the same code."""
        path = self._path(case)
        return json.loads(path.read_text()) if path.exists() else None

    def run(self, case: Case) -> dict[str, Any]:
        """Makes the case's run and keeps it.

        Raises:
            HeliumError: The run failed.
        """
        result = json.loads(json.dumps(run_system(case.setting, case.system)))
        result["key"], result["title"] = case.key(), case.title
        self._rates[case.system.name] = result["wall"]["run_s"] / case.num_calls
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(case)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")
        partial.replace(path)
        self.num_new += 1
        return result

    def estimate_s(self, case: Case) -> float:
        """Returns how long a run is likely to take here, in seconds."""
        rate = self._rates.get(case.system.name)
        if rate is None:
            rate = max(self._rates.values(), default=SECONDS_PER_CALL)
            if case.system.order == "query_wise":
                rate = max(rate, 10 * SECONDS_PER_CALL)  # a step serves one sequence only
        return rate * case.num_calls

    def _path(self, case: Case) -> Path:
        return self.folder / f"{case.key()}.json"


def _chosen(options: Setting | System) -> dict[str, Any]:
    """Returns what differs from the defaults: a new option leaves the other keys as they are."""
    values = asdict(options)
    return {
        option.name: values[option.name]
        for option in fields(options)
        if option.default is MISSING or values[option.name] != option.default
    }


@cache
def code_digest(paths: tuple[str, ...]) -> str:
    """Returns a digest of the sources under some paths of the repository."""
    digest = hashlib.sha256()
    for path in sorted(set(_sources(paths))):
        digest.update(f"{path.relative_to(REPO)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _code_of(system: System) -> tuple[str, ...]:
    code = _EVERY_RUN
    if system.helium is not None:
        code = _OUR_ENGINE
    elif system.order == "plan":
        code = _OUR_RUNTIME
    elif system.has_context:
        code = _PLANNED
    return code + (() if system.scheduler_cls is None else _module_of(system.scheduler_cls))


def _module_of(dotted: str) -> tuple[str, ...]:
    module = dotted.rpartition(".")[0].replace(".", "/") + ".py"
    return (module,) if (REPO / module).exists() else ()


def _sources(paths: Iterable[str]) -> Iterator[Path]:
    for name in paths:
        root = REPO / name
        for path in [root] if root.is_file() else root.rglob("*"):
            relative = path.relative_to(REPO).as_posix()
            if path.suffix in _SUFFIXES and not relative.startswith(_NOT_ON_THE_PATH):
                yield path


@cache
def _num_calls(setting: Setting) -> int:
    compiled = setting.workload().compile()
    return sum(compiled.rows.num_rows(operator.name) for operator in compiled.plan.llm_operators)


@cache
def _workload_digest(setting: Setting) -> str:
    digest = hashlib.sha256()
    for day in (1, 2) if setting.is_warm else (1,):
        workload = setting.workload(day)
        digest.update(workload.graph.plan.digest().encode())
        for column, values in sorted(workload.batch.items()):
            digest.update(f"\0{column}\0".encode())
            for value in values:
                digest.update(hashlib.sha256(value.encode()).digest())
    return digest.hexdigest()
