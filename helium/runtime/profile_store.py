"""Profiles on disk, one file per workflow signature, learned from runs as they go."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
from pathlib import Path

from helium.cost.profile import Profile, operator_signatures
from helium.errors import PlanError
from helium.plan.compiled_plan import CompiledPlan
from helium.plan.logical_plan import LogicalPlan
from helium.plan.operators import Llm
from helium.runtime.data_folder import data_folder
from helium.runtime.events import CallFinished, Event, FunctionFinished
from helium.templates.tokenizer import PromptTokenizer

logger = logging.getLogger(__name__)

_MAX_TOKENIZED = 32
"""Outputs of a function whose tokens are counted per run."""


def workflow_signature(plan: LogicalPlan) -> str:
    """Returns what a workflow is found again by, 24 hex digits.

    A hash of the signatures of its operators: names, order and embedded data do not count.
    """
    signatures = "\n".join(sorted(operator_signatures(plan).values()))
    return hashlib.sha256(signatures.encode()).hexdigest()[:24]


class ProfileStore:
    """A folder of profiles, shared by processes."""

    def __init__(self, folder: str | Path | None = None) -> None:
        """Makes nothing yet; the default is the user's data folder."""
        self.folder = Path(folder) if folder is not None else data_folder() / "profiles"

    def load(self, signature: str) -> Profile:
        """Returns the profile of a workflow; an empty one if there is none that can be read."""
        path = self._path(signature)
        try:
            return Profile.from_json(path.read_bytes())
        except FileNotFoundError:
            return Profile()
        except (OSError, PlanError) as error:
            logger.warning("profile %s cannot be read, starting anew: %s", path, error)
            return Profile()

    def add(self, signature: str, learned: Profile) -> None:
        """Merges what a run has learned into the workflow's profile.

        Raises:
            OSError: The folder cannot be written.
        """
        if not learned.outputs and not learned.columns:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            profile = self.load(signature)
            profile.merge(learned)
            with tempfile.NamedTemporaryFile(dir=self.folder, delete=False) as file:
                try:
                    file.write(profile.to_json())
                    file.flush()
                    os.replace(file.name, self._path(signature))
                except BaseException:
                    os.unlink(file.name)
                    raise

    def _path(self, signature: str) -> Path:
        return self.folder / f"{signature}.json"


class ProfileLearner:
    """Learns output lengths from a run's events; ``learned`` has what no profile knew before."""

    def __init__(self, compiled: CompiledPlan, tokenizer: PromptTokenizer | None) -> None:
        self._signatures = operator_signatures(compiled.plan)
        self._widths = {
            operator.name: operator.sampling.n
            for operator in compiled.plan.operators
            if isinstance(operator, Llm)
        }
        self._tokenizer = tokenizer
        self._texts: dict[str, list[str]] = {}
        self._learned = Profile()

    def observe(self, event: Event) -> None:
        """Takes note of an output; answers that cost an engine nothing tell nothing new."""
        if isinstance(event, CallFinished) and event.origin == "engine":
            if event.num_output_tokens:
                name = event.operator
                num_tokens = round(event.num_output_tokens / self._widths[name])
                self._learned.observe_output(self._signatures[name], num_tokens)
        elif isinstance(event, FunctionFinished):
            texts = self._texts.setdefault(event.operator, [])
            if len(texts) < _MAX_TOKENIZED:
                texts.append(event.output)

    def learned(self) -> Profile:
        """Returns what was learned; call it once, at the end."""
        if self._tokenizer is not None:
            for name, texts in self._texts.items():
                for text in texts:
                    num_tokens = len(self._tokenizer.encode(text).token_ids)
                    self._learned.observe_output(self._signatures[name], num_tokens)
        return self._learned
