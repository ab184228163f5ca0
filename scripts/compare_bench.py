#!/usr/bin/env python3
"""Runs two programs with llama-bench's options and JSON in turn, A B A B, and prints their rates and ratios as a table.

usage: compare_bench.py [-p N] [-n N] [-t LIST] [--rounds N] --ours NAME COMMAND --theirs NAME COMMAND

COMMAND is split at spaces as a shell would and gets `-p N -n N -t T -r 1 -o json`. A ratio is of two runs that follow each
other; a table line gives medians and, in brackets, ranges over the rounds.
"""
import argparse
import json
import shlex
import statistics
import subprocess


def run(command, threads, prompt, answer):
    options = ["-p", prompt, "-n", answer, "-t", threads, "-r", 1, "-o", "json"]
    command = shlex.split(command) + [str(option) for option in options]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    rows = {}
    # ik_llama.cpp warns on standard output.
    text = "".join(line for line in ran.stdout.splitlines() if not line.startswith("WARNING"))
    for row in json.loads(text):
        rows[f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}"] = row
    return rows


def spread(values, form="{:.1f}"):
    middle, low, high = (form.format(f(values)) for f in (statistics.median, min, max))
    return f"{middle} ({low}-{high})"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("-p", type=int, default=512)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("-t", default="1,2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", nargs=2, required=True)
    parser.add_argument("--theirs", nargs=2, required=True)
    a = parser.parse_args()
    (ours, our_command), (theirs, their_command) = a.ours, a.theirs
    print(f"| test | threads | {ours}, tokens/s | its share of the limit | {theirs}, tokens/s | ratio |")
    print("|---|--:|--:|--:|--:|--:|", flush=True)
    for threads in (int(t) for t in a.t.split(",")):
        rounds = []
        for _ in range(a.rounds):
            rounds.append([run(c, threads, a.p, a.n) for c in (our_command, their_command)])
        for test in rounds[0][0]:
            us, them = ([r[i][test]["avg_ts"] for r in rounds] for i in (0, 1))
            shares = [100 * r[0][test]["limit_share"] for r in rounds if "limit_share" in r[0][test]]
            share = spread(shares, "{:.0f} %") if shares else ""
            ratio = spread([x / y for x, y in zip(us, them)], "{:.2f}")
            print(f"| {test} | {threads} | {spread(us)} | {share} | {spread(them)} | {ratio} |", flush=True)


main()
