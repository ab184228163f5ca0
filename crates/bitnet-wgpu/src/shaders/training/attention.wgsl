// What the passes of attention have in common. A workgroup has 32 rows of a sequence, which are on the left, and goes through others by 32, which
// are on the right: 4 by 4 elements a thread of the products of both, then 4 by 8 of what weights on the right come to, 64 columns of it.
//
// The weights of a sequence are never all there at once; heads of more than 64 elements have them computed for each 64.

struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    // 1 / sqrt(head_dim)
    scale: f32,
    // Where operands begin.
    qkv: u32,
    out: u32,
    sums: u32,
    dout: u32,
    dqkv: u32,
}
var<immediate> p: Params;

// [m, (heads + 2 kv_heads) * head_dim]
@group(0) @binding(0) var<storage, read> qkv: array<f32>;
// Of each 32 rows: the first of their sequence, the one behind its last, the first of these.
@group(0) @binding(1) var<storage, read> blocks: array<vec3<u32>>;

const BLOCK = 32u;
const STEP = 16u;
const CHUNK = 64u;
// Vectors of four of a tile of 32 and of 64, and one more, so that threads that store a row each meet other banks.
const NARROW = 9u;
const WIDE = 17u;

// Rows of a matrix.
struct Rows {
    // The first element of the first one.
    first: u32,
    stride: u32,
    count: u32,
    // Of `dout`, not of `qkv`.
    of_gradients: bool,
}

var<workgroup> left: array<vec4<f32>, STEP * NARROW>;
var<workgroup> right: array<vec4<f32>, STEP * NARROW>;
// [right][left]: weights, or their gradients.
var<workgroup> weights: array<vec4<f32>, BLOCK * NARROW>;
var<workgroup> chunk: array<vec4<f32>, STEP * WIDE>;

// Products: of each of the right rows of a thread, those with its left ones.
var<private> dots: mat4x4<f32>;
// Of each of the left rows of a thread four columns of a chunk, and four in its other half.
var<private> low: mat4x4<f32>;
var<private> high: mat4x4<f32>;

fn row_width() -> u32 {
    return (p.heads + 2u * p.kv_heads) * p.head_dim;
}

fn queries(row: u32, end: u32, head: u32) -> Rows {
    return Rows(p.qkv + row * row_width() + head * p.head_dim, row_width(), min(BLOCK, end - row), false);
}

fn keys(row: u32, end: u32, kv_head: u32) -> Rows {
    return queries(row, end, p.heads + kv_head);
}

fn values(row: u32, end: u32, kv_head: u32) -> Rows {
    return queries(row, end, p.heads + p.kv_heads + kv_head);
}

fn element(rows: Rows, row: u32, e: u32, round_it: bool) -> f32 {
    if row >= rows.count || e >= p.head_dim {
        return 0.0;
    }
    let v = value(rows.of_gradients, rows.first + row * rows.stride + e);
    if round_it {
        return rounded(v);
    }
    return v;
}

fn four(rows: Rows, row: u32, e: u32, round_it: bool) -> vec4<f32> {
    return vec4(
        element(rows, row, e, round_it),
        element(rows, row + 1u, e, round_it),
        element(rows, row + 2u, e, round_it),
        element(rows, row + 3u, e, round_it),
    );
}

fn multiply_step(e: u32, i: u32) {
    let a = left[e * NARROW + i / 8u];
    let b = right[e * NARROW + i % 8u];
    dots[0] = fma(a, vec4(b.x), dots[0]);
    dots[1] = fma(a, vec4(b.y), dots[1]);
    dots[2] = fma(a, vec4(b.z), dots[2]);
    dots[3] = fma(a, vec4(b.w), dots[3]);
}

