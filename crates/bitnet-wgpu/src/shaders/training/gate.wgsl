// Rule 9 of docs/numerics.md: gated activations, and the way back. `act`, an activation and its slope, is one of the three below.

struct Params {
    // Elements of the result of the way forward, and its columns.
    n: u32,
    cols: u32,
    // Where operands begin.
    x: u32,
    dy: u32,
    to: u32,
}
var<immediate> p: Params;

// [m, cols], or on the way back [m, gate | up].
@group(0) @binding(0) var<storage, read_write> to: array<f32>;
// [m, gate | up]
@group(0) @binding(1) var<storage, read> x: array<f32>;
// [m, cols]
@group(0) @binding(2) var<storage, read> dy: array<f32>;

fn relu2(g: f32) -> vec2<f32> {
    // What is no number stays so.
    let t = select(g, 0.0, g < 0.0);
    return vec2(t * t, t + t);
}

fn silu(g: f32) -> vec2<f32> {
    let sigmoid = 1.0 / (1.0 + exponential(-g));
    return vec2(g * sigmoid, sigmoid * fma(g, 1.0 - sigmoid, 1.0));
}

fn gelu(g: f32) -> vec2<f32> {
    let square = g * g;
    let c = fma(square * 0.044715, g, g);
    let sigmoid = 1.0 / (1.0 + exponential(-(c * 1.5957692)));
    let steep = fma(square, 0.134145, 1.0) * 1.5957692;
    return vec2(g * sigmoid, sigmoid * fma(g * (1.0 - sigmoid), steep, 1.0));
}

const SIZE = 256u;

@compute @workgroup_size(SIZE)
fn forward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        let at = p.x + i / p.cols * 2u * p.cols + i % p.cols;
        to[p.to + i] = act(x[at]).x * x[at + p.cols];
    }
}

@compute @workgroup_size(SIZE)
fn backward(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        let place = i / p.cols * 2u * p.cols + i % p.cols;
        let value = act(x[p.x + place]);
        let d = dy[p.dy + i];
        to[p.to + place] = (value.y * x[p.x + place + p.cols]) * d;
        to[p.to + place + p.cols] = value.x * d;
    }
}
