from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from helium.templates import Template, TemplateTree, VariableRun
from helium.templates.rendering import Value, token_ids
from helium.templates.tree import common_prefix


def _static(*tokens: int) -> bytes:
    return array("i", tokens).tobytes()


def _value(name: str) -> VariableRun:
    return VariableRun(name, Value(name, name, False), 0)


def _tree(**templates: Template) -> TemplateTree:
    tree = TemplateTree()
    for name, template in templates.items():
        tree.insert(name, template)
    tree.check_integrity()
    return tree


def _flat(template: Template) -> list[object]:
    items: list[object] = []
    for run in template:
        items += [run] if isinstance(run, VariableRun) else list(token_ids(run))
    return items


_runs = st.lists(
    st.builds(lambda tokens: _static(*tokens), st.lists(st.integers(0, 2), min_size=1, max_size=5))
    | st.sampled_from([_value("x"), _value("y")]),
    max_size=5,
).map(tuple)


@given(st.lists(_runs, min_size=1, max_size=8))
def test_tree_holds_every_prefix_once(templates: list[Template]) -> None:
    """Against the dumb oracle: the set of all item prefixes."""
    tree = _tree(**{f"op{i}": template for i, template in enumerate(templates)})
    prefixes = {tuple(_flat(t)[:n]) for t in templates for n in range(1, len(_flat(t)) + 1)}
    items = sum(len(_flat((run,))) for run in tree.runs[1:])
    assert items == len(prefixes)
    for index, template in enumerate(templates):
        path = tree.path(tree.leaves[f"op{index}"])
        assert _flat(tuple(tree.runs[node] for node in path)) == _flat(template)
    uses = tree.num_uses(lambda _: 1)
    assert uses[0] == len(templates)
    for node in range(1, tree.num_nodes):
        path_items = _flat(tuple(tree.runs[n] for n in tree.path(node)))
        expected = sum(_flat(t)[: len(path_items)] == path_items for t in templates)
        assert uses[node] == expected


def test_a_prompt_may_be_a_prefix_of_another() -> None:
    tree = _tree(long=(_static(1, 2, 3, 4),), short=(_static(1, 2),), empty=())
    assert tree.path(tree.leaves["long"])[0] == tree.leaves["short"]
    assert tree.leaves["empty"] == 0


def test_splitting_keeps_earlier_leaves() -> None:
    tree = _tree(a=(_static(1, 2, 3),), b=(_static(1, 2, 4),), c=(_static(1, 5),))
    for name, tokens in {"a": [1, 2, 3], "b": [1, 2, 4], "c": [1, 5]}.items():
        path = tree.path(tree.leaves[name])
        assert _flat(tuple(tree.runs[node] for node in path)) == tokens


def test_static_prefixes_end_where_rows_or_operators_part() -> None:
    q = _value("q")
    tree = _tree(
        a=(_static(1, 2, 3), q),
        b=(_static(1, 2, 4), q),
        c=(
            _static(
                9,
            ),
            q,
        ),
        d=(q, _static(1, 2)),
    )
    calls = {"a": 10, "b": 10, "c": 1, "d": 10}
    found = tree.static_prefixes(tree.num_uses(calls.__getitem__))
    assert [(list(token_ids(p.token_ids)), p.num_uses) for p in found] == [
        ([1, 2, 3], 10),
        ([1, 2, 4], 10),
    ]


@given(st.lists(st.integers(0, 1), max_size=20), st.lists(st.integers(0, 1), max_size=20))
def test_common_prefix_equals_counting(a: list[int], b: list[int]) -> None:
    expected = 0
    while expected < min(len(a), len(b)) and a[expected] == b[expected]:
        expected += 1
    assert common_prefix(_static(*a), _static(*b)) == 4 * expected
