"""Products in bfloat16 by cuBLAS, of the shapes that `kernels.rs` beside this has: what its figures are compared with.

Needs PyTorch with CUDA. Weights are used in turn, so many that no cache holds them, and a graph of many products is timed.
"""

import statistics

import torch

SHAPES = [(2560, 2560), (3840, 2560), (13824, 2560), (2560, 6912), (3200, 3200), (4800, 3200), (3200, 10240), (20480, 3200)]

print(torch.cuda.get_device_name(0), torch.__version__)
print("rows,cols,tokens,microseconds,least")
for rows, cols in SHAPES:
    copies = min(max((768 << 20) // (rows * cols * 2), 2), 64)
    weights = [torch.randn(rows, cols, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    for tokens in (1, 16, 64, 512):
        x = torch.randn(tokens, cols, device="cuda", dtype=torch.bfloat16)
        times = 2 * copies
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for w in weights[:3]:
                torch.nn.functional.linear(x, w)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(times):
                torch.nn.functional.linear(x, weights[i % copies])
        for _ in range(3):
            graph.replay()
        seconds = []
        for _ in range(10):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize()
            seconds.append(begin.elapsed_time(end) / times * 1e3)
        print(f"{rows},{cols},{tokens},{statistics.median(seconds):.2f},{min(seconds):.2f}", flush=True)
    del weights
