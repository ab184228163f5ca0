#!/usr/bin/env python3
"""What the model that ships is worth, measured, and written into its card.

    BITNET=bitnet demo_card.py WORK MODELS

WORK is the folder of train-demo.sh. Writes MODELS/figures.json (every figure, and greedy answers that tests ask for again), the tables of
MODELS/README.md between its marks, and MODELS/loss.svg. Needs the standard library alone, gzip and xz.
"""

import gzip
import json
import lzma
import math
import os
import subprocess
import sys

BITNET = os.environ["BITNET"]
TEXTS = ["novels", "speeches", "sermons", "glosses", "places"]
PROMPTS = ["The capital of France is", "It was a dark and stormy night, and", "We must"]
QUESTIONS = ["Hello", "What is the capital of France?", "What is a dog?", "What is the opposite of hot?", "What is 3 plus 4?"]
END = "<|endoftext|>"
ANSWER = 48


def bitnet(*args, text=""):
    ran = subprocess.run([BITNET, *args], input=text, capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"error: bitnet {' '.join(args)}: {ran.stderr}")
    return ran.stdout


def documents(work, name):
    return [json.loads(line)["text"] for line in open(f"{work}/{name}.jsonl", encoding="utf-8")]


def metrics(work, run):
    lines = [json.loads(line) for line in open(f"{work}/{run}/metrics.jsonl")]
    return [m for m in lines if "loss" in m], [m for m in lines if "validation_loss" in m]


def written(path, make):
    """Makes what takes long only once."""
    if not os.path.exists(path):
        text = make()
        with open(path + ".new", "w", encoding="utf-8") as f:
            f.write(text)
        os.replace(path + ".new", path)
    return open(path, encoding="utf-8").read()


def perplexities(work):
    """Of the held-out text, by everyone who predicts it. Models do so in rows of 512 tokens whose documents do not see each other, as they
    were trained; what is exported computes the same states."""
    held = documents(work, "valid")
    found = {}
    for name, run in [("pre-trained", "pretrain"), ("shipped", "measured"), ("float", "float")]:
        if any(os.path.exists(f"{work}/{run}/{made}") for made in ("model", "adapter")):
            found[name] = {"nll": metrics(work, run)[1][-1]["validation_loss"]}
    train = END.join(text for name in TEXTS for text in documents(work, name))
    written(f"{work}/train.ids", lambda: bitnet("tokenize", f"{work}/tokenizer", text=train))
    # All but the first one are predicted: those of texts, and the end of each but the last.
    tokens = len(written(f"{work}/valid.ids", lambda: bitnet("tokenize", f"{work}/tokenizer", text=END.join(held))).split()) - 1
    ngram = os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo_ngram.py")
    args = [sys.executable, ngram, f"{work}/train.ids", f"{work}/valid.ids", "1", str(tokens)]
    make = lambda: subprocess.run(args, check=True, capture_output=True, text=True).stdout
    found["5-gram"] = json.loads(written(f"{work}/ngram.json", make))
    text = "\n".join(held).encode()
    for said in found.values():
        said["ppl"] = math.exp(said["nll"])
        said["bits_per_byte"] = said["nll"] * tokens / math.log(2) / len(text)
    found |= json.loads(written(f"{work}/compressors.json", lambda: compressors(text, train.replace(END, "\n").encode())))
    return found, len(held), len(text), tokens


def compressors(text, before):
    xz = lambda data: len(lzma.compress(data, preset=9))
    sizes = {"gzip": len(gzip.compress(text, 9)), "xz": xz(text), "xz behind the training text": xz(before + text) - xz(before)}
    return json.dumps({name: {"bits_per_byte": size * 8 / len(text)} for name, size in sizes.items()})


def answer(model, prompt):
    ran = json.loads(bitnet("run", model, "-p", prompt, "--temp", "0", "-n", str(ANSWER), "--json", "-q"))
    return ran["text"]


def reply(model, question):
    return bitnet("chat", model, "--temp", "0", "-n", str(ANSWER), "-q", "--no-color", text=question + "\n").strip()


