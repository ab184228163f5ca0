// What a product is given, how elements are read, and what becomes of sums.

struct Params {
    m: u32,
    n: u32,
    k: u32,
    // Where each side and the result begin, and elements of a row of what is stored. Packed trits begin at a byte.
    a: u32,
    a_stride: u32,
    b: u32,
    b_stride: u32,
    c: u32,
    c_stride: u32,
    // Where the factors of terms begin, where there are any.
    a_factors: u32,
    b_factors: u32,
    store: u32,
    // Where the factors of rows begin, where there are any.
    rows: u32,
    // What kind of a factor there is else, and the factor or where it begins.
    scaled_by: u32,
    scale: u32,
}
var<immediate> p: Params;

const NONE = 0xffffffffu;
// Of `store`.
const SET = 0u;
const ADD = 1u;
const CONTINUE = 2u;
// Of `scaled_by`.
const VALUE = 0u;
const ONE = 1u;
const ROWS = 2u;
const COLUMNS = 3u;

@group(0) @binding(0) var<storage, read> a: array<u32>;
@group(0) @binding(1) var<storage, read> b: array<u32>;
@group(0) @binding(2) var<storage, read_write> c: array<f32>;
@group(0) @binding(3) var<storage, read> rows: array<f32>;
@group(0) @binding(4) var<storage, read> scales: array<f32>;
@group(0) @binding(5) var<storage, read> a_factors: array<f32>;
@group(0) @binding(6) var<storage, read> b_factors: array<f32>;

// The integer in this byte of a word.
fn signed_byte(word: u32, byte: u32) -> i32 {
    return bitcast<i32>(word << (24u - 8u * byte)) >> 24u;
}

// The trit in this place of a word.
fn trit(word: u32, i: u32) -> i32 {
    return i32((word >> (2u * i)) & 3u) - 1;
}

// The four trits of a byte as integers of a byte each.
fn four_trits(codes: u32) -> u32 {
    let spread = (codes & 3u) | (codes & 12u) << 6u | (codes & 48u) << 12u | (codes & 192u) << 18u;
    // One less in every byte, without a carry between them.
    return (spread + 0x7f7f7f7fu) ^ 0x80808080u;
}

fn stored(group: vec3<u32>, row: u32, column: u32) -> vec4<f32> {
    let i = group.y * TILE + row;
    let j = group.x * TILE + column;
    let at = p.c + i * p.c_stride + j;
    var v = vec4<f32>();
    if i < p.m {
        if j < p.n { v.x = c[at]; }
        if j + 1u < p.n { v.y = c[at + 1u]; }
        if j + 2u < p.n { v.z = c[at + 2u]; }
        if j + 3u < p.n { v.w = c[at + 3u]; }
    }
    return v;
}

// Stores the sums of four neighbouring columns.
fn put(group: vec3<u32>, row: u32, column: u32, sums: vec4<f32>) {
    let i = group.y * TILE + row;
    let j = group.x * TILE + column;
    if i < p.m {
        put_one(i, j, sums.x);
        put_one(i, j + 1u, sums.y);
        put_one(i, j + 2u, sums.z);
        put_one(i, j + 3u, sums.w);
    }
}

fn put_one(i: u32, j: u32, sum: f32) {
    if j >= p.n {
        return;
    }
    let at = p.c + i * p.c_stride + j;
    if p.store == CONTINUE {
        c[at] = sum;
        return;
    }
    var factor: f32;
    switch p.scaled_by {
        case ONE: { factor = scales[p.scale]; }
        case ROWS: { factor = scales[p.scale + i]; }
        case COLUMNS: { factor = scales[p.scale + j]; }
        default: { factor = bitcast<f32>(p.scale); }
    }
    if p.rows != NONE {
        factor = rows[p.rows + i] * factor;
    }
    if p.store == ADD {
        c[at] += sum * factor;
    } else {
        c[at] = sum * factor;
    }
}
