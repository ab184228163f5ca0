#!/usr/bin/env bash
# Published models, where the hub can be reached: pulls 2B-4T in its three forms, Falcon3-1B-1.58bit and Ternary-Bonsai-1.7B (12 GB),
# checks that the forms of one model agree trit by trit and logit by logit, compares with transformers, prints perplexities.
# Needs python3 with venv, 16 GB of memory, and HF_TOKEN where the hub asks for one. TEXT=FILE is the text of the perplexities.
set -euo pipefail
cd "$(dirname "$0")/.."
text=$(realpath "${TEXT:-docs/numerics.md}")
cargo build --quiet --release -p bitnet-cli
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
bitnet="$target/release/bitnet"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# The packages of interop.sh, kept where it keeps them.
interop=${INTEROP:-$HOME/.cache/bitnet-interop}
python=$interop/venv/bin/python
[ -x "$python" ] || python3 -m venv "$interop/venv"
"$python" -m pip install --quiet --disable-pip-version-check \
    torch==2.15.0 transformers==5.23.0 tokenizers==0.23.3 accelerate==1.15.0 safetensors==0.8.0 numpy==2.4.6

packed=microsoft/bitnet-b1.58-2B-4T
masters=microsoft/bitnet-b1.58-2B-4T-bf16
gguf=microsoft/bitnet-b1.58-2B-4T-gguf:i2_s
falcon=tiiuae/Falcon3-1B-Instruct-1.58bit
# Groups of 128; the repository has a file with groups of 64 too, and one whose type needs a Hadamard transform.
bonsai=prism-ml/Ternary-Bonsai-1.7B-gguf:Ternary-Bonsai-1.7B-Q2_0.gguf
for model in $packed $masters $gguf $falcon $bonsai; do
    "$bitnet" pull "$model" >/dev/null
    "$bitnet" show "$model" | sed -n '1,6p'
done

# The first 256 ids of the text, as the model's own vocabulary has them.
ids() { "$bitnet" -q tokenize "$1" <"$text" | cut -d' ' -f1-256 | tr ' ' ','; }

echo "Forms of 2B-4T:"
"$bitnet" inspect "$packed" --diff "$("$bitnet" -q pull "$masters")" --json >"$folder/masters.json"
"$bitnet" inspect "$packed" --diff "$("$bitnet" -q pull "$gguf")" --json >"$folder/gguf.json"
tokens=$(ids $packed)
for form in packed masters gguf; do
    "$bitnet" -q logits "${!form}" --tokens "$tokens" -o "$folder/$form.safetensors" --cache-type f32
done
for name in falcon bonsai; do
    "$bitnet" -q logits "${!name}" --tokens "$(ids "${!name}")" -o "$folder/$name.safetensors" --cache-type f32
    ids "${!name}" >"$folder/$name.ids"
done
echo "$tokens" >"$folder/packed.ids"

# What rounding may do to logits is measured, not guessed. A bf16 scale is off by up to 2^-8 of itself; that alone moves outputs of a
# layer little, but pushes inputs of the next over the boundaries of their int8 values, and how that adds up through the layers
# depends on the model. So every model is run once more with each scale off by 2^-8, up or down at random: the most that rounding
# scales can do, and far more than summing in another order does. Forms and transformers must stay within that.
cat >"$folder/rounded.py" <<'PY'
import random, sys
from pathlib import Path
from safetensors.torch import load_file, save_file
source, out = Path(sys.argv[1]), Path(sys.argv[2])
out.mkdir()
random.seed(0)
for file in source.iterdir():
    if file.suffix != ".safetensors":
        (out / file.name).symlink_to(file.resolve())
        continue
    tensors = load_file(file)
    for name, t in tensors.items():
        if name.endswith("weight_scale"):
            tensors[name] = t.float() * (1 + random.choice([-1, 1]) * 2**-8)
    save_file(tensors, out / file.name, {"format": "pt"})
