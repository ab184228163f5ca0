"""SmolLM2-135M in Q4_1, by bitnet and by llama.cpp. Run by check-smollm2.sh with the program and the model."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import llama_cpp.llama_cpp as low_level
import numpy as np
from llama_cpp import Llama

BITNET, MODEL = sys.argv[1:]
TEXTS = [
    "The capital of France is",
    "def add(a, b):\n    return a + b  # 12345  and 7\n",
    "Don't count  the 12 ships; they're sailing home at 10:45.\n\n\tÉtienne said: \"½ of them\" \u00a0 won't.",
    "<|im_start|>user\nWhat is a ternary number?<|im_end|>\n<|im_start|>assistant\n",
]
ANSWER = 48


def bitnet(*args):
    ran = subprocess.run([BITNET, *map(str, args)], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"bitnet {' '.join(map(str, args))}: {ran.stderr}")
    return ran.stdout


def safetensors(path, name):
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])[name]
    begin, end = header["data_offsets"]
    start = 8 + int.from_bytes(data[:8], "little")
    return np.frombuffer(data[start + begin : start + end], np.float32).reshape(header["shape"])


def without_repacking(default=low_level.llama_model_default_params):
    """Weights as the file has them: with those that it repacks, this version of llama.cpp crashed on a processor with AMX."""
    params = default()
    params.use_extra_bufts = False
    return params


low_level.llama_model_default_params = without_repacking


def main():
    work = Path(tempfile.mkdtemp())
    # Its products round activations to eight bits; with the same weights as f32 they do not.
    exact_path = work / "f32.gguf"
    bitnet("convert", MODEL, exact_path, "--to", "f32", "-q")
    theirs, exact = (
        Llama(str(path), logits_all=True, n_ctx=512, n_batch=512, verbose=False, n_threads=2, seed=0) for path in (MODEL, exact_path)
    )
    tokens = sure = same = 0
    worst = 0.0
    for text in TEXTS:
        ids = json.loads(bitnet("tokenize", MODEL, text, "--json"))["ids"]
        other = theirs.tokenize(text.encode(), add_bos=False, special=True)
        assert ids == other, f"{text!r}: {ids} {other}"
        answer = json.loads(bitnet("run", MODEL, "--tokens", ",".join(map(str, ids)), "--temp", "0", "-n", ANSWER, "--json", "-q"))
        all_ids = ids + answer["tokens"]
        bitnet("logits", MODEL, "--tokens", ",".join(map(str, all_ids)), "-o", work / "l.safetensors", "--cache-type", "f32", "-q")
        ours = safetensors(work / "l.safetensors", "logits")
        scores = []
        for model in (theirs, exact):
            model.reset()
            model.eval(all_ids)
            scores.append(model.scores[: len(all_ids)].copy())
        rounded, float32 = scores
        worst = max(worst, float(np.abs(float32 - ours).max()))
        assert np.abs(float32 - ours).max() < 0.05, f"{text!r}: f32 logits differ by {np.abs(float32 - ours).max()}"
        # Every token of the answer is the one that llama.cpp would have chosen with the same weights, unless two are as good.
        for at in range(len(ids) - 1, len(all_ids) - 1):
            row = float32[at]
            assert row.max() - row[all_ids[at + 1]] < 0.1, f"{text!r}: token {at + 1} is {all_ids[at + 1]}, not {row.argmax()}"
        error = np.abs(rounded - float32).max(axis=1) + worst
        top = np.sort(ours, axis=1)
        has_margin = top[:, -1] - top[:, -2] > 2 * error
        agree = rounded.argmax(axis=1) == ours.argmax(axis=1)
        assert agree[has_margin].all(), f"{text!r}: other tokens at {np.flatnonzero(has_margin & ~agree)}"
        tokens, sure, same = tokens + len(all_ids), sure + int(has_margin.sum()), same + int(agree.sum())
        print(f"{text[:40]!r}: {answer['text'][:70]!r}")
    print(f"{len(TEXTS)} texts have the same ids; logits within {worst:.1e} of llama.cpp's over f32 weights")
    print(f"in Q4_1 (its activations are int8): {same} of {tokens} tokens the same, and all {sure} that a margin makes sure")


main()
