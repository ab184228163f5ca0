// Rule 8 of docs/numerics.md: turns the heads of queries and keys, in place. A thread a pair.

struct Params {
    // Pairs of all rows; heads that are turned, pairs of a head, and elements of a row.
    n: u32,
    heads: u32,
    half: u32,
    cols: u32,
    // Where operands begin.
    qkv: u32,
    cosines: u32,
    sines: u32,
    // 1, or -1 on the way back.
    sense: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
// [positions, half]
@group(0) @binding(1) var<storage, read> cosines: array<f32>;
@group(0) @binding(2) var<storage, read> sines: array<f32>;
// [m]
@group(0) @binding(3) var<storage, read> positions: array<u32>;

const SIZE = 256u;

@compute @workgroup_size(SIZE)
fn rotate(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let pairs = p.heads * p.half;
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        let row = i / pairs;
        let pair = i % pairs;
        let e = pair % p.half;
        let low = p.qkv + row * p.cols + pair / p.half * 2u * p.half + e;
        let angle = positions[row] * p.half + e;
        let cosine = cosines[p.cosines + angle];
        let sine = sines[p.sines + angle] * p.sense;
        let a = qkv[low];
        let b = qkv[low + p.half];
        qkv[low] = a * cosine - b * sine;
        qkv[low + p.half] = b * cosine + a * sine;
    }
}
