"""Hooks ``engine-args`` and ``api-server-count``: the command line of ``vllm serve``.

The ``--helium*`` options are made from the fields of ``HeliumConfig``.
"""

from __future__ import annotations

import argparse
import logging
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic.fields import FieldInfo

from helium.cli.json_argument import json_object
from helium.errors import ConfigError
from vllm_helium.config import HeliumConfig, make_helium_config

logger = logging.getLogger(__name__)

__all__ = ["add_cli_args", "default_api_server_count", "make_helium_config"]


class _Merge(argparse.Action):
    """Merges one option into the dict ``args.helium``; any of them turns Helium on."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        merged = dict(getattr(namespace, "helium", None) or {})
        if self.const == "*":
            merged.update(values)
        elif self.const:
            merged[self.const] = values
        namespace.helium = merged


def add_cli_args(parser: argparse.ArgumentParser) -> None:
    """Adds the option group ``Helium`` to the parser of ``vllm serve``."""
    group = parser.add_argument_group("Helium", "Workflow-aware serving (off by default).")
    group.add_argument(
        "--helium",
        action=_Merge,
        nargs=0,
        default=False,
        help="Turn workflow-aware serving on with the defaults below. Any other --helium-* option "
        "turns it on as well.",
    )
    group.add_argument(
        "--helium-config",
        dest="helium",
        action=_Merge,
        const="*",
        type=_config_object,
        default=argparse.SUPPRESS,
        metavar="JSON",
        help="Any of the options below as one JSON object, for example "
        '\'{"order": "plan", "aging_s": 10}\'.',
    )
    hints = get_type_hints(HeliumConfig)
    for field in fields(HeliumConfig):
        info = field.default
        assert isinstance(info, FieldInfo), f"HeliumConfig.{field.name} has no Field()"
        hint = hints[field.name]
        choices = get_args(hint) if get_origin(hint) is Literal else None
        group.add_argument(
            f"--helium-{field.name.replace('_', '-')}",
            dest="helium",
            action=_Merge,
            const=field.name,
            type=str if choices else _boolean if hint is bool else hint,
            choices=choices,
            default=argparse.SUPPRESS,
            metavar=None if choices else hint.__name__.upper(),
            help=f"{info.description} (default: {info.default})",
        )


def default_api_server_count(args: argparse.Namespace) -> int | None:
    """Returns how many API servers to start: as asked for, or one where Helium is on.

    A run is worked on by one server, which places its calls on all ranks, merges equal ones and
    tells those who watch. Several servers work, but what one of them knows is no use to the others.

    Returns:
        ``None`` leaves it to upstream, which starts one per data-parallel rank.
    """
    count: int | None = args.api_server_count
    if count is not None or make_helium_config(getattr(args, "helium", None)) is None:
        return count
    num_ranks = getattr(args, "data_parallel_size", None) or 1
    if num_ranks > 1:
        logger.info(
            "Helium: one API server for %d data-parallel ranks; --api-server-count overrides it.",
            num_ranks,
        )
    return 1


def _config_object(text: str) -> dict[str, Any]:
    value = json_object(text)
    try:
        make_helium_config(value)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return value


def _boolean(text: str) -> bool:
    if text.lower() in ("true", "1", "yes", "on"):
        return True
    if text.lower() in ("false", "0", "no", "off"):
        return False
    raise argparse.ArgumentTypeError(f"expected true or false, got {text!r}")
