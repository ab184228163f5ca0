#!/bin/sh
# Real clients against a real server, pinned, in virtual environments of their own: the `openai`, `anthropic` and `ollama` packages,
# `websockets`, LangChain, LlamaIndex, lm-evaluation-harness on a task of four questions, and schemathesis, which makes requests
# out of /openapi.json. LangChain and LlamaIndex want different releases of `openai`.
#   scripts/clients.sh [path to bitnet] [folder in which the environments are kept]
set -eu
cd "$(dirname "$0")/.."
bitnet=${1:-target/release/bitnet}
model=tests/fixtures/bitnet-packed
work=$(mktemp -d)
envs=${2:-$work}
trap 'kill "$server" 2>/dev/null || true; rm -rf "$work"' EXIT

# venv NAME PACKAGE...
venv() {
    [ ! -x "$envs/$1/bin/python" ] || return 0
    python3 -m venv "$envs/$1"
    name=$1
    shift
    "$envs/$name/bin/pip" install --quiet --disable-pip-version-check "$@"
}
venv clients openai==3.57.0 anthropic==2.14.0 ollama==0.6.3 websockets==17.4 schemathesis==4.32.5
venv langchain langchain-openai==1.7.4
venv llamaindex llama-index-llms-openai-like==0.8.1
# What its client of an API imports; torch is not among it.
venv lm-eval aiohttp==3.14.5 datasets==5.2.0 dill==0.4.1 evaluate==0.4.6 jinja2==3.1.6 jsonlines==4.0.0 \
    more-itertools==11.2.1 numpy==2.4.6 pytablewriter==1.2.1 pyyaml==6.0.4 requests==2.34.2 rouge-score==0.1.2 sacrebleu==2.6.0 \
    scikit-learn==1.9.1 sqlitedict==2.1.0 tenacity==9.2.1 tiktoken==0.14.0 tqdm==4.70.1 transformers==5.24.0 word2number==1.1 \
    zstandard==0.25.0
"$envs/lm-eval/bin/pip" install --quiet --disable-pip-version-check --no-deps lm-eval==0.4.13

"$bitnet" serve "$model" --port 0 2>"$work/log" &
server=$!
tries=0
until grep -qs '^ready' "$work/log"; do
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { cat "$work/log"; exit 1; }
    sleep 0.1
done
url=$(sed -n 's/^listening on //p' "$work/log")
"$envs/clients/bin/python" scripts/clients.py "$url" bitnet-packed
"$envs/langchain/bin/python" scripts/clients_langchain.py "$url" bitnet-packed
"$envs/llamaindex/bin/python" scripts/clients_llamaindex.py "$url" bitnet-packed
HF_DATASETS_OFFLINE=1 HF_HUB_OFFLINE=1 HF_HOME=$work/hf \
    "$envs/lm-eval/bin/python" scripts/clients_lm_eval.py "$url" bitnet-packed "$model"
# A server that does what it says: statuses, content types and bodies as described, no status 500. Refusing what a schema alone
# cannot forbid (a prompt longer than the context) and 501 are described too. What it unloaded would answer nothing any more.
cp scripts/schemathesis.toml "$work"
(cd "$work" && "$envs/clients/bin/schemathesis" run "$url/openapi.json" --url "$url" --exclude-path /models/unload)
kill "$server"
wait "$server"
echo "ok: the server ended in order"
