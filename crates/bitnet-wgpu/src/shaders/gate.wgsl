// Rule 9 of docs/numerics.md: gated activations. `act` is one of the three below.

struct Params {
    // Elements of y, and its columns.
    n: u32,
    cols: u32,
}
var<immediate> p: Params;

// [m, cols]
@group(0) @binding(0) var<storage, read_write> y: array<f32>;
// [m, gate | up]
@group(0) @binding(1) var<storage, read> x: array<f32>;

fn relu2(g: f32, u: f32) -> f32 {
    return select(0.0, (g * g) * u, g > 0.0);
}

fn silu(g: f32, u: f32) -> f32 {
    return g / (1.0 + exponential(-g)) * u;
}

fn gelu(g: f32, u: f32) -> f32 {
    let c = fma(g * g * 0.044715, g, g);
    return g / (1.0 + exponential(-(c * 1.5957692))) * u;
}

const SIZE = 64u;

@compute @workgroup_size(SIZE)
fn gate(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        let at = i / p.cols * 2u * p.cols + i % p.cols;
        y[i] = act(x[at], x[at + p.cols]);
    }
}
