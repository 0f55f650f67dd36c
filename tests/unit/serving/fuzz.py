"""Random requests to our routes: nothing may end in an undeclared 5xx.

    python -m tests.unit.serving.fuzz [--server http://localhost:8000] [--count 2000]

Without ``--server`` one is started: ``vllm serve --helium`` with the tiny model. The requests are
the same for the same seed. Half of the plans are valid by construction, so that runs are reached;
the others have something changed, somewhere. A server with an engine also gets engine plans and
completions with contexts.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

DECLARED = {200, 202, 307, 400, 404, 405, 409, 413, 422, 429, 503}
"""What our routes may answer; 307 redirects a trailing slash, 503 says that a disk is full."""

JUNK = [
    None, True, 0, -1, 1, 2**31, 2**63, 10**40, 0.5, -1e308, "", " ", "x", "\u0000", "é" * 300,
    "\U0001f600", "a" * 5000, [], {}, [None], [[]], {"type": "llm"},
    {"operator": "n0"}, "n0", "ghost",
]  # fmt: skip
NAMES = ["n0", "n1", "n2", "n3", "n4", "out", "ghost", ""]


class Fuzzer:
    """Makes requests, and remembers the ids that came back."""

    def __init__(self, seed: int, has_engine: bool = False) -> None:
        self.random = random.Random(seed)
        self.weights = [30, 30, 12, 6, 6, 6, 2, 8, *([10, 10, 5] if has_engine else [0, 0, 0])]
        self.digests: list[str] = []
        self.workflows: list[str] = []
        self.runs: list[tuple[str, str]] = []

    def request(self) -> tuple[str, str, bytes | None, dict[str, str]]:
        """Returns method, path, body and headers."""
        kinds = ["register", "run", "read", "watch", "explain", "cancel", "drop", "odd"]
        kinds += ["plan", "complete", "engine"]
        kind = self.random.choices(kinds, self.weights)[0]
        workflow = self._workflow()
        run = self._run()
        match kind:
            case "register":
                return "POST", "/v1/workflows", self._body(self._registration()), {}
            case "run":
                body = self._body(self._run_body())
                return "POST", f"/v1/workflows/{workflow}/runs", body, {}
            case "read":
                path = self.random.choice(["", f"/{workflow}", f"/{workflow}/runs", run])
                return "GET", f"/v1/workflows{path}", None, {}
            case "watch":
                last = self.random.choice(["", "0", "1", "3", "999999999", "x", "-1", "1e3"])
                return "GET", f"/v1/workflows{run}/events", None, {"last-event-id": last}
            case "explain":
                form = self.random.choice(["text", "json", "html", "dot", "pdf", "", "%00"])
                return "GET", f"/v1/workflows{run}/explain?format={form}", None, {}
            case "cancel":
                return "DELETE", f"/v1/workflows{run}", None, {}
            case "drop":
                return "DELETE", f"/v1/workflows/{workflow}", None, {}
            case "plan":
                rank = self.random.choice([{}, {}, {}, {"x-data-parallel-rank": "7"}])
                return "POST", "/v1/helium/plans", self._body(self._engine_plan()), rank
            case "complete":
                path, body = self._completion()
                return "POST", path, self._body(body), {"content-type": "application/json"}
            case "engine":
                path = self.random.choice(["plans", "status", f"plans/{self._digest()}"])
                method = self.random.choice(["GET", "GET", "DELETE"])
                return method, f"/v1/helium/{path}", None, {}
        method = self.random.choice(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
        tail = self.random.choice(["", "/", "/%00", "/..%2f", "/a/runs/", "/%ff/runs/%fe", "/'--"])
        return method, "/v1/workflows" + tail, self._body(self.random.choice(JUNK)), {}

    def learn(self, answer: bytes) -> None:
        """Takes the ids from an answer."""
        try:
            found = json.loads(answer)
        except ValueError:
            return
        if not isinstance(found, dict):
            return
        if "digest" in found:
            self.digests = [*self.digests[-20:], found["digest"]]
        if found.get("object") == "workflow" and "id" in found:
            self.workflows = [*self.workflows[-50:], found["id"]]
        elif found.get("object") == "workflow.run":
            self.runs = [*self.runs[-50:], (found["workflow"], found["id"])]

    def _workflow(self) -> str:
        if self.workflows and self.random.random() < 0.9:
            return self.random.choice(self.workflows)
        return self.random.choice(["ghost", "%00", "a" * 300, "x%20y"])

    def _run(self) -> str:
        if self.runs and self.random.random() < 0.9:
            workflow, run = self.random.choice(self.runs)
            return f"/{workflow}/runs/{run}"
        return f"/{self._workflow()}/runs/{self.random.choice(['ghost', '%00', 'r'])}"

    def _body(self, value: object) -> bytes:
        raw = json.dumps(value).encode()
        draw = self.random.random()
        if draw < 0.02:
            return raw[: self.random.randrange(len(raw) + 1)]
        if draw < 0.04:
            at = self.random.randrange(len(raw) + 1)
            return raw[:at] + bytes([self.random.randrange(256)]) + raw[at:]
        return raw

    def _registration(self) -> object:
        body = {"plan": self._plan(), "name": self.random.choice(["w", "v", "ü" * 9, "x/y"])}
        return self._spoil(body) if self.random.random() < 0.5 else body

    def _run_body(self) -> object:
        rows = self.random.choice([0, 1, 1, 2, 3])
        values = ["a", "", "b" * 50, "\U0001f600", "{n0}", "\u0000", "</s>"]
        column: object = [self.random.choice(values) for _ in range(rows)]
        if self.random.random() < 0.2:
            column = self.random.choice(values)
        body: dict[str, object] = {"inputs": {"c": column}, "wait": self.random.random() < 0.5}
        if self.random.random() < 0.2:
            body["run"] = self.random.choice(["r1", "r2", "r3", "../r", ""])
        if self.random.random() < 0.2:
            body["cache_salt"] = self.random.choice(["a", "b", "", "é"])
        if self.random.random() < 0.2:
            rules = {"inline_formats": False, "eliminate_common_subgraphs": False}
            body["options"] = {"rules": rules, "timeout_s": self.random.choice([1, 0.01, 0, 1e9])}
        return self._spoil(body) if self.random.random() < 0.2 else body

    def _plan(self) -> dict[str, object]:
        operators: list[dict[str, object]] = [{"type": "input", "name": "n0", "column": "c"}]
        for number in range(1, self.random.randrange(1, 6)):
            operators.append(self._operator(number, operators))
        last = operators[-1]["name"]
        operators.append({"type": "output", "name": "out", "source": last, "key": ""})
        return {"version": 1, "operators": operators}

    def _operator(self, number: int, earlier: list[dict[str, object]]) -> dict[str, object]:
        source = str(self.random.choice(earlier)["name"])
        text = [
            {"type": "literal", "text": self.random.choice(["a", "b ", "é"])},
            {"type": "reference", "operator": source, "choice": 0},
        ]
        name = f"n{number}"
        match self.random.randrange(6):
            case 0:
                return {"type": "format", "name": name, "text": text}
            case 1:
                return {"type": "concat", "name": name, "sources": [source, source]}
            case 2:
                step = self.random.choice([1, -1, 2])
                return {"type": "slice", "name": name, "source": source, "step": step}
            case 3:
                return {"type": "data", "name": name, "values": ["v"], "is_scalar": True}
        sampling = {"max_tokens": self.random.choice([1, 2, 5])}
        if self.random.random() < 0.2:
            sampling |= {"temperature": 1.0, "seed": 3, "stop": ["x"]}
        prompt = {"prompt": text}
        if self.random.random() < 0.7:
            prompt = {"messages": [{"role": "user", "content": text}]}
        return {"type": "llm", "name": name, "sampling": sampling, **prompt}

    def _digest(self) -> str:
        known = self.random.choice(self.digests) if self.digests else "a" * 64
        return self.random.choice([known, known, known, "0" * 64, "ghost", "%00"])

    def _engine_plan(self) -> object:
        """A plan with templates; numbers are often the largest there are."""
        numbers = [0, 1, 2, 40, 2**31, 2**53 - 1]
        templates: list[dict[str, object]] = [{"parent": 0}]
        for _ in range(self.random.randrange(5)):
            node: dict[str, object] = {"parent": self.random.randrange(len(templates))}
            node["num_uses"] = self.random.choice(numbers)
            if self.random.random() < 0.6:
                # Some are tokens that the model does not have.
                largest = self.random.choice([100, 100, 100, 2**31 - 1])
                length = self.random.choice([0, 1, 40, 300])
                node["token_ids"] = [self.random.randint(0, largest) for _ in range(length)]
                node["num_tokens"] = length
            else:
                node["num_tokens"] = self.random.choice(numbers)
                node["num_join_tokens"] = self.random.choice(numbers)
            templates.append(node)
        operators = []
        for number in range(self.random.randrange(5)):
            path = []
            node_number = self.random.randrange(len(templates))
            while node_number:
                path.insert(0, node_number)
                node_number = int(str(templates[node_number]["parent"]))
            operators.append(
                {
                    "name": f"n{number}",
                    "rank": self.random.choice(numbers),
                    "num_calls": self.random.choice(numbers),
                    "output_tokens": self.random.choice([0, 3.5, 1e9, 1e300]),
                    "template": path,
                    "reads": [f"n{self.random.randrange(number + 1)}"] if number else [],
                }
            )
        plan: dict[str, object] = {"version": 1, "workflow": "w", "operators": operators}
        plan["templates"] = templates
        if self.random.random() < 0.3:
            plan["cache_salt"] = self.random.choice(["a", "b"])
        return self._spoil(plan) if self.random.random() < 0.4 else plan

    def _completion(self) -> tuple[str, object]:
        """A call of an engine plan, known or not."""
        numbers = [0, 1, 3, 40, 2**53 - 1]
        context: dict[str, object] = {
            "plan": self._digest(),
            "run": self.random.choice(["r1", "r2"]),
            "operator": self.random.choice(NAMES),
            "row": self.random.choice(numbers),
        }
        if self.random.random() < 0.3:
            context["rank"] = self.random.choice(numbers)
        if self.random.random() < 0.3:
            length = self.random.randrange(4)
            context["segment_lengths"] = [self.random.choice(numbers) for _ in range(length)]
        text = "a b " * self.random.choice([1, 20, 200])
        body: dict[str, object] = {"model": "tiny", "max_tokens": self.random.choice([1, 2, 5])}
        body["workflow"] = self._spoil(context) if self.random.random() < 0.3 else context
        if self.random.random() < 0.3:
            body["cache_salt"] = self.random.choice(["a", "b", ""])
        if self.random.random() < 0.5:
            return "/v1/completions", body | {"prompt": text}
        return "/v1/chat/completions", body | {"messages": [{"role": "user", "content": text}]}

    def _spoil(self, value: object) -> object:
        """Changes something, somewhere."""
        if isinstance(value, dict) and value and self.random.random() < 0.9:
            key = self.random.choice(list(value))
            draw = self.random.random()
            if draw < 0.1:
                return {name: item for name, item in value.items() if name != key}
            if draw < 0.15:
                return value | {"surplus": self.random.choice(JUNK)}
            return value | {key: self._spoil(value[key])}
        if isinstance(value, list) and value and self.random.random() < 0.9:
            at = self.random.randrange(len(value))
            changed = [*value[:at], self._spoil(value[at]), *value[at + 1 :]]
            return changed if self.random.random() < 0.9 else changed + value
        return self.random.choice(NAMES if isinstance(value, str) else JUNK)


async def fuzz(
    client: object, count: int, seed: int = 0, workers: int = 8, has_engine: bool = False
) -> collections.Counter:
    """Sends requests; returns how many were answered by status.

    Raises:
        AssertionError: An answer is an undeclared status; says to which request.
    """
    fuzzer = Fuzzer(seed, has_engine)
    statuses: collections.Counter = collections.Counter()
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            method, path, body, headers = fuzzer.request()
            answer = await client.request(method, path, content=body, headers=headers)  # type: ignore[attr-defined]
            statuses[answer.status_code] += 1
            told = f"{method} {path} {body!r} -> {answer.status_code} {answer.text[:500]}"
            assert answer.status_code in DECLARED, told
            if answer.status_code >= 400 and method not in ("HEAD", "OPTIONS"):
                assert answer.json(), told
            fuzzer.learn(answer.content)

    await asyncio.gather(*(work() for _ in range(workers)))
    return statuses


@contextlib.contextmanager
def _server(address: str | None) -> Iterator[str]:
    """Yields the address of a server, one of our own where none is given."""
    if address:
        yield address
        return
    from tests.e2e.conftest import serve, stop

    with tempfile.TemporaryDirectory() as folder:
        state = str(Path(folder) / "state")
        prompts = str(Path(folder) / "prompts.db")
        options = ["--helium-state-dir", state, "--helium-prompt-cache", prompts]
        server = serve(Path(folder), "--helium", *options)
        try:
            yield server.base_url
        except BaseException:
            print(f"the server's log ends with:\n{server.log.read_text()[-8000:]}")
            raise
        finally:
            stop(server)


async def _main(options: argparse.Namespace, server: str) -> None:
    import httpx

    headers = {"authorization": f"Bearer {options.api_key}"}
    async with httpx.AsyncClient(base_url=server, headers=headers, timeout=600) as client:
        has_engine = (await client.get("/v1/helium/status")).status_code == 200
        started = time.perf_counter()
        statuses = await fuzz(client, options.count, options.seed, has_engine=has_engine)
        elapsed_s = time.perf_counter() - started
        health = await client.get("/health")
    print(f"{options.count} requests in {elapsed_s:.0f} s: {dict(sorted(statuses.items()))}")
    print(f"/health afterwards: {health.status_code}")
    if health.status_code != 200:
        raise SystemExit("the engine is not alive")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--server", help="address; a server of its own is started if unset")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--api-key", default="none")
    arguments = parser.parse_args()
    with _server(arguments.server) as address:
        asyncio.run(_main(arguments, address))
