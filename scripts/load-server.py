#!/usr/bin/env python3
"""Load and faults for a running `bitnet serve`, with nothing but Python's standard library.

  load-server.py URL                       tokens a second and latencies against concurrency
  load-server.py URL --soak 10000          that many short requests, many of them broken, at --concurrency 64
  load-server.py URL --sigterm 3 --pid PID ends the server after so many seconds of load

The soak sends random lengths, one answer or three to a prompt, hang-ups in mid-stream and before the first byte, WebSockets
that cancel, bad JSON, bodies that are too large, grammars good and bad, and readers that take their time. Every answer that is taken must
end with exactly one terminal event, and afterwards nothing may be running and no block held; with --pid, the largest resident memory of
the second half may be a twentieth above the smallest. --warmup requests of the same kinds come first: until then the cache
has not been full, nor every thread and connection been busy.

A server that is told to end refuses new requests; whatever it has begun to answer has to come to its end.
"""

import argparse
import base64
import http.client
import json
import os
import random
import signal
import socket
import struct
import threading
import time
from urllib.parse import urlparse


class Load:
    def __init__(self, url):
        parts = urlparse(url)
        self.host, self.port = parts.hostname, parts.port

    def connect(self):
        return http.client.HTTPConnection(self.host, self.port, timeout=600)

    def post(self, body, path="/v1/completions"):
        connection = self.connect()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"content-type": "application/json"})
        return connection, connection.getresponse()

    def metrics(self):
        connection = self.connect()
        connection.request("GET", "/metrics")
        lines = connection.getresponse().read().decode().splitlines()
        values = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in values}

    def gauge(self, name):
        return sum(v for k, v in self.metrics().items() if k.startswith(f"bitnet_{name}{{"))

    def prompt(self, rng, tokens):
        return [rng.randrange(3, 400) for _ in range(tokens)]

    def stream(self, body):
        """Tokens of an answer, and the times of its pieces since its beginning."""
        begin, times, tokens = time.perf_counter(), [], 0
        connection, response = self.post({**body, "stream": True})
        for line in response:
            if line.startswith(b"data: {") and b'"text":"' in line and b'"finish_reason":null' in line:
                times.append(time.perf_counter() - begin)
            elif b'"predicted_n":' in line:
                tokens = json.loads(line[6:])["timings"]["predicted_n"]
        connection.close()
        return tokens, times


def percentile(values, share):
    values = sorted(values)
    return values[min(len(values) - 1, int(share * len(values)))] if values else float("nan")


