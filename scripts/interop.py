"""Checks of interop.sh. Usage: interop.py BITNET FIXTURES [CHECK...]; one line a check, exit code 1 if one fails."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

BITNET, FIXTURES = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
WORK = Path(tempfile.mkdtemp(prefix="bitnet-interop-"))
# Two right implementations in single precision agree to this where no activation rounds the other way.
TOLERANCE = 2e-4


def bitnet(*args):
    done = subprocess.run([BITNET, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"bitnet {' '.join(map(str, args))}: {done.stderr.strip()}")
    return done.stdout


def tensor(path, name):
    # Other tensors of the file may have types that numpy does not know.
    with safe_open(path, framework="np") as file:
        return file.get_tensor(name)


def convert(source, target, *more):
    """Converts once; the path."""
    out = WORK / f"{Path(source).name}--{'-'.join([target, *more])}"
    if not out.exists():
        bitnet("convert", source, out, "--to", target, *more)
    return out


def logits(model, ids, *more):
    out = WORK / "logits.safetensors"
    bitnet("logits", model, "--tokens", ",".join(map(str, ids)), "--cache-type", "f32", "-q", "-o", out, *more)
    return tensor(out, "logits")


def strict(model):
    """Ids of a prompt at which no activation is near a rounding boundary."""
    prompts = json.loads((FIXTURES / model / "reference.json").read_text())["prompts"]
    return next(p["ids"] for p in prompts if p["kind"] == "strict")


def near(name, got, want, limit=TOLERANCE):
    error = float(np.abs(np.asarray(got, np.float32) - want).max())
    if not error <= limit:
        raise AssertionError(f"{name}: logits differ by {error:.2e}")
    return error


def check_transformers():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    errors = []
    for model in ["bitnet-online", "bitnet-packed", "llama-packed"]:
        ids = strict(model)
        gguf = convert(FIXTURES / model, "i2_s")
        reference = tensor(FIXTURES / model / "reference.safetensors", "logits.strict0")
        cases = [(FIXTURES / model, "hf-f32"), (gguf, "hf-autobitlinear"), (gguf, "hf-bitlinear"), (gguf, "hf-bf16")]
        for source, target in cases:
            path = convert(source, target)
            torch_model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
            torch.nn.Module.float(torch_model)
            with torch.no_grad():
                got = torch_model(torch.tensor([ids])).logits[0].numpy()
            errors.append(near(f"{path.name}", got, logits(path, ids)))
            if model != "bitnet-online":
                near(f"{path.name} and the reference", got, reference)
        theirs = AutoTokenizer.from_pretrained(convert(gguf, "hf-autobitlinear"))
        text = "The ships at night: 12345 é世\n\n<|eot_id|>done"
        ours = json.loads(bitnet("tokenize", gguf, text, "--json"))
        ours = ours["ids"] if isinstance(ours, dict) else ours
        assert theirs(text)["input_ids"] == ours, f"{theirs(text)['input_ids']} {ours}"
    return f"{len(errors)} models, logits within {max(errors):.1e}; tokenizers give our ids"


def check_gguf():
    import gguf

    compared = 0
    for model, targets in [
        ("bitnet-packed-k256", ["tq1_0", "tq2_0", "q8_0", "f16", "bf16", "f32"]),
        ("llama-packed", ["q8_0", "f16", "bf16", "f32"]),
        ("bitnet-online", ["q8_0", "f16", "bf16", "f32"]),
    ]:
        for target in targets:
            path = convert(FIXTURES / model, target, "--embedding", "f16")
            ours = {t.name: t for t in gguf.GGUFReader(convert(path, "f32")).tensors}
            reader = gguf.GGUFReader(path)
            for t in reader.tensors:
                theirs = gguf.quants.dequantize(t.data, t.tensor_type).reshape(-1)
                want = ours[t.name].data.reshape(-1).view(np.float32)
                if not np.array_equal(theirs, want):
                    raise AssertionError(f"{path.name} {t.name}: {np.abs(theirs - want).max()}")
                compared += 1
            tokens = reader.fields["tokenizer.ggml.tokens"]
            assert len(tokens.data) == 512, len(tokens.data)
    return f"{compared} tensors, every value equal"


def llama_256():
    """A Llama with rows of 256 and ternary weights, in Hugging Face's packing."""
    out = WORK / "llama-256"
    if out.exists():
        return out
    shutil.copytree(FIXTURES / "llama-packed", out)
    config = json.loads((out / "config.json").read_text())
    config |= {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64, "num_attention_heads": 4}
    (out / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(7)
    h, f, kv, vocab = 256, 512, 128, 512
    tensors = {}

    def dense(name, shape, size):
        tensors[name] = (random.standard_normal(shape) * size).astype(np.float16)

    def projection(name, rows, cols):
        trits = random.choice([-1, 0, 1], (rows, cols), p=[0.3, 0.4, 0.3])
        parts = (trits + 1).astype(np.uint8).reshape(4, rows // 4, cols)
        tensors[name] = parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6
        # A divisor whose reciprocal is a power of two: f16 holds it, so that all formats hold the same model.
        tensors[name + "_scale"] = np.array([2.0 ** round(np.log2(np.sqrt(cols * 0.6)))], np.float32)

    dense("model.embed_tokens.weight", (vocab, h), 1.0)
    dense("lm_head.weight", (vocab, h), 0.2)
    tensors["model.norm.weight"] = np.ones(h, np.float16)
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        for norm in ["input_layernorm", "post_attention_layernorm"]:
            tensors[p + norm + ".weight"] = np.ones(h, np.float16)
        for name, rows, cols in [
            ("self_attn.q_proj", h, h), ("self_attn.k_proj", kv, h), ("self_attn.v_proj", kv, h), ("self_attn.o_proj", h, h),
            ("mlp.gate_proj", f, h), ("mlp.up_proj", f, h), ("mlp.down_proj", h, f),
        ]:
            projection(p + name + ".weight", rows, cols)
    (out / "model.safetensors").unlink()
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return out


def check_llama_cpp():
    from llama_cpp import Llama

    ids = [1 + 37 * i % 499 for i in range(64)]
    source = llama_256()

    def run(path):
        model = Llama(str(path), logits_all=True, n_ctx=128, n_batch=128, verbose=False, n_threads=2)
        model.eval(ids)
        return model.scores[: len(ids)].copy()

    lines = []
    exact = run(convert(source, "f32"))
    for target in ["f32", "f16", "tq1_0", "tq2_0", "q2_0"]:
        path = convert(source, target)
        try:
            theirs = exact if target == "f32" else run(path)
        except ValueError:
            lines.append(f"{target}: not read by this version")
            continue
        ours = logits(path, ids, "--act", "float")
        # What its quantized activations do to its own logits; half a margin is what two logits may move.
        error = np.abs(theirs - exact).max(axis=1) + np.abs(exact - ours).max()
        top = np.sort(ours, axis=1)
        sure = top[:, -1] - top[:, -2] > 2 * error
        same = theirs.argmax(axis=1) == ours.argmax(axis=1)
        assert same[sure].all(), f"{target}: other tokens at {np.flatnonzero(sure & ~same)}"
        assert sure.sum() > len(ids) // 4, f"{target}: only {sure.sum()} tokens have a margin that says anything"
        lines.append(f"{target}: {sure.sum()} of {len(ids)} tokens sure, all the same, {same.sum()} in all (error {error.max():.1e})")
    return "; ".join(lines)


def check_onnxruntime():
    import onnx
    import onnxruntime

    errors = []
    for model in ["bitnet-online", "bitnet-packed", "bitnet-packed-k256", "llama-packed"]:
        path = convert(FIXTURES / model, "onnx")
        onnx.checker.check_model(path / "model.onnx", full_check=True)
        session = onnxruntime.InferenceSession(path / "model.onnx", providers=["CPUExecutionProvider"])
        for prompt in json.loads((FIXTURES / model / "reference.json").read_text())["prompts"]:
            if prompt["kind"] != "strict":
                continue
            (got,) = session.run(None, {"input_ids": np.array([prompt["ids"]] * 2, np.int64)})
            reference = tensor(FIXTURES / model / "reference.safetensors", f"logits.{prompt['name']}")
            errors.append(near(f"{model} {prompt['name']}", got[1], reference))
            near(f"{model} {prompt['name']} and ours", got[0], logits(FIXTURES / model, prompt["ids"]))
    # And back: the graph's tensors are the model's.
    back = bitnet("inspect", FIXTURES / "llama-packed", "--diff", convert(FIXTURES / "llama-packed", "onnx"), "--json")
    assert not json.loads(back)["unmatched"] and all(t["trits_differ"] == 0 for t in json.loads(back)["tensors"].values()), back
    return f"{len(errors)} prompts, logits within {max(errors):.1e} of the reference"


def check_torch():
    import torch

    written = 0
    for target in ["autobitlinear", "bitlinear", "bf16", "f16", "f32"]:
        path = convert(FIXTURES / "llama-packed", f"pt-{target}")
        theirs = torch.load(path / "pytorch_model.bin", weights_only=True, mmap=True)
        from safetensors.torch import load_file as load_torch

        ours = load_torch(convert(FIXTURES / "llama-packed", f"hf-{target}") / "model.safetensors")
        assert theirs.keys() == ours.keys()
        for name, t in ours.items():
            assert t.dtype == theirs[name].dtype and torch.equal(t, theirs[name]), name
            written += 1
    read = 0
    model = torch.load(convert(FIXTURES / "bitnet-online", "pt-bf16") / "pytorch_model.bin", weights_only=True)
    q = "model.layers.0.self_attn.q_proj.weight"
    transposed = dict(model) | {q: model[q].t().contiguous().t()}
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4, 4)}}, "param_groups": [{"lr": 1e-3}]}
    ddp = {"module." + name: torch.nn.Parameter(t) for name, t in model.items()}
    for kind, content in {
        "plain": model, "transposed": transposed, "nested": {"model": model, "optimizer": optimizer, "epoch": 3},
        "state_dict": {"state_dict": ddp, "optimizer": optimizer},
    }.items():
        for zipped in [True, False]:
            out = WORK / f"torch-{kind}-{zipped}"
            shutil.copytree(FIXTURES / "bitnet-online", out)
            (out / "model.safetensors").unlink()
            torch.save(content, out / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
            diff = bitnet("inspect", FIXTURES / "bitnet-online", "--diff", out)
            assert diff.strip() == "no differences", f"{kind}: {diff}"
            others = [t["name"] for t in json.loads(bitnet("inspect", out, "--json"))["other_tensors"]]
            assert others == (["optimizer.state.0.step", "optimizer.state.0.exp_avg"] if "optimizer" in content else []), others
            read += 1
    return f"{written} tensors of ours equal, weights_only; {read} files of its own (zip and older) read"


def check_mlx():
    import mlx.core as mx
    from mlx_lm.utils import load_model

    loaded = 0
    for model in ["bitnet-packed", "llama-packed"]:
        path = convert(FIXTURES / model, "mlx")
        mlx_model, _ = load_model(path, lazy=False)
        weights = mx.load(str(path / "model.safetensors"))
        import mlx.utils

        parameters = dict(mlx.utils.tree_flatten(mlx_model.parameters()))
        for name, t in weights.items():
            assert mx.array_equal(t, parameters[name]).item(), name
            loaded += 1
        assert {t.dtype for n, t in weights.items() if t.dtype != mx.uint8} in ({mx.bfloat16}, {mx.float32})
        back = json.loads(bitnet("inspect", FIXTURES / model, "--diff", path, "--json"))
        assert not back["unmatched"], back
        assert all(t["trits_differ"] == 0 for t in back["tensors"].values()), back
    return f"{loaded} tensors in its models' places (its ternary product needs Metal and was not run)"


CHECKS = {
    "transformers": check_transformers, "gguf": check_gguf, "llama-cpp-python": check_llama_cpp,
    "onnxruntime": check_onnxruntime, "torch": check_torch, "mlx-lm": check_mlx,
}


def main():
    failed = False
    for package in sys.argv[3:] or CHECKS:
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{package}: not run, it is not installed")
            continue
        try:
            print(f"{package} {version}: {CHECKS[package]()}", flush=True)
        except Exception as e:  # a check that breaks has failed, the others go on
            failed = True
            print(f"{package} {version}: FAILED: {type(e).__name__}: {e}", flush=True)
    shutil.rmtree(WORK)
    sys.exit(failed)


main()
