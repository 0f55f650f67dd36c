"""Options that several subcommands have, and what is made of them."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from helium.cli.json_argument import json_object
from helium.errors import ConfigError
from helium.runtime import (
    ProfileStore,
    PromptCache,
    RetryPolicy,
    RunStore,
    Runtime,
    RuntimeOptions,
)
from helium.runtime.backend import EngineBackend
from helium.runtime.data_folder import data_folder
from helium.runtime.http_backend import http_backends
from helium.templates.tokenizer import PromptTokenizer, TransformersTokenizer

Parser = argparse.ArgumentParser
Options = argparse.Namespace


def add_workflow(parser: Parser) -> None:
    """Adds what is run, and on what."""
    parser.add_argument(
        "workflow", help="module:attribute, file.py:attribute, or the path of a JSON plan"
    )
    parser.add_argument("--batch", metavar="FILE", help="rows: .json, .jsonl or .csv")
    parser.add_argument(
        "--set",
        metavar="COLUMN=VALUE",
        action="append",
        default=[],
        help="a value that goes with every row; @FILE takes it from a file",
    )
    add_import(parser)


def add_import(parser: Parser) -> None:
    """Adds where the functions of a workflow come from."""
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="a module or .py file that registers functions",
    )


def add_analysis(parser: Parser) -> None:
    """Adds what is written of a run beside its result."""
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="what ran when, for ui.perfetto.dev"
    )
    parser.add_argument(
        "--analyze",
        type=Path,
        metavar="FILE",
        help="predicted and measured figures; .html, .json, anything else is text",
    )


def add_engines(parser: Parser, *, is_required: bool = True) -> None:
    """Adds the engines and how they are called."""
    where = parser.add_mutually_exclusive_group(required=is_required)
    where.add_argument(
        "--engine",
        metavar="URL",
        action="append",
        default=[],
        help="address of an OpenAI-compatible server, up to /v1; again for each identical engine; "
        "one with data parallelism counts as its engines",
    )
    where.add_argument(
        "--ray",
        metavar="N",
        type=count,
        help="starts N engines in actors of the Ray cluster of RAY_ADDRESS, or of a local one",
    )
    parser.add_argument(
        "--engine-args",
        metavar="JSON",
        type=json_object,
        default={},
        help="with --ray: arguments of LLM, and num_cpus, num_gpus, max_restarts of each actor",
    )
    parser.add_argument(
        "--model", help="model to call, default: the server's first; with --ray the model to load"
    )
    parser.add_argument("--api-key", default="none")
    parser.add_argument(
        "--tokenizer",
        metavar="NAME",
        help="the model's tokenizer, by folder or name; without it engines are given no schedule; "
        "with --ray the model's own by default",
    )
    parser.add_argument("--call-timeout", type=seconds, metavar="S", help="per attempt at a call")
    parser.add_argument("--max-attempts", type=count, metavar="N", default=6, help="per call")
    parser.add_argument(
        "--function-timeout", type=seconds, metavar="S", default=60.0, help="per row"
    )
    parser.add_argument(
        "--revision",
        metavar="NAME",
        help="names what the engines serve: model, its revision, precision, chat template; with "
        "it, answers of greedy and seeded calls are cached",
    )
    add_cache(parser)


def add_server(
    parser: Parser,
    command: Callable[[Options], int],
    *,
    is_required: bool = False,
    what: str = "instead of this machine's files",
) -> None:
    """Adds a server whose workflow routes the subcommand uses, and what it does there."""
    parser.set_defaults(remote=command)
    parser.add_argument(
        "--server",
        metavar="URL",
        required=is_required,
        help=f"a server started with --helium; {what}",
    )
    parser.add_argument("--api-key", default="none", help="of the server")


def add_cache(parser: Parser) -> None:
    """Adds where the prompt cache is."""
    parser.add_argument(
        "--cache", metavar="FILE", type=Path, default=data_folder() / "prompts.db", help="its file"
    )
    parser.add_argument(
        "--cache-bytes", type=count, metavar="N", default=1 << 30, help="bound on its entries"
    )


def add_store(parser: Parser) -> None:
    """Adds where runs are."""
    parser.add_argument(
        "--store",
        metavar="FILE",
        type=Path,
        default=data_folder() / "runs.db",
        help="the file of runs",
    )


class Session:
    """The runtime of one command; an async context manager that closes what it opened."""

    def __init__(self, options: Options, *, has_cache: bool = True) -> None:
        """Opens nothing yet.

        Args:
            has_cache: Whether the prompt cache may be used, if there is a revision.
        """
        self._options = options
        self._has_cache = has_cache and options.revision is not None
        self._cache: PromptCache | None = None

    async def __aenter__(self) -> Runtime:
        options = self._options
        tokenizer = load_tokenizer(options.tokenizer or (options.model if options.ray else None))
        self._backends = await _backends(options)
        self._store = RunStore(options.store)
        if self._has_cache:
            self._cache = PromptCache(options.cache, max_bytes=options.cache_bytes)
        self._runtime = Runtime(
            self._backends,
            tokenizer,
            revision=options.revision,
            prompt_cache=self._cache,
            store=self._store,
            profiles=ProfileStore(),
            options=RuntimeOptions(
                retries=RetryPolicy(max_attempts=options.max_attempts),
                call_timeout_s=options.call_timeout,
                function_timeout_s=options.function_timeout,
            ),
        )
        return self._runtime

    async def __aexit__(self, *_: object) -> None:
        await self._runtime.close()
        for backend in self._backends:
            await backend.close()
        if self._cache is not None:
            self._cache.close()
        self._store.close()


class _Engine(EngineBackend, Protocol):
    async def close(self) -> None: ...


async def _backends(options: Options) -> list[_Engine]:
    """Returns the engines asked for, started where they are ours.

    Raises:
        ConfigError: Ray is not installed, or the options do not go together.
        EngineError: An engine did not start.
    """
    if options.ray is None:
        if options.engine_args:
            raise ConfigError("--engine-args are for engines that are started here; add --ray N")
        found: list[_Engine] = []
        for url in options.engine:
            found += await http_backends(
                url.rstrip("/"), model=options.model, api_key=options.api_key
            )
        return found
    if options.model is None:
        raise ConfigError("--ray: name the model that the engines load: --model NAME")
    try:
        module: Any = importlib.import_module("vllm_helium.ray_engines")
    except ImportError as error:
        raise ConfigError(f"--ray: engines cannot be started here: {error}") from error
    try:
        engines: list[_Engine] = module.ray_engines(
            options.model, options.ray, **options.engine_args
        )
    except TypeError as error:
        raise ConfigError(f"--engine-args: {error}") from error
    return engines


def load_tokenizer(name: str | None) -> PromptTokenizer | None:
    """Loads a Hugging Face tokenizer.

    Raises:
        ConfigError: It cannot be loaded.
    """
    if name is None:
        return None
    try:
        transformers: Any = importlib.import_module("transformers")
        return TransformersTokenizer(transformers.AutoTokenizer.from_pretrained(name))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"tokenizer {name!r} cannot be loaded: {error}") from error


def seconds(text: str) -> float:
    """Reads a positive number of seconds."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"expected a positive number of seconds, got {text}")
    return value


def count(text: str) -> int:
    """Reads a positive whole number."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
    return value
