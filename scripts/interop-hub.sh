#!/usr/bin/env bash
# The hub's cache, shared with Python's huggingface_hub: it finds what bitnet pulled, bitnet finds what it downloaded, both pull
# at once, and each removes what the other brought. Before that, a pull over TLS. The hub is the test server, on this machine.
# Needs openssl, python3 with venv, and a package index for one package. VERSIONS="2.4.0 1.0.0" names those of huggingface_hub.
set -euo pipefail
cd "$(dirname "$0")/.."
versions=${VERSIONS:-2.4.0 1.0.0 0.36.0}
cargo build --quiet --release -p bitnet-cli
cargo build --quiet --release -p bitnet-testkit --example hub_server
target=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
folder=$(mktemp -d)
trap 'kill "${server:-}" "${tls:-}" 2>/dev/null || true; rm -rf "$folder"' EXIT

# Two repositories of fixtures, and a file that takes a while. The server sends 20000 bytes every 5 ms.
mkdir -p "$folder/repos/org"
cp -r tests/fixtures/bitnet-packed "$folder/repos/org/tiny"
mkdir "$folder/repos/org/large" "$folder/repos/org/secret"
head -c 3000000 /dev/urandom >"$folder/repos/org/large/model-i2_s.gguf"
head -c 3000000 /dev/urandom >"$folder/repos/org/large/model-tq2_0.gguf"
cp tests/fixtures/bitnet-packed/config.json "$folder/repos/org/secret/"
cp tests/fixtures/bitnet-packed/model.safetensors "$folder/repos/org/secret/"
echo hf_right >"$folder/repos/org/secret.token"
"$target/release/examples/hub_server" 0 "$folder/repos" 20000 >"$folder/url" &
server=$!
until [ -s "$folder/url" ]; do sleep 0.05; done
HF_ENDPOINT=$(cat "$folder/url")
export HF_ENDPOINT HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_PROGRESS_BARS=1
bitnet="$target/release/bitnet -q"

cat >"$folder/check.py" <<'PY'
import os, subprocess, sys, threading
from pathlib import Path
import huggingface_hub as hub
from huggingface_hub import constants, hf_hub_download, scan_cache_dir, snapshot_download, try_to_load_from_cache

step, repos = sys.argv[1], Path(sys.argv[2])
same = lambda path, name: Path(path).read_bytes() == (repos / name).read_bytes()

def scan():
    info = scan_cache_dir()
    assert not info.warnings, info.warnings
    return {r.repo_id: r for r in info.repos}

if step == "found":  # what bitnet pulled
    folder = Path(snapshot_download("org/tiny", local_files_only=True))
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names, names
    assert all(same(folder / n, f"org/tiny/{n}") for n in names)
    file = hf_hub_download("org/large", "model-i2_s.gguf", local_files_only=True)
    assert same(file, "org/large/model-i2_s.gguf")
    assert try_to_load_from_cache("org/tiny", "config.json") == str(folder / "config.json")
    repos_seen = scan()
    assert set(repos_seen) == {"org/tiny", "org/large"}, repos_seen
    (revision,) = repos_seen["org/tiny"].revisions
    assert revision.refs == {"main"} and len(revision.files) == len(names)
    assert repos_seen["org/tiny"].size_on_disk == sum(p.stat().st_size for p in folder.iterdir())
    # Online, it takes what is there for its own: modification times stay.
    before = {p: p.stat().st_mtime_ns for p in (folder.parent.parent / "blobs").iterdir()}
    snapshot_download("org/tiny", allow_patterns=sorted(names))
    assert before == {p: p.stat().st_mtime_ns for p in (folder.parent.parent / "blobs").iterdir()}
elif step == "download":  # what bitnet is to find
    print(snapshot_download("org/tiny"))
    print(hf_hub_download("org/large", "model-tq2_0.gguf"))
