// Products of floats (rule 22 of docs/numerics.md): c[i, j] = sum over t of a[i, t] * b[j, t], 64 by 64 elements a workgroup, 4 by 4 a thread.
// What is before this file says how sides lie and are read: A_COLUMNS, A_PACKED, a_value and a_values, the same of b, and BF16.

const TILE = 64u;
const STEP = 16u;
// Vectors of four from one term of a tile to the next: one more than there are, so that threads that store a term each meet other banks.
const WIDE = 17u;

var<workgroup> left: array<vec4<f32>, STEP * WIDE>;
var<workgroup> right: array<vec4<f32>, STEP * WIDE>;
// Rows of a thread.
var<private> acc: mat4x4<f32>;

fn a_at(i: u32, t: u32) -> f32 {
    if i >= p.m || t >= p.k {
        return 0.0;
    }
    var v = a_value(select(i * p.a_stride + t, t * p.a_stride + i, A_COLUMNS));
    if p.a_factors != NONE {
        v *= a_factors[p.a_factors + t];
    }
    return term(v);
}

fn b_at(j: u32, t: u32) -> f32 {
    if j >= p.n || t >= p.k {
        return 0.0;
    }
    var v = b_value(select(j * p.b_stride + t, t * p.b_stride + j, B_COLUMNS));
    if p.b_factors != NONE {
        v *= b_factors[p.b_factors + t];
    }
    return term(v);
}

// Four neighbouring vectors; where they are columns of packed integers, those lie in a word. What is behind the last vector is not stored.
fn a_four_at(i: u32, t: u32) -> vec4<f32> {
    if A_PACKED && A_COLUMNS {
        if i >= p.m || t >= p.k {
            return vec4<f32>();
        }
        var v = a_values(t * p.a_stride + i);
        if p.a_factors != NONE {
            v *= a_factors[p.a_factors + t];
        }
        return vec4(term(v.x), term(v.y), term(v.z), term(v.w));
    }
    return vec4(a_at(i, t), a_at(i + 1u, t), a_at(i + 2u, t), a_at(i + 3u, t));
}

fn b_four_at(j: u32, t: u32) -> vec4<f32> {
    if B_PACKED && B_COLUMNS {
        if j >= p.n || t >= p.k {
            return vec4<f32>();
        }
        var v = b_values(t * p.b_stride + j);
        if p.b_factors != NONE {
            v *= b_factors[p.b_factors + t];
        }
        return vec4(term(v.x), term(v.y), term(v.z), term(v.w));
    }
    return vec4(b_at(j, t), b_at(j + 1u, t), b_at(j + 2u, t), b_at(j + 3u, t));
}

fn term(v: f32) -> f32 {
    if BF16 {
        return rounded(v);
    }
    return v;
}

fn advance(t: u32, row: u32, column: u32) {
    let a = left[t * WIDE + row];
    let b = right[t * WIDE + column];
    acc[0] = fma(vec4(a.x), b, acc[0]);
    acc[1] = fma(vec4(a.y), b, acc[1]);
    acc[2] = fma(vec4(a.z), b, acc[2]);
    acc[3] = fma(vec4(a.w), b, acc[3]);
}

// Neighbouring threads read neighbouring elements: terms where vectors are rows, vectors where they are columns.
fn place(i: u32, columns: bool) -> vec2<u32> {
    return select(vec2(i / 16u, i % 16u), vec2(i % 16u, i / 16u), columns);
}

@compute @workgroup_size(256)
fn product(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let a_own = place(i, A_COLUMNS);
    let b_own = place(i, B_COLUMNS);
    let a_first = group.y * TILE + 4u * a_own.x;
    let b_first = group.x * TILE + 4u * b_own.x;
    let row = i / 16u;
    let column = i % 16u;
    if p.store == CONTINUE {
        acc = mat4x4(
            stored(group, 4u * row, 4u * column),
            stored(group, 4u * row + 1u, 4u * column),
            stored(group, 4u * row + 2u, 4u * column),
            stored(group, 4u * row + 3u, 4u * column),
        );
    }
    var next_left = a_four_at(a_first, a_own.y);
    var next_right = b_four_at(b_first, b_own.y);
    for (var begin = 0u; begin < p.k; begin += STEP) {
        left[a_own.y * WIDE + a_own.x] = next_left;
        right[b_own.y * WIDE + b_own.x] = next_right;
        workgroupBarrier();
        // What comes next is on its way while this is multiplied.
        next_left = a_four_at(a_first, begin + STEP + a_own.y);
        next_right = b_four_at(b_first, begin + STEP + b_own.y);
        for (var t = 0u; t < STEP; t += 4u) {
            advance(t, row, column);
            advance(t + 1u, row, column);
            advance(t + 2u, row, column);
            advance(t + 3u, row, column);
        }
        workgroupBarrier();
    }
    put(group, 4u * row, 4u * column, acc[0]);
    put(group, 4u * row + 1u, 4u * column, acc[1]);
    put(group, 4u * row + 2u, 4u * column, acc[2]);
    put(group, 4u * row + 3u, 4u * column, acc[3]);
}
