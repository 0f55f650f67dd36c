"""Random requests to the workflow routes: nothing may end in an undeclared 5xx.

    python -m tests.unit.serving.fuzz --server http://localhost:8000 --count 2000

The requests are the same for the same seed. Half of the plans are valid by construction, so that
runs are reached; the others have something changed, somewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import random
import time

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

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.workflows: list[str] = []
        self.runs: list[tuple[str, str]] = []

    def request(self) -> tuple[str, str, bytes | None, dict[str, str]]:
        """Returns method, path, body and headers."""
        kind = self.random.choices(
            ["register", "run", "read", "watch", "explain", "cancel", "drop", "odd"],
            [30, 30, 12, 6, 6, 6, 2, 8],
        )[0]
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
        method = self.random.choice(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"])
        tail = self.random.choice(["", "/", "/%00", "/..%2f", "/a/runs/", "/%ff/runs/%fe", "/'--"])
        return method, "/v1/workflows" + tail, self._body(self.random.choice(JUNK)), {}

    def learn(self, answer: bytes) -> None:
        """Takes the ids from an answer."""
        try:
            found = json.loads(answer)
        except ValueError:
            return
        if not isinstance(found, dict) or "id" not in found:
            return
        if found.get("object") == "workflow":
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


async def fuzz(client: object, count: int, seed: int = 0, workers: int = 8) -> collections.Counter:
    """Sends requests; returns how many were answered by status.

    Raises:
        AssertionError: An answer is an undeclared status; says to which request.
    """
    fuzzer = Fuzzer(seed)
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


async def _main(options: argparse.Namespace) -> None:
    import httpx

    headers = {"authorization": f"Bearer {options.api_key}"}
    async with httpx.AsyncClient(base_url=options.server, headers=headers, timeout=600) as client:
        started = time.perf_counter()
        statuses = await fuzz(client, options.count, options.seed)
        elapsed_s = time.perf_counter() - started
        health = await client.get("/health")
    print(f"{options.count} requests in {elapsed_s:.0f} s: {dict(sorted(statuses.items()))}")
    print(f"/health afterwards: {health.status_code}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--server", required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--api-key", default="none")
    asyncio.run(_main(parser.parse_args()))
