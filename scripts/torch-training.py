"""A BitNet b1.58 decoder in training with PyTorch on the CPU: what `cargo bench -p bitnet-training` trains, to measure it against.

    python3 torch-training.py THREADS STEPS f32|bf16

Six layers, 384 features, six heads of 64, a ReLU-squared gate of 1024 with norms before output and down projections, 4096 tied
tokens, eight rows of 256 tokens, AdamW, scaled-dot-product attention. `bf16` is autocast. Weights are made ternary and inputs int8 in every pass,
and gradients go straight through. The first step is a warm-up.
"""

import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

LAYERS, HIDDEN, HEADS, FFN, VOCAB, TOKENS, ROWS = 6, 384, 6, 1024, 4096, 256, 8
EPS = 1e-5


def straight(x, quantized):
    """The quantized value, and the gradient of the other."""
    return x + (quantized - x).detach()


class BitLinear(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x):
        scale = 1 / self.weight.detach().abs().mean().clamp(min=EPS)
        trits = (self.weight * scale).round().clamp(-1, 1) / scale
        return F.linear(x, straight(self.weight, trits))


def int8(x):
    scale = 127 / x.detach().abs().amax(-1, keepdim=True).clamp(min=EPS)
    return straight(x, (x * scale).round().clamp(-128, 127) / scale)


class Norm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, EPS)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(Norm(n) for n in (HIDDEN, HIDDEN, HIDDEN, FFN))
        self.q, self.k, self.v, self.o = (BitLinear(HIDDEN, HIDDEN) for _ in range(4))
        self.gate, self.up, self.down = BitLinear(HIDDEN, FFN), BitLinear(HIDDEN, FFN), BitLinear(FFN, HIDDEN)

    def forward(self, h, rotate):
        before_attention, before_output, before_gate, before_down = self.norms
        rows = h.shape[0]
        heads = lambda x: x.view(rows, TOKENS, HEADS, -1).transpose(1, 2)
        x = int8(before_attention(h))
        q, k, v = rotate(heads(self.q(x))), rotate(heads(self.k(x))), heads(self.v(x))
        x = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(rows, TOKENS, HIDDEN)
        h = h + self.o(int8(before_output(x)))
        x = int8(before_gate(h))
        return h + self.down(int8(before_down(F.relu(self.gate(x)).square() * self.up(x))))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        nn.init.normal_(self.embedding.weight, std=0.05)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = Norm(HIDDEN)
        size = HIDDEN // HEADS
        angles = torch.outer(torch.arange(TOKENS).float(), 500000.0 ** -(torch.arange(0, size, 2) / size))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids):
        def rotate(x):
            low, high = x.chunk(2, -1)
            both = (low * self.cos - high * self.sin, high * self.cos + low * self.sin)
            return torch.cat(both, -1).to(x.dtype)

        h = self.embedding(ids)
        for layer in self.layers:
            h = layer(h, rotate)
        return F.linear(self.norm(h), self.embedding.weight)


def fmix32(h):
    """MurmurHash3's finalizer."""
    h ^= h >> 16
    h = h * 0x85EBCA6B & 0xFFFFFFFF
    h ^= h >> 13
    h = h * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 16


threads, steps, precision = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(threads)
torch.manual_seed(0)
model = Decoder()
decayed = [p for p in model.parameters() if p.dim() > 1]
others = [p for p in model.parameters() if p.dim() == 1]
optimizer = torch.optim.AdamW(
    [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.95)
)
ids = torch.tensor([fmix32(n) % VOCAB for n in range(ROWS * (TOKENS + 1))]).view(ROWS, TOKENS + 1)
best = float("inf")
print(f"{sum(p.numel() for p in model.parameters())} parameters, {threads} threads, torch {torch.__version__}, {precision}")
for step in range(steps):
    begin = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.float().reshape(-1, VOCAB), ids[:, 1:].reshape(-1))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"step {step} loss {loss.item():.4f} {ROWS * TOKENS / seconds:.0f} tokens/s peak {peak} MiB", flush=True)
    best = min(best, seconds) if step else best
print(f"best {ROWS * TOKENS / best:.0f} tokens/s peak {peak} MiB")
