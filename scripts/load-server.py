#!/usr/bin/env python3
"""Load and faults for a running `bitnet serve`, with nothing but Python's standard library.

  load-server.py URL                       tokens a second and latencies against concurrency
  load-server.py URL --soak 10000          that many short requests, many of them broken, at --concurrency 64
  load-server.py URL --sigterm 3 --pid PID ends the server after so many seconds of load

The soak sends random lengths, hang-ups in mid-stream, bad JSON, bodies that are too large, bad grammars and readers that
take their time. Every request that is taken must end with exactly one terminal event, and afterwards nothing may be running
and no block held; with --pid, memory may not grow by more than a twentieth from the third
quarter to the last (bodies of a few megabytes come and go meanwhile).

A server that is told to end refuses new requests; whatever it has begun to answer has to come to its end.
"""

import argparse
import http.client
import json
import os
import random
import signal
import statistics
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


def soak(load, args):
    counts, lock, left = {}, threading.Lock(), list(range(args.soak))

    def note(what):
        with lock:
            counts[what] = counts.get(what, 0) + 1

    def one(i):
        rng = random.Random(i)
        body = {
            "prompt": load.prompt(rng, rng.randrange(1, 40)),
            "max_tokens": rng.randrange(1, 12),
            "seed": i,
            "ignore_eos": True,
            "stream": True,
        }
        kind = rng.choice(["plain"] * 8 + ["whole", "hang up", "slow", "bad json", "large", "grammar", "unknown id"])
        expect = {"bad json": 400, "large": 413, "grammar": 400, "unknown id": 422}.get(kind, 200)
        if kind == "whole":
            body["stream"] = False
        elif kind == "bad json":
            body = b'{"prompt": ['
        elif kind == "large":
            body = b" " * (5 << 20)
        elif kind == "grammar":
            body["grammar"] = "start: nowhere"
        elif kind == "unknown id":
            body["prompt"] = [10**9]
        try:
            connection, response = load.post(body)
        except (BrokenPipeError, ConnectionResetError):
            # A body that is refused unread may end the connection while it is being sent.
            return note("refused unread" if kind == "large" else f"LOST {kind}")
        if response.status == 429:
            response.read()
            return note("429")
        if response.status != expect:
            return note(f"WRONG {kind}: {response.status}")
        if kind == "hang up":
            response.read(rng.randrange(1, 200))
            connection.close()
            return note(kind)
        if kind == "slow":
            while response.read(20):
                time.sleep(0.002)
            return note(kind)
        text = response.read().decode()
        if kind == "plain":
            ends = text.count('"finish_reason":"')
            if ends != 1 or not text.endswith("data: [DONE]\n\n"):
                return note(f"WRONG stream: {ends} ends")
        note(kind)

    def work():
        while True:
            with lock:
                if not left:
                    return
                i = left.pop()
            one(i)

    def memory():
        with open(f"/proc/{args.pid}/status") as status:
            return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmRSS"))

    threads = [threading.Thread(target=work) for _ in range(args.concurrency)]
    begin = time.perf_counter()
    [t.start() for t in threads]
    seen = []
    while any(t.is_alive() for t in threads):
        time.sleep(0.5)
        if args.pid:
            seen.append((min(args.soak - len(left), args.soak - 1), memory()))
    [t.join() for t in threads]
    time.sleep(0.5)
    print(f"{args.soak} requests at {args.concurrency} in {time.perf_counter() - begin:.1f} s")
    for what, count in sorted(counts.items()):
        print(f"  {what}: {count}")
    moved = False
    if seen:
        quarter = lambda i: statistics.mean([m for n, m in seen if n * 4 // args.soak == i] or [seen[-1][1]])
        moved = quarter(3) > 1.05 * quarter(2)
        print(f"  memory in the third quarter {quarter(2):.1f} MB, in the last {quarter(3):.1f} MB")
    running, waiting = load.gauge("requests_running"), load.gauge("requests_waiting")
    held = load.gauge("kv_cache_usage_ratio")
    ended = load.gauge("requests_total")
    taken = sum(counts.get(kind, 0) for kind in ("plain", "whole", "slow", "hang up"))
    print(f"  afterwards: {running:.0f} running, {waiting:.0f} waiting, {held:.3f} of the blocks held")
    print(f"  {ended:.0f} answers ended, {taken} were begun since this began")
    wrong = any(word in what for what in counts for word in ("WRONG", "LOST"))
    raise SystemExit(1 if wrong or running or waiting or held or moved or ended < taken else 0)


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
        except (ConnectionError, http.client.BadStatusLine):
            note("refused, not connected")
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
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--sigterm", type=float, metavar="SECONDS")
    parser.add_argument("--pid", type=int, help="of the server, to watch its memory")
    args = parser.parse_args()
    load = Load(args.url)
    sigterm(load, args) if args.sigterm else soak(load, args) if args.soak else throughput(load, args)


main()
