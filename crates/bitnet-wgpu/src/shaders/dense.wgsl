// Rule 13 of docs/numerics.md: products with dense weights. `value(row, c)` and ROW_WORDS come from the format's own file.
//
// Sixteen threads take a row, each every sixteenth column, and then fold what they have: L16.

struct Params {
    cols: u32,
    // Words that a row of weights has.
    row_words: u32,
    // Rows of the matrix, and tokens.
    rows: u32,
    tokens: u32,
    // The first row of x, columns of y, and the one where the products of these rows begin.
    x_row: u32,
    stride: u32,
    first: u32,
}
var<immediate> p: Params;

// [.., cols]
@group(0) @binding(0) var<storage, read> x: array<f32>;
@group(0) @binding(1) var<storage, read> w: array<u32>;
// [m, stride]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
// For rows of an embedding, in the place of x.
@group(0) @binding(0) var<storage, read> ids: array<u32>;

fn byte_at(word: u32, byte: u32) -> u32 {
    return (w[word + byte / 4u] >> (8u * (byte % 4u))) & 0xffu;
}

fn signed_byte(byte: u32) -> f32 {
    return f32(bitcast<i32>(byte << 24u) >> 24u);
}

const LANES = 16u;
const ROWS = 16u;
var<workgroup> lanes: array<vec4<f32>, 256>;

// One token a workgroup, or four: the same sums, in the same order.
@compute @workgroup_size(LANES, ROWS)
fn linear(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let row = group.x * ROWS + id.y;
    let token = group.y * TOKENS;
    let last = p.tokens - 1u;
    let at = (p.x_row + vec4(token, min(token + 1u, last), min(token + 2u, last), min(token + 3u, last))) * p.cols;
    var acc = vec4<f32>();
    if row < p.rows {
        for (var c = id.x; c < p.cols; c += LANES) {
            let v = value(row, c);
            acc.x = fma(v, x[at.x + c], acc.x);
            if TOKENS > 1u {
                acc.y = fma(v, x[at.y + c], acc.y);
                acc.z = fma(v, x[at.z + c], acc.z);
                acc.w = fma(v, x[at.w + c], acc.w);
            }
        }
    }
    lanes[i] = acc;
    workgroupBarrier();
    for (var width = LANES / 2u; width > 0u; width /= 2u) {
        if id.x < width {
            lanes[i] += lanes[i + width];
        }
        workgroupBarrier();
    }
    let t = token + id.x;
    if row < p.rows && id.x < TOKENS && t < p.tokens {
        y[t * p.stride + p.first + row] = lanes[id.y * LANES][id.x];
    }
}

// Rows `ids - first`, where they lie in this matrix: y [m, cols].
@compute @workgroup_size(64)
fn embed(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let row = ids[group.y] - p.first;
    let c = group.x * 64u + i;
    if row < p.rows && c < p.cols {
        y[group.y * p.cols + c] = value(row, c);
    }
}
