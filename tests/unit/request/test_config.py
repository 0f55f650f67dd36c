"""``HeliumConfig``: frozen, strict, and the same on the command line."""

import argparse
from dataclasses import FrozenInstanceError, fields

import pytest

from helium.errors import ConfigError
from vllm_helium.config import HeliumConfig, make_helium_config
from vllm_helium.integration.engine_args import add_cli_args, default_api_server_count


def parse(*argv: str):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_cli_args(parser)
    return make_helium_config(parser.parse_args(argv).helium)


def test_off_by_default():
    assert parse() is None
    assert make_helium_config(None) is make_helium_config(False) is None


def test_the_forms_of_on_agree():
    assert parse("--helium") == make_helium_config(True) == make_helium_config({}) == HeliumConfig()


def test_any_option_turns_it_on_and_options_merge():
    config = parse("--helium-order", "fcfs", "--helium-config", '{"aging_s": 2.5}', "--helium")
    assert config == HeliumConfig(order="fcfs", aging_s=2.5)


def test_one_api_server_is_the_default_with_helium_alone():
    def count(*argv, asked=None):
        parser = argparse.ArgumentParser()
        parser.add_argument("--data-parallel-size", type=int, default=1)
        parser.add_argument("--api-server-count", type=int, default=asked)
        add_cli_args(parser)
        return default_api_server_count(parser.parse_args(argv))

    assert count("--data-parallel-size", "2", "--helium") == count("--helium") == 1
    assert count("--helium", "--api-server-count", "3") == 3
    assert count("--helium", asked=0) == 0, "of a headless node"
    assert count("--data-parallel-size", "2") is None, "upstream's own default"


def test_every_field_has_an_option_with_its_default_in_the_help():
    parser = argparse.ArgumentParser()
    add_cli_args(parser)
    text = " ".join(parser.format_help().split())
    for field in fields(HeliumConfig):
        assert f"--helium-{field.name.replace('_', '-')}" in text
        assert f"(default: {field.default.default})" in text


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"colour": 1}, "helium.colour"),
        ({"order": "random"}, "helium.order"),
        ({"aging_s": 0.0}, "helium.aging_s"),
        ({"aging_s": float("nan")}, "helium.aging_s"),
        ({"aging_s": "30"}, "helium.aging_s"),
        ({"max_plans": 0}, "helium.max_plans"),
        ({"max_plans": 2.5}, "helium.max_plans"),
        ("yes", "got str"),
        (3, "got int"),
    ],
)
def test_a_bad_value_is_refused_and_named(value, named):
    with pytest.raises(ConfigError, match=named):
        make_helium_config(value)


@pytest.mark.parametrize(
    "argv",
    [
        ["--helium-order", "sideways"],
        ["--helium-max-plans", "many"],
        ["--helium-config", "{"],
        ["--helium-config", "[]"],
        ["--helium-config", '{"colour": 1}'],
    ],
)
def test_a_bad_option_is_refused(argv):
    with pytest.raises((argparse.ArgumentError, SystemExit)):
        parse(*argv)


def test_config_is_frozen():
    with pytest.raises(FrozenInstanceError):
        HeliumConfig().order = "fcfs"
