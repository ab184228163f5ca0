// Rules 5 and 6 of docs/numerics.md: products with ternary weights.
//
// Weights lie in tiles of 32 rows: [rows / 32][cols / 64][32] vectors of four words. A vector has 64 neighbouring codes of a
// row, two bits each, lowest first; code = trit + 1. So the lanes of a subgroup, which are rows, read neighbouring vectors,
// and all of them the same activations. Eight slices of a workgroup take every eighth vector of a row.

struct Params {
    // Columns of the matrix, and vectors that a row of it has.
    cols: u32,
    blocks: u32,
    // Rows of the matrix, and tokens.
    rows: u32,
    tokens: u32,
    // Columns of y, and the one where the products of these rows begin.
    stride: u32,
    first: u32,
    // Words of a row that share a scale, and rows that a group of scales has.
    group_words: u32,
    scale_rows: u32,
    // The first row of x, where that is what is read.
    x_row: u32,
}
var<immediate> p: Params;

struct Token {
    d: f32,
    sum: i32,
}

// [m, blocks * 4] vectors of four words, as quantize leaves them.
@group(0) @binding(0) var<storage, read> q: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> w: array<vec4<u32>>;
// [groups][scale_rows]
@group(0) @binding(2) var<storage, read> scales: array<f32>;
// [m, stride]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read> tokens: array<Token>;
// For float activations, [.., cols], in the place of q.
@group(0) @binding(0) var<storage, read> x: array<f32>;
// For rows of an embedding, in the place of q.
@group(0) @binding(0) var<storage, read> ids: array<u32>;

const ROWS = 32u;
const SLICES = 8u;

fn codes(word: u32, i: u32) -> u32 {
    return (word >> (2u * i)) & 0x03030303u;
}

// The product of sixteen codes with their activations.
fn dot16(word: u32, v: vec4<u32>) -> i32 {
    return dot4I8Packed(codes(word, 0u), v.x) + dot4I8Packed(codes(word, 1u), v.y)
        + dot4I8Packed(codes(word, 2u), v.z) + dot4I8Packed(codes(word, 3u), v.w);
}

// What turns an integer into a product.
fn rescaled(row: u32, token: u32, acc: i32) -> f32 {
    let t = tokens[token];
    return f32(acc - t.sum) * (t.d * scales[row]);
}

var<workgroup> partial: array<i32, 256>;

// One token a workgroup.
@compute @workgroup_size(ROWS, SLICES)
fn gemv(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let lane = id.x;
    let slice = id.y;
    var acc = 0;
    for (var block = slice; block < p.blocks; block += SLICES) {
        let word = w[(group.x * p.blocks + block) * ROWS + lane];
        let at = (group.y * p.blocks + block) * 4u;
        acc += dot16(word.x, q[at]) + dot16(word.y, q[at + 1u]) + dot16(word.z, q[at + 2u])
            + dot16(word.w, q[at + 3u]);
    }
    partial[slice * ROWS + lane] = acc;
    workgroupBarrier();
    let row = group.x * ROWS + lane;
    if slice == 0u && row < p.rows {
        var sum = 0;
        for (var i = 0u; i < SLICES; i++) {
            sum += partial[i * ROWS + lane];
        }
        y[group.y * p.stride + p.first + row] = rescaled(row, group.y, sum);
    }
}

// Tokens of a tile, and those of one thread.
const TILE = 32u;
const OWN = 4u;
// Activations of a tile's tokens and weights of its rows, two vectors of each.
var<workgroup> tile_q: array<vec4<u32>, 256>;
var<workgroup> tile_w: array<vec4<u32>, 64>;

// The product of sixteen codes with four tokens.
fn dot_own(word: u32, at: u32) -> vec4<i32> {
    return vec4(
        dot16(word, tile_q[at]),
        dot16(word, tile_q[at + 8u]),
        dot16(word, tile_q[at + 16u]),
        dot16(word, tile_q[at + 24u]),
    );
}

