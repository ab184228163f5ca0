#!/usr/bin/env python3
"""llama-bench's prefill and generation tests over the Python package llama-cpp-python, with its options and JSON rows.

usage: llama_cpp_bench.py -m MODEL [-p N] [-n N] [-t N] [-r N] [-o json]
"""
import argparse
import ctypes
import json
import os
import statistics
import time

import llama_cpp as llama

BATCH = 512


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-m", required=True)
    parser.add_argument("-p", type=int, default=512)
    parser.add_argument("-n", type=int, default=128)
    parser.add_argument("-t", type=int, default=os.cpu_count())
    parser.add_argument("-r", type=int, default=5)
    parser.add_argument("-o", choices=["json"], default="json")
    a = parser.parse_args()

    quiet = llama.llama_log_callback(lambda level, text, data: None)
    llama.llama_log_set(quiet, ctypes.c_void_p())
    model = llama.llama_model_load_from_file(a.m.encode(), llama.llama_model_default_params())
    if not model:
        raise SystemExit(f"llama.cpp does not load {a.m}")
    params = llama.llama_context_default_params()
    params.n_ctx = max(a.p, a.n, 32)
    params.n_batch = params.n_ubatch = BATCH
    params.n_threads = params.n_threads_batch = a.t
    context = llama.llama_init_from_model(model, params)
    vocab = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def decode(first, count):
        ids = (llama.llama_token * count)(*((i * 2654435761) % vocab for i in range(first, first + count)))
        if llama.llama_decode(context, llama.llama_batch_get_one(ids, count)) != 0:
            raise SystemExit("llama_decode failed")
        llama.llama_synchronize(context)

    def run(count, step):
        llama.llama_memory_clear(llama.llama_get_memory(context), False)
        begin = time.perf_counter()
        for first in range(0, count, step):
            decode(first, min(step, count - first))
        return count / (time.perf_counter() - begin)

    rows = []
    for prompt, answer in ((a.p, 0), (0, a.n)):
        if not prompt + answer:
            continue
        step = BATCH if prompt else 1
        # Not counted: pages, caches and clocks.
        run(prompt or 1, step)
        rates = [run(prompt + answer, step) for _ in range(a.r)]
        row = {"model_filename": a.m, "n_threads": a.t, "n_prompt": prompt, "n_gen": answer}
        rows.append(row | {"avg_ts": statistics.mean(rates), "samples_ts": rates})
    print(json.dumps(rows))


main()
