"""Examples in docstrings of the language, the plan and the optimizer run."""

import doctest
import importlib
import pkgutil

import pytest

import helium.dsl
import helium.optimizer
import helium.plan

MODULES = [
    info.name
    for package in (helium.dsl, helium.optimizer, helium.plan)
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_every_rule_has_an_example():
    names = [name for name in MODULES if name.startswith("helium.optimizer.rules.")]
    assert len(names) == 6
    for name in names:
        assert doctest.testmod(importlib.import_module(name)).attempted > 0