def throughput(load, args):
    print("| concurrency | requests | tokens/s | first token p50 / p95 s | between tokens p50 / p99 ms |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for concurrency in args.levels:
        rng, gate, lock = random.Random(concurrency), threading.Semaphore(concurrency), threading.Lock()
        first, between, tokens = [], [], 0
        prompts = [load.prompt(rng, args.prompt) for _ in range(max(args.requests, concurrency))]

        def one(prompt):
            nonlocal tokens
            with gate:
                body = {"prompt": prompt, "max_tokens": args.answer, "ignore_eos": True, "seed": 1}
                answered, times = load.stream(body)
            with lock:
                first.append(times[0])
                between.extend(b - a for a, b in zip(times, times[1:]))
                tokens += answered

        begin = time.perf_counter()
        threads = [threading.Thread(target=one, args=(p,)) for p in prompts]
        [t.start() for t in threads]
        [t.join() for t in threads]
        rate = tokens / (time.perf_counter() - begin)
        print(
            f"| {concurrency} | {len(prompts)} | {rate:.1f} | {percentile(first, .5):.2f} / {percentile(first, .95):.2f} "
            f"| {1e3 * percentile(between, .5):.1f} / {1e3 * percentile(between, .99):.1f} |",
            flush=True,
        )


class Socket:
    """As much of a WebSocket as the soak needs."""

    def __init__(self, load):
        self.socket = socket.create_connection((load.host, load.port), timeout=600)
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET /v1/ws HTTP/1.1\r\nhost: {load.host}\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        self.socket.sendall(f"{head}sec-websocket-key: {key}\r\nsec-websocket-version: 13\r\n\r\n".encode())
        self.file = self.socket.makefile("rb")
        assert b" 101 " in self.file.readline(), "no WebSocket"
        while self.file.readline() != b"\r\n":
            pass

    def send(self, value):
        text, mask = json.dumps(value).encode(), os.urandom(4)
        masked = bytes(b ^ mask[i % 4] for i, b in enumerate(text))
        self.socket.sendall(b"\x81" + struct.pack(">BH", 0xFE, len(text)) + mask + masked)

    def receive(self):
        _, size = self.file.read(2)
        if size >= 126:
            size = struct.unpack(*((">H", self.file.read(2)) if size == 126 else (">Q", self.file.read(8))))[0]
        return json.loads(self.file.read(size))

    def close(self):
        self.file.close()
        self.socket.close()


class Soak:
    """Requests of every kind, and what came of them."""

    REFUSED = {"bad json": 400, "large": 413, "grammar": 400, "unknown id": 422}
    KINDS = ["plain"] * 8 + ["whole", "form", "hang up", "hang up at once", "slow", "socket", *REFUSED]

    def __init__(self, load):
        self.load, self.lock = load, threading.Lock()
        self.counts = {}
        # Answers that must have ended, and those of clients who hung up before they knew whether they were taken.
        self.taken = self.unsure = self.begun = 0

    def note(self, what, taken=0, unsure=0):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1
            self.taken += taken
            self.unsure += unsure

    def run(self, requests, concurrency, watch):
        """Makes so many requests; `watch` is called meanwhile."""
        left = iter(range(self.begun, self.begun + requests))

        def work():
            while True:
                with self.lock:
                    i = next(left, None)
                    if i is None:
                        return
                    self.begun += 1
                self.one(random.Random(i), i)

        threads = [threading.Thread(target=work) for _ in range(concurrency)]
        [t.start() for t in threads]
        while any(t.is_alive() for t in threads):
            time.sleep(0.2)
            watch()
        [t.join() for t in threads]

    def one(self, rng, i):
        kind, choices = rng.choice(self.KINDS), rng.choice([1, 1, 1, 3])
        body = {
            "prompt": self.load.prompt(rng, rng.randrange(1, 40)),
            "max_tokens": rng.randrange(1, 12),
            "n": choices,
            "seed": i,
            "ignore_eos": True,
            "stream": kind != "whole",
        }
        if kind == "socket":
            return self.over_socket(rng, body)
        if kind == "form":
            body |= {"ignore_eos": False, "grammar": 'root ::= "a" | "b"'}
        elif kind == "bad json":
            body = b'{"prompt": ['
        elif kind == "large":
            body = b" " * (5 << 20)
        elif kind == "grammar":
            body["grammar"] = "start: nowhere"
        elif kind == "unknown id":
            body["prompt"] = [10**9]
        elif kind == "hang up at once":
            body |= {"prompt": self.load.prompt(rng, 300), "max_tokens": 100}
            data = json.dumps(body).encode()
            gone = socket.create_connection((self.load.host, self.load.port))
            head = f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(data)}"
            gone.sendall(head.encode() + b"\r\n\r\n" + data)
            time.sleep(rng.random() * 0.05)
            gone.close()
            return self.note(kind, unsure=choices)
        try:
            connection, response = self.load.post(body)
        except (BrokenPipeError, ConnectionResetError):
            # A body that is refused unread may end the connection while it is being sent.
            return self.note("refused unread" if kind == "large" else f"LOST {kind}")
        if response.status == 429:
            response.read()
            return self.note("429")
        if response.status != self.REFUSED.get(kind, 200):
            return self.note(f"WRONG {kind}: {response.status}")
        if kind in self.REFUSED:
            response.read()
            return self.note(kind)
        if kind == "hang up":
            response.read(rng.randrange(1, 200))
            connection.close()
            return self.note(kind, taken=choices)
        if kind == "slow":
            parts = []
            while part := response.read(20):
                parts.append(part)
                time.sleep(0.002)
            text = b"".join(parts).decode()
        else:
            text = response.read().decode()
        ends = text.count('"finish_reason":"')
        if ends != choices or not text.endswith("}" if kind == "whole" else "data: [DONE]\n\n"):
            return self.note(f"WRONG {kind}: {ends} ends of {choices}")
        self.note(kind, taken=choices)

    def over_socket(self, rng, body):
        """Two requests over a WebSocket: one is cancelled; and sometimes the socket is closed in the midst of the other."""
        choices, ws = body["n"], Socket(self.load)
        ws.send(body | {"id": "a", "max_tokens": 200})
        ws.send(body | {"id": "b"})
        ws.send({"cancel": "a"})
        if rng.random() < 0.3:
            ws.receive()
            ws.close()
            return self.note("hang up a socket", unsure=2 * choices)
        ends, open_ids = 0, {"a", "b"}
        while open_ids:
            message = ws.receive()
            if "error" in message:
                return self.note(f"WRONG socket: {message}")
            ends += sum(c["finish_reason"] is not None for c in message.get("choices", []))
            if message.get("done"):
                open_ids.discard(message["id"])
        ws.close()
        if ends != 2 * choices:
            return self.note(f"WRONG socket: {ends} ends of {2 * choices}")
        self.note("socket", taken=2 * choices)


