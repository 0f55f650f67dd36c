"""Ordinary traffic and the ratios that its replays are judged by."""

import json
import statistics

import pytest

from benchmarks.prefix_cache import ordinary_replay
from benchmarks.prefix_cache.chat_traffic import conversations, made_up_answer

TRAFFIC = {"count": 400, "per_second": 5.0, "mean_think_s": 2.0, "max_tokens": 4_000}


def test_equal_seeds_give_equal_conversations_and_other_seeds_others():
    drawn = conversations(seed=3, **TRAFFIC)
    assert drawn == conversations(seed=3, **TRAFFIC)
    assert drawn != conversations(seed=4, **TRAFFIC)


def test_conversations_have_several_turns_and_fit():
    drawn = conversations(seed=1, **TRAFFIC)
    assert 2.5 < statistics.fmean(len(one.turns) for one in drawn) < 4.0
    assert all(one.turns for one in drawn)
    assert all(one.num_tokens() <= 4_000 for one in drawn if len(one.turns) > 1)
    arrivals = [one.arrival_s for one in drawn]
    assert arrivals == sorted(arrivals)
    assert 400 / arrivals[-1] == pytest.approx(5.0, rel=0.2)


def test_some_conversations_open_alike():
    drawn = conversations(seed=1, **TRAFFIC)
    heads = [one.turns[0].question[:16] for one in drawn if len(one.turns[0].question) >= 16]
    num_shared = sum(heads.count(head) > 1 for head in heads)
    assert 0.25 < num_shared / len(heads) < 0.6


def test_nobody_thinks_where_there_are_no_pauses_and_lengths_scale():
    full = conversations(seed=1, **(TRAFFIC | {"mean_think_s": 0.0, "max_tokens": 1 << 30}))
    third = conversations(
        seed=1, scale=0.3, **(TRAFFIC | {"mean_think_s": 0.0, "max_tokens": 1 << 30})
    )
    assert all(turn.think_s == 0 for one in full for turn in one.turns)
    ratio = sum(one.num_tokens() for one in third) / sum(one.num_tokens() for one in full)
    assert ratio == pytest.approx(0.3, rel=0.1)


def test_made_up_answers_depend_on_the_turn_alone():
    assert made_up_answer(1, 2, 8) == made_up_answer(1, 2, 8)
    assert made_up_answer(1, 2, 8) != made_up_answer(1, 3, 8)


def test_a_ratio_is_taken_inside_a_round_so_that_a_slow_round_does_not_count():
    ratios = ordinary_replay.ratios_to_stock(
        {"stock": [1.0, 5.0, 1.0], "helium": [1.1, 5.5, 1.3], "stock_again": [1.0, 5.0, 0.9]}
    )
    assert ratios == {"helium": 1.1, "stock_again": 1.0}


def test_a_step_of_the_engine_has_the_median_of_its_times():
    replays = [
        {"wall_s": [1.0, 2.0], "cpu_s": [0.5, 1.0]},
        {"wall_s": [9.0, 2.0], "cpu_s": [0.5, 1.0]},
        {"wall_s": [1.0, 8.0], "cpu_s": [0.5, 1.0]},
    ]
    for replay in replays:
        replay |= {"calls": [(0, 0), (0, 1), (1, 1)], "counts": {"output_tokens": 6}}
    assert ordinary_replay.engine_figures(replays) == {
        "throughput_wall": 2.0,
        "p99_wall_latency_s": 3.0,
        "throughput_cpu": 4.0,
        "p99_cpu_latency_s": 1.5,
    }


@pytest.mark.parametrize(
    ("name", "ratio", "is_broken"),
    [
        ("throughput_wall", 0.979, True),
        ("throughput_wall", 0.98, False),
        ("p99_wall_latency_s", 1.021, True),
        ("p99_wall_latency_s", 1.02, False),
    ],
)
def test_limits_are_those_of_throughput_and_p99(name, ratio, is_broken):
    row = {"mode": "engine", "kv_cache": "ample", "ratios": {name: {"helium": ratio}}}
    assert bool(ordinary_replay.broken_limits(row)) is is_broken


def test_answers_that_differ_are_reported():
    row = {"mode": "engine", "kv_cache": "ample", "ratios": {}, "equal_answers": False}
    assert "answers differ" in ordinary_replay.broken_limits(row)[0]


def test_arms_take_turns_and_each_goes_first():
    order = list(ordinary_replay.in_turns(3))
    assert sorted(order[:3]) == sorted(ordinary_replay.ARMS)
    assert {order[0], order[3], order[6]} == set(ordinary_replay.ARMS)


def test_rows_of_settings_not_measured_stay(tmp_path):
    path = tmp_path / "results" / "rows.json"
    old = [{"mode": "engine", "kv_cache": "tight"}, {"mode": "engine", "kv_cache": "ample"}]
    ordinary_replay.write_rows(path, old)
    ordinary_replay.write_rows(path, [{"mode": "engine", "kv_cache": "ample", "rounds": 1}])
    assert json.loads(path.read_text()) == [
        {"mode": "engine", "kv_cache": "tight"},
        {"mode": "engine", "kv_cache": "ample", "rounds": 1},
    ]