elif step == "together":  # both at once
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(hf_hub_download("org/large", "model-i2_s.gguf")))]
    threads += [threading.Thread(target=lambda: paths.append(subprocess.run([*os.environ["BITNET"].split(), "pull", "org/large:I2_S"],
        check=True, capture_output=True, text=True).stdout.strip())) for _ in range(2)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len(paths) == 3 and len(set(paths)) == 1 and same(paths[0], "org/large/model-i2_s.gguf"), paths
    scan()
elif step == "delete":  # what bitnet pulled
    info = scan_cache_dir()
    commits = [r.commit_hash for repo in info.repos if repo.repo_id == "org/large" for r in repo.revisions]
    info.delete_revisions(*commits).execute()
elif step == "empty":
    assert not scan(), scan()
print(f"  huggingface_hub {hub.__version__}: {step}", file=sys.stderr)
PY

# TLS in front of the hub, with a certificate authority that nobody knows.
key="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
# shellcheck disable=SC2086
{
    openssl req -x509 $key -days 2 -subj "/CN=an authority of our own" -keyout "$folder/ca.key" -out "$folder/ca.pem"
    openssl req $key -subj /CN=localhost -keyout "$folder/tls.key" -out "$folder/tls.csr"
    echo "subjectAltName=DNS:localhost" >"$folder/tls.ext"
    openssl x509 -req -in "$folder/tls.csr" -CA "$folder/ca.pem" -CAkey "$folder/ca.key" -days 2 -extfile "$folder/tls.ext" \
        -out "$folder/tls.pem"
} 2>/dev/null
cat >"$folder/tls.py" <<'PY'
import socket, ssl, sys, threading
folder, port = sys.argv[1], int(sys.argv[2].rsplit(":", 1)[1])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(f"{folder}/tls.pem", f"{folder}/tls.key")
listener = socket.create_server(("127.0.0.1", 0))
print(f"https://localhost:{listener.getsockname()[1]}", flush=True)

def pump(a, b):
    try:
        while data := a.recv(65536):
            b.sendall(data)
    except OSError:
        pass
    finally:
        b.close()

def serve(client):
    try:
        client = context.wrap_socket(client, server_side=True)
    except OSError:  # it does not trust us
        return
    hub = socket.create_connection(("127.0.0.1", port))
    threading.Thread(target=pump, args=(client, hub), daemon=True).start()
    pump(hub, client)

while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
PY
python3 "$folder/tls.py" "$folder" "$HF_ENDPOINT" >"$folder/tls-url" &
tls=$!
until [ -s "$folder/tls-url" ]; do sleep 0.05; done
pull=($bitnet pull org/tiny --endpoint "$(cat "$folder/tls-url")" --include '*config.json' --cache-dir "$folder/tls-cache")
cmp "$(SSL_CERT_FILE="$folder/ca.pem" "${pull[@]}")/config.json" tests/fixtures/bitnet-packed/config.json
rm -rf "$folder/tls-cache"
if said=$("${pull[@]}" 2>&1) || ! grep -qi certificate <<<"$said"; then
    echo "a certificate of a stranger: $said" >&2
    exit 1
fi
echo "TLS: pulled with SSL_CERT_FILE, refused without"

for version in $versions; do
    venv="$folder/venv-$version"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check "huggingface_hub==$version"
    check() { "$venv/bin/python" "$folder/check.py" "$1" "$folder/repos"; }
    expect() { [ "$1" = "$2" ] || { echo "expected $2, got $1" >&2; exit 1; }; }

    export HF_HOME="$folder/home-$version-a"
    $bitnet pull org/tiny >/dev/null
    $bitnet pull org/large:I2_S >/dev/null
    check found
    check delete
    expect "$($bitnet ls --json | python3 -c 'import json,sys; print([m["repo"] for m in json.load(sys.stdin)])')" "['org/tiny']"

    export HF_HOME="$folder/home-$version-b"
    check download >"$folder/paths"
    expect "$($bitnet pull org/tiny --offline)" "$(sed -n 1p "$folder/paths")"
    expect "$(HF_HUB_OFFLINE=1 $bitnet pull org/large:TQ2_0)" "$(sed -n 2p "$folder/paths")"
    expect "$(HF_HUB_OFFLINE=1 $bitnet run org/tiny --tokens 500,1 --temp 0 -n 8)" \
        "$($bitnet run tests/fixtures/bitnet-packed --tokens 500,1 --temp 0 -n 8)"
    $bitnet rm org/tiny >/dev/null
    $bitnet cache prune --max-size 0 >/dev/null
    check empty

    export HF_HOME="$folder/home-$version-c"
    BITNET="$bitnet" check together
    # The token that Python's client stores.
    "$venv/bin/python" -c 'from pathlib import Path; from huggingface_hub import constants
path = Path(constants.HF_TOKEN_PATH); path.parent.mkdir(parents=True, exist_ok=True); path.write_text("hf_right")'
    $bitnet pull org/secret >/dev/null
    echo "huggingface_hub $version: both find, share and remove what the other has"
done