def table(rows, head):
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def svg(curves):
    """Losses over tokens, one line a curve."""
    width, height, left, bottom = 720, 360, 50, 30
    right = max(x for _, _, points in curves for x, _ in points)
    low, high = 2.0, 8.5
    at = lambda x, y: (left + x / right * (width - left - 20), (high - y) / (high - low) * (height - bottom - 10) + 10)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for loss in range(2, 9):
        _, y = at(0, loss)
        out.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - 20}" y2="{y:.1f}" stroke="#ddd"/>'
                   f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{loss}</text>')
    step = 2 if right > 5e6 else 1
    for millions in range(0, int(right / 1e6) + 1, step):
        x, _ = at(millions * 1e6, low)
        out.append(f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">{millions} M</text>')
    for i, (name, colour, points) in enumerate(curves):
        line = " ".join("{:.1f},{:.1f}".format(*at(x, min(max(y, low), high))) for x, y in points)
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{line}"/>'
                   f'<text x="{width - 30}" y="{30 + 18 * i}" text-anchor="end" fill="{colour}">{name}</text>')
    out.append(f'<text x="{left + 8}" y="20">loss (nats a token) over tokens seen</text></svg>')
    return "\n".join(out) + "\n"


def curves(work):
    found = []
    for run, name, colours in [("pretrain", "ternary", ("#9ecae1", "#08519c")), ("float", "float", ("#fdbe85", "#a63603"))]:
        if not os.path.exists(f"{work}/{run}/metrics.jsonl"):
            continue
        steps, validations = metrics(work, run)
        of = steps[0]["tokens"]
        found.append((f"{name}, training", colours[0], [(m["step"] * of, m["loss"]) for m in steps]))
        found.append((f"{name}, held out", colours[1], [(m["step"] * of, m["validation_loss"]) for m in validations]))
    return found


def main():
    work, models = sys.argv[1:]
    model = f"{work}/bitnet-mini.gguf"
    found, held, held_bytes, held_tokens = perplexities(work)
    steps, _ = metrics(work, "pretrain")
    sources = json.load(open(f"{work}/corpus/sources.json"))
    inspected = json.loads(bitnet("inspect", model, "--json"))
    chat = {run: metrics(work, run)[1] for run in ("chat-before", "chat")}
    number = lambda n: f"{n:,}"
    figures = {
        "weights": number(inspected["total"]["weights"]),
        "bytes of the file": number(os.path.getsize(model)),
        "bits a weight": f"{inspected['total']['bits_per_weight']:.2f}",
        "steps of pre-training": number(steps[-1]["step"]),
        "tokens seen": number(steps[-1]["step"] * steps[0]["tokens"]),
        "held-out documents": number(held),
        "held-out bytes": number(held_bytes),
        "held-out tokens that are predicted": number(held_tokens),
        "loss of held-out answers, pre-trained": f"{chat['chat-before'][-1]['validation_loss']:.3f}",
        "loss of held-out answers, shipped": f"{min(m['validation_loss'] for m in chat['chat']):.3f}",
    }
    for name, sizes in sources.items():
        figures[f"text: {name}"] = f"{number(sizes['documents'])} documents, {sizes['bytes'] / 1e6:.1f} MB"
    names = {"pre-trained": "this model, before it learnt to answer", "shipped": "this model, as it ships",
             "float": "the same body with float weights and activations, trained the same way", "5-gram": "5-gram, interpolated modified Kneser-Ney"}
    for name, said in found.items():
        name = names.get(name, name)
        if "ppl" in said:
            figures[f"perplexity: {name}"] = f"{said['ppl']:.2f}"
        figures[f"bits per byte: {name}"] = f"{said['bits_per_byte']:.3f}"
    for layer, share in enumerate(metrics(work, "measured")[1][-1]["activation_sparsity"]):
        figures[f"zeros among the inputs of down, layer {layer}"] = f"{100 * share:.1f} %"
    greedy = {prompt: answer(model, prompt) for prompt in PROMPTS}
    replies = {question: reply(model, question) for question in QUESTIONS}
    with open(f"{models}/figures.json", "w", encoding="utf-8") as f:
        json.dump({"figures": figures, "greedy": greedy, "replies": replies}, f, indent=1, ensure_ascii=False)
        f.write("\n")

    flat = lambda text: text.replace("\n", " ").replace("|", "\\|")
    samples = [(f"`{p}`", flat(t)) for p, t in list(greedy.items()) + list(replies.items())]
    parts = {"figures": table(figures.items(), ["figure", "value"]), "samples": table(samples, ["prompt", "what it says"])}
    card = open(f"{models}/README.md", encoding="utf-8").read()
    for name, text in parts.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        card = card[:card.index(begin) + len(begin)] + text + card[card.index(end):]
    with open(f"{models}/README.md", "w", encoding="utf-8") as f:
        f.write(card)
    with open(f"{models}/loss.svg", "w", encoding="utf-8") as f:
        f.write(svg(curves(work)))


if __name__ == "__main__":
    main()