PY
for name in packed falcon; do
    "$python" "$folder/rounded.py" "$("$bitnet" -q pull "${!name}")" "$folder/rounded"
    "$bitnet" -q logits "$folder/rounded" --tokens "$(<"$folder/$name.ids")" -o "$folder/$name-rounded.safetensors" --cache-type f32
    rm -r "$folder/rounded"
done

"$python" - "$folder" "$packed" "$falcon" <<'PY'
import json, sys
import numpy as np
from safetensors.numpy import load_file
folder, packed, falcon = sys.argv[1:]
failed = False

def check(what, good):
    global failed
    failed |= not good
    print(f"  {'agrees' if good else 'DIFFERS'}: {what}")

logits = lambda name: load_file(f"{folder}/{name}.safetensors")["logits"]
ids = lambda name: np.array([int(i) for i in open(f"{folder}/{name}.ids").read().split(",")])

def apart(a, b):
    """Mean distance of the logits of a position, as 1 - cosine, and positions at which the most likely token is another one."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    cosine = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return 1 - cosine.mean(), int((a.argmax(-1) != b.argmax(-1)).sum())

def alike(what, name, other):
    """Whether logits are as near to those of the model `name` as rounded scales leave them."""
    (distance, others), (most, most_others) = apart(logits(name), other), apart(logits(name), logits(f"{name}-rounded"))
    # Distances that have stopped growing with what caused them scatter by a few percent; tokens are counted, and few.
    check(f"{what}: logits {distance:.1e} apart in cosine, another next token at {others} of {len(other)} positions; "
        f"rounded scales alone: {most:.1e} and {most_others}",
        distance <= 1.5 * most and others <= most_others + 3 * np.sqrt(most_others + 1))

for form in ("masters", "gguf"):
    diff = json.load(open(f"{folder}/{form}.json"))
    total = lambda what: sum(c[what] for c in diff["tensors"].values())
    scales = max([c["scale_error"] for c in diff["tensors"].values()], default=0.0)
    # The packed form has its scales in bf16, masters have the mean itself.
    check(f"packed and {form}: {total('trits_differ')} trits differ, scales by up to {scales:.1e}, unmatched: {diff['unmatched']}",
        total("trits_differ") == 0 and scales <= 2**-8 and not diff["unmatched"])
    if total("scales_differ") + total("values_differ") == 0:
        check(f"packed and {form}: logits have the same bits", np.array_equal(logits("packed"), logits(form)))
    else:
        # Scales are rounded, or the embedding is in F16, which cannot hold every bf16 value.
        alike(f"packed and {form}", "packed", logits(form))

def perplexity(logits, ids):
    logits = logits[:-1].astype(np.float64)
    top = logits.max(-1, keepdims=True)
    norm = top[:, 0] + np.log(np.exp(logits - top).sum(-1))
    return float(np.exp((norm - logits[np.arange(len(ids) - 1), ids[1:]]).mean()))

print("Perplexity of the text's first 256 tokens:")
for name in ("packed", "masters", "gguf", "falcon", "bonsai"):
    print(f"  {name}: {perplexity(logits(name), ids('packed' if name in ('masters', 'gguf') else name)):.4f}")

print("transformers:")
import os
os.environ["TORCHDYNAMO_DISABLE"] = "1"
import torch
from transformers import AutoModelForCausalLM
for name, repo in (("packed", packed), ("falcon", falcon)):
    model = AutoModelForCausalLM.from_pretrained(repo, dtype=torch.float32, local_files_only=True)
    # Embedding and norms of a packed model stay in bf16 otherwise.
    torch.nn.Module.float(model)
    with torch.no_grad():
        theirs = model(torch.tensor(ids(name))[None]).logits[0].float().numpy()
    print(f"  {name}: perplexity {perplexity(theirs, ids(name)):.4f}")
    alike(name, name, theirs)
    del model
sys.exit(failed)
PY