// The products of 32 rows with 32 others.
fn multiply(a: Rows, b: Rows, i: u32, round_it: bool) {
    dots = mat4x4<f32>();
    for (var begin = 0u; begin < p.head_dim; begin += STEP) {
        let e = i % STEP;
        let v = i / STEP;
        left[e * NARROW + v] = four(a, 4u * v, begin + e, round_it);
        left[e * NARROW + v + 4u] = four(a, 4u * v + 16u, begin + e, round_it);
        right[e * NARROW + v] = four(b, 4u * v, begin + e, round_it);
        right[e * NARROW + v + 4u] = four(b, 4u * v + 16u, begin + e, round_it);
        workgroupBarrier();
        for (var t = 0u; t < STEP; t += 4u) {
            multiply_step(t, i);
            multiply_step(t + 1u, i);
            multiply_step(t + 2u, i);
            multiply_step(t + 3u, i);
        }
        workgroupBarrier();
    }
}

// Leaves what a thread has of its right rows where all threads read it.
fn keep(i: u32, a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) {
    let at = i % 8u * 4u * NARROW + i / 8u;
    weights[at] = a;
    weights[at + NARROW] = b;
    weights[at + 2u * NARROW] = c;
    weights[at + 3u * NARROW] = d;
    workgroupBarrier();
}

fn weigh_step(t: u32, half: u32, i: u32) {
    let w = weights[(half + t) * NARROW + i / 8u];
    let a = chunk[t * WIDE + i % 8u];
    let b = chunk[t * WIDE + i % 8u + 8u];
    low[0] = fma(vec4(w.x), a, low[0]);
    low[1] = fma(vec4(w.y), a, low[1]);
    low[2] = fma(vec4(w.z), a, low[2]);
    low[3] = fma(vec4(w.w), a, low[3]);
    high[0] = fma(vec4(w.x), b, high[0]);
    high[1] = fma(vec4(w.y), b, high[1]);
    high[2] = fma(vec4(w.z), b, high[2]);
    high[3] = fma(vec4(w.w), b, high[3]);
}

// The sum of 32 right rows, columns from `column` on, each times the weights that are kept.
fn weigh(b: Rows, column: u32, i: u32, round_it: bool) {
    low = mat4x4<f32>();
    high = mat4x4<f32>();
    for (var half = 0u; half < BLOCK; half += STEP) {
        for (var at = i; at < STEP * 16u; at += 64u) {
            let row = half + at / 16u;
            let e = column + at % 16u * 4u;
            chunk[at / 16u * WIDE + at % 16u] = vec4(
                element(b, row, e, round_it),
                element(b, row, e + 1u, round_it),
                element(b, row, e + 2u, round_it),
                element(b, row, e + 3u, round_it),
            );
        }
        workgroupBarrier();
        for (var t = 0u; t < STEP; t += 4u) {
            weigh_step(t, half, i);
            weigh_step(t + 1u, half, i);
            weigh_step(t + 2u, half, i);
            weigh_step(t + 3u, half, i);
        }
        workgroupBarrier();
    }
}

// Stores what a thread has of a chunk: rows of `to`, columns from `column` on.
fn store(to: Rows, column: u32, i: u32, a: mat4x4<f32>, b: mat4x4<f32>) {
    let row = i / 8u * 4u;
    let e = column + i % 8u * 4u;
    store_four(to, row, e, a[0]);
    store_four(to, row + 1u, e, a[1]);
    store_four(to, row + 2u, e, a[2]);
    store_four(to, row + 3u, e, a[3]);
    store_four(to, row, e + 32u, b[0]);
    store_four(to, row + 1u, e + 32u, b[1]);
    store_four(to, row + 2u, e + 32u, b[2]);
    store_four(to, row + 3u, e + 32u, b[3]);
}

fn store_four(to: Rows, row: u32, e: u32, v: vec4<f32>) {
    if row < to.count {
        let at = to.first + row * to.stride + e;
        if e < p.head_dim { result[at] = v.x; }
        if e + 1u < p.head_dim { result[at + 1u] = v.y; }
        if e + 2u < p.head_dim { result[at + 2u] = v.z; }
        if e + 3u < p.head_dim { result[at + 3u] = v.w; }
    }
}

fn exponentials(v: vec4<f32>) -> vec4<f32> {
    return vec4(exponential(v.x), exponential(v.y), exponential(v.z), exponential(v.w));
}
