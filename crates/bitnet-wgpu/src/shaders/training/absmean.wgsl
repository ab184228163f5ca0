// Rule 7 of docs/numerics.md, in single precision with what sums lose beside them: trits of master weights.

struct Params {
    // Rows and columns, and their product.
    rows: u32,
    cols: u32,
    n: u32,
    // Where operands begin; codes at a word.
    masters: u32,
    codes: u32,
    // Words of a row of codes, four each.
    words: u32,
    scale: u32,
    // Parts of the sum.
    parts: u32,
}
var<immediate> p: Params;

// [rows, cols]
@group(0) @binding(0) var<storage, read> masters: array<f32>;
// A sum and what it lost for each part; behind them what masters are multiplied with.
@group(0) @binding(1) var<storage, read_write> parts: array<vec2<f32>>;
@group(0) @binding(2) var<storage, read_write> codes: array<u32>;
@group(0) @binding(3) var<storage, read_write> scale: array<f32>;

const SIZE = 256u;
// Elements of a part.
const PART = 16384u;
var<workgroup> lanes: array<vec2<f32>, SIZE>;

// The sum of two such sums.
fn added(a: vec2<f32>, b: vec2<f32>) -> vec2<f32> {
    let sum = a.x + b.x;
    let own = sum - b.x;
    return vec2(sum, ((a.x - own) + (b.x - (sum - own))) + (a.y + b.y));
}

fn total(i: u32, v: vec2<f32>) -> vec2<f32> {
    lanes[i] = v;
    workgroupBarrier();
    for (var width = SIZE / 2u; width > 0u; width /= 2u) {
        if i < width {
            lanes[i] = added(lanes[i], lanes[i + width]);
        }
        workgroupBarrier();
    }
    return lanes[0];
}

@compute @workgroup_size(SIZE)
fn magnitudes(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let end = min(p.n, (group.x + 1u) * PART);
    var sum = vec2<f32>();
    for (var at = group.x * PART + i; at < end; at += SIZE) {
        sum = added(sum, vec2(abs(masters[p.masters + at]), 0.0));
    }
    let all = total(i, sum);
    if i == 0u {
        parts[group.x] = all;
    }
}

@compute @workgroup_size(SIZE)
fn mean(@builtin(local_invocation_index) i: u32) {
    var sum = vec2<f32>();
    for (var part = i; part < p.parts; part += SIZE) {
        sum = added(sum, parts[part]);
    }
    let all = total(i, sum);
    if i == 0u {
        let s = 1.0 / max((all.x + all.y) / f32(p.n), 1e-5);
        parts[p.parts] = vec2(s, 0.0);
        scale[p.scale] = 1.0 / s;
    }
}

@compute @workgroup_size(SIZE)
fn trits(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let s = parts[p.parts].x;
    for (var i = id.x; i < p.rows * p.words; i += groups.x * SIZE) {
        let row = i / p.words;
        var packed = 0u;
        for (var j = 0u; j < 4u; j++) {
            let c = i % p.words * 4u + j;
            if c < p.cols {
                let v = masters[p.masters + row * p.cols + c] * s;
                packed |= select(select(0u, 0xffu, v < -0.5), 1u, v > 0.5) << (8u * j);
            }
        }
        codes[p.codes + i] = packed;
    }
}
