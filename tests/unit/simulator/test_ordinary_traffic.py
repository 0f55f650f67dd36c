"""Ordinary chats on stock vLLM and on ours: the same calls, and figures that follow from them."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("vllm")

from benchmarks import ordinary_traffic
from benchmarks.ordinary_traffic import Conversation, conversations, replay


def test_conversations_repeat_and_share_system_prompts():
    users = conversations(60, "busy", seed=3)
    assert users == conversations(60, "busy", seed=3) != conversations(60, "busy", seed=4)
    assert 60 <= sum(len(user.turns) for user in users) < 64
    assert len({tuple(user.system) for user in users}) < len(users)
    arrivals = [user.arrival_s for user in users]
    assert arrivals == sorted(arrivals) and arrivals[0] > 0
    assert {user.arrival_s for user in conversations(9, "burst", seed=0)} == {0.0}


@pytest.mark.parametrize("helium", [False, True])
def test_a_turn_finds_the_conversation_so_far_in_the_cache(helium):
    said, answer = list(range(1, 101)), list(range(200, 260))
    user = Conversation(2.0, list(range(1000, 1064)), [(said, answer, 5.0), (said[:32], answer, 0)])
    found = replay([user], helium)
    assert found["num_calls"] == 2
    first, second = 64 + 100, 64 + 100 + 60 + 32
    cached = found["hit_ratio"] * (first + second)
    assert 208 <= round(cached) <= 224  # whole blocks of the first turn, or up to its last token
    assert found["makespan_s"] == pytest.approx(7 + 2 * found["latency_p50_s"], rel=0.1)


def test_the_command_reports_the_worst_seed(tmp_path, capsys):
    output = tmp_path / "ordinary.json"
    options = ["--calls", "12", "--load", "full", "--output", str(output)]
    assert ordinary_traffic.main(options) == 0
    report = json.loads(output.read_text())
    assert [run["seed"] for run in report["runs"]] == [0, 1]
    worst = min(run["ratios"]["output_tokens_per_s"] for run in report["runs"])
    assert f"throughput {worst:.3f}" in capsys.readouterr().out
    assert report["summary"][0].startswith("ordinary    full")
