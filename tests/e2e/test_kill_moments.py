"""Whatever is killed in the middle of a run, the run ends as if nothing had been; see the script.

``python -m tests.e2e.kill_moments`` goes through twenty moments of each kind.
"""

import pytest

from tests.e2e.kill_moments import NUM_CALLS, kill_all

pytestmark = [pytest.mark.engine, pytest.mark.slow]


def test_killed_routes_go_on(tmp_path):
    left = kill_all(tmp_path, 4, ["routes"], seed=11)
    assert any(0 < count < NUM_CALLS for count in left["routes"]), "a kill in the middle"


def test_killed_engines_servers_and_clients_go_on(tmp_path):
    left = kill_all(tmp_path, 1, ["server", "server-engine", "client"], seed=12)
    assert len(left["server+server-engine"]) == 2 and len(left["client"]) == 1