// 32 tokens a workgroup.
@compute @workgroup_size(ROWS, SLICES)
fn gemm(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let lane = id.x;
    let slice = id.y;
    let token = group.y * TILE;
    let loaded = min(token + i / 8u, p.tokens - 1u);
    var acc = vec4<i32>();
    // Rows have a whole number of pairs of vectors.
    for (var block = 0u; block < p.blocks; block += 2u) {
        tile_q[i] = q[(loaded * p.blocks + block) * 4u + i % 8u];
        if i < 64u {
            tile_w[i] = w[(group.x * p.blocks + block) * ROWS + i];
        }
        workgroupBarrier();
        for (var half = 0u; half < 2u; half++) {
            let word = tile_w[half * ROWS + lane];
            let at = slice * OWN * 8u + half * 4u;
            acc += dot_own(word.x, at) + dot_own(word.y, at + 1u) + dot_own(word.z, at + 2u) + dot_own(word.w, at + 3u);
        }
        workgroupBarrier();
    }
    let row = group.x * ROWS + lane;
    for (var j = 0u; j < OWN; j++) {
        let t = token + slice * OWN + j;
        if row < p.rows && t < p.tokens {
            y[t * p.stride + p.first + row] = rescaled(row, t, acc[j]);
        }
    }
}

var<workgroup> merged: array<f32, 256>;

fn word_at(tile: u32, word: u32, lane: u32) -> u32 {
    return w[(tile * p.blocks + word / 4u) * ROWS + lane][word % 4u];
}

// Adds up what the slices have and stores it.
fn merge(group: vec3<u32>, id: vec3<u32>, t: f32, factor: f32) {
    merged[id.y * ROWS + id.x] = t;
    workgroupBarrier();
    let row = group.x * ROWS + id.x;
    if id.y == 0u && row < p.rows {
        var sum = 0.0;
        for (var i = 0u; i < SLICES; i++) {
            sum += merged[i * ROWS + id.x];
        }
        y[group.y * p.stride + p.first + row] = sum * factor;
    }
}

// Scales for groups of columns; one token a workgroup.
@compute @workgroup_size(ROWS, SLICES)
fn grouped(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let row = group.x * ROWS + id.x;
    var t = 0.0;
    for (var word = id.y; 16u * word < p.cols; word += SLICES) {
        let v = q[group.y * p.blocks * 4u + word];
        let ones = 0x01010101u;
        let extra = dot4I8Packed(ones, v.x) + dot4I8Packed(ones, v.y) + dot4I8Packed(ones, v.z) + dot4I8Packed(ones, v.w);
        let sum = f32(dot16(word_at(group.x, word, id.x), v) - extra);
        t = fma(sum, scales[word / p.group_words * p.scale_rows + row], t);
    }
    merge(group, id, t, tokens[group.y].d);
}

// Float activations; one token a workgroup.
@compute @workgroup_size(ROWS, SLICES)
fn float_gemv(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let row = group.x * ROWS + id.x;
    var t = 0.0;
    for (var word = id.y; 16u * word < p.cols; word += SLICES) {
        let bits = word_at(group.x, word, id.x);
        var sum = 0.0;
        for (var i = 0u; i < 16u && 16u * word + i < p.cols; i++) {
            let trit = f32((bits >> (2u * i)) & 3u) - 1.0;
            sum = fma(trit, x[(p.x_row + group.y) * p.cols + 16u * word + i], sum);
        }
        t = fma(sum, scales[word / p.group_words * p.scale_rows + row], t);
    }
    merge(group, id, t, 1.0);
}

// Rows `ids - first` as floats, where they lie in this matrix: y [m, cols].
@compute @workgroup_size(64)
fn embed(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let row = ids[group.y] - p.first;
    let c = group.x * 64u + i;
    if row < p.rows && c < p.cols {
        let bits = word_at(row / ROWS, c / 16u, row % ROWS);
        let trit = f32((bits >> (2u * (c % 16u))) & 3u) - 1.0;
        y[group.y * p.cols + c] = trit * scales[c / 16u / p.group_words * p.scale_rows + row];
    }
}