def soak(load, args):
    def resident():
        with open(f"/proc/{args.pid}/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))

    before, run, seen = load.gauge("requests_total"), Soak(load), []
    run.run(args.warmup, args.concurrency, lambda: None)
    begin = time.perf_counter()
    run.run(args.soak, args.concurrency, lambda: args.pid and seen.append((run.begun - args.warmup, resident())))
    print(f"{args.warmup} requests to warm up; {args.soak} at {args.concurrency} in {time.perf_counter() - begin:.1f} s")
    for what, count in sorted(run.counts.items()):
        print(f"  {what}: {count}")
    half = [megabytes for begun, megabytes in seen if 2 * begun >= args.soak]
    moved = False
    if half:
        moved = max(half) > 1.05 * min(half)
        print(f"  memory of the second half: {min(half):.1f} to {max(half):.1f} MB, {100 * (max(half) / min(half) - 1):.1f} %")
        print(f"  at the beginning of it {half[0]:.1f} MB, at its end {half[-1]:.1f} MB")
    # Whoever hung up last is being cancelled.
    deadline = time.monotonic() + 10
    while load.gauge("requests_running") + load.gauge("requests_waiting") and time.monotonic() < deadline:
        time.sleep(0.05)
    running, waiting = load.gauge("requests_running"), load.gauge("requests_waiting")
    held = load.gauge("kv_cache_usage_ratio")
    ended = load.gauge("requests_total") - before
    print(f"  afterwards: {running:.0f} running, {waiting:.0f} waiting, {held:.3f} of the blocks held")
    print(f"  {ended:.0f} answers ended; {run.taken} were taken, {run.unsure} hung up before they knew")
    wrong = any(word in what for what in run.counts for word in ("WRONG", "LOST"))
    uneven = not run.taken <= ended <= run.taken + run.unsure
    raise SystemExit(1 if wrong or running or waiting or held or moved or uneven else 0)


def sigterm(load, args):
    """Streams without a pause, and a signal in the midst of them."""
    counts, lock, told = {}, threading.Lock(), threading.Event()

    def note(what):
        with lock:
            counts[what] = counts.get(what, 0) + 1

    def one(rng):
        body = {
            "prompt": load.prompt(rng, rng.randrange(1, 60)),
            "max_tokens": rng.randrange(1, 60),
            "ignore_eos": True,
            "stream": rng.random() < 0.8,
        }
        late = told.is_set()
        try:
            _, response = load.post(body)
        except (ConnectionError, http.client.BadStatusLine) as e:
            # What came before the signal is refused with a status, if at all.
            note("refused, not connected" if late else f"LOST before a word: {e!r}")
            return not late
        if response.status != 200:
            response.read()
            note(f"refused, {response.status}")
            return not late
        try:
            text = response.read().decode()
        except (ConnectionError, http.client.IncompleteRead):
            note("LOST in the midst")
            return True
        whole = text.endswith("data: [DONE]\n\n") if body["stream"] else text.endswith("}")
        when = "after" if told.is_set() else "before"
        note(f"answered {when} the signal" if whole and text.count('"finish_reason":"') == 1 else f"LOST: {text[-200:]}")
        return True

    def work(seed):
        rng = random.Random(seed)
        while one(rng):
            pass

    threads = [threading.Thread(target=work, args=(i,)) for i in range(args.concurrency)]
    [t.start() for t in threads]
    time.sleep(args.sigterm)
    told.set()
    os.kill(args.pid, signal.SIGTERM)
    [t.join() for t in threads]
    for what, count in sorted(counts.items()):
        print(f"  {what}: {count}")
    raise SystemExit(1 if any("LOST" in what for what in counts) or not counts.get("answered after the signal") else 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--levels", type=lambda s: [int(x) for x in s.split(",")], default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt")
    parser.add_argument("--answer", type=int, default=32, help="tokens of an answer")
    parser.add_argument("--soak", type=int, default=0, metavar="REQUESTS")
    parser.add_argument("--warmup", type=int, default=1000, metavar="REQUESTS", help="before the soak counts")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--sigterm", type=float, metavar="SECONDS")
    parser.add_argument("--pid", type=int, help="of the server, to watch its memory")
    args = parser.parse_args()
    load = Load(args.url)
    sigterm(load, args) if args.sigterm else soak(load, args) if args.soak else throughput(load, args)


main()
