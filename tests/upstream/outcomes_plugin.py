"""A pytest plugin that writes one JSON line per test: its id, its outcome, how it failed.

Lines are written as tests end, so a crash of the interpreter loses the crashing test alone.
"""

from __future__ import annotations

import json
import os

import pytest

MAX_REASON_CHARACTERS = 4000


class OutcomeRecorder:
    """Joins the three phases of each test into ``passed``, ``failed``, ``error`` or ``skipped``."""

    def __init__(self, path: str) -> None:
        self._file = open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115
        self._outcome = "passed"
        self._reason = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "setup":
            self._outcome, self._reason = "passed", ""
        if report.failed:
            self._outcome = "failed" if report.when == "call" else "error"
            self._reason = report.longreprtext[-MAX_REASON_CHARACTERS:]
        elif report.skipped and self._outcome == "passed":
            self._outcome = "skipped"
        if report.when == "teardown":
            self._write(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._outcome = "error"
            self._reason = report.longreprtext[-MAX_REASON_CHARACTERS:]
            self._write(report.nodeid)

    def pytest_unconfigure(self) -> None:
        self._file.close()

    def _write(self, test_id: str) -> None:
        line = {"id": test_id, "outcome": self._outcome, "reason": self._reason}
        self._file.write(json.dumps(line) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(OutcomeRecorder(os.environ["UPSTREAM_OUTCOMES"]), "outcomes")
