"""A small OpenAI-compatible server for tests, on a thread."""

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.endswith("/helium/status") and self.server.num_engines:
            self._reply(200, {"engines": [{}] * self.server.num_engines})
            return
        self._reply(200, {"object": "list", "data": [{"id": "served", "object": "model"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        rank = self.headers.get("X-data-parallel-rank")
        context = body.get("workflow")  # of a call; a plan has its name there
        server.ranks.append((rank, context["plan"] if isinstance(context, dict) else None))
        if self.path.endswith("/helium/plans"):
            server.plans.append(body)
            self._reply(200 if server.knows_plans else 404, {})
            return
        server.bodies.append(body)
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        if server.failures and (status := server.failures.pop(0)):
            self._reply(status, {"error": {"message": f"status {status}"}})
            return
        if text in server.refused:
            self._reply(400, {"error": {"message": "the prompt is refused"}})
            return
        server.gate.wait(30)
        if server.is_dead:
            self.close_connection = True
            return
        choices = []
        for index in range(body.get("n", 1)):
            answer = f"<{text}>"
            choice = {"index": index, "finish_reason": "stop", "text": answer, "logprobs": None}
            choice["message"] = {"role": "assistant", "content": answer}
            choices.append(choice)
        usage = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
        usage["prompt_tokens_details"] = {"cached_tokens": 4}
        answer = {"id": "x", "object": "o", "created": 0, "model": body["model"]}
        self._reply(200, {**answer, "choices": choices, "usage": usage})

    def _reply(self, status, value):
        raw = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    is_dead = False

    def handle_error(self, request, client_address):
        """A client that has gone is none of the test's business."""

    def die(self):
        """Breaks off the calls under way without an answer."""
        self.is_dead = True
        self.gate.set()


@contextlib.contextmanager
def serve(port=0):
    """Serves; ``failures`` are the statuses of the next calls, 0 for an answer.

    ``ranks`` are those that requests ask for, with the plans that they name.
    """
    server = Server(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    server.bodies, server.plans, server.failures, server.refused = [], [], [], set()
    server.knows_plans = True
    server.num_engines, server.ranks = 0, []
    server.gate = threading.Event()
    server.gate.set()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
