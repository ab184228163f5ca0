// Products of integers, which are exact: four terms a word, 64 by 64 elements a workgroup, 4 by 4 a thread.
// What is before this file says how sides lie and are read: A_COLUMNS, B_COLUMNS, a_integer and b_integer, a_four and b_four.

const TILE = 64u;
// Words of a step, and vectors of four from one word of a tile to the next.
const STEP = 16u;
const WIDE = 17u;

var<workgroup> left: array<vec4<u32>, STEP * WIDE>;
var<workgroup> right: array<vec4<u32>, STEP * WIDE>;
// A row of a thread each.
var<private> acc_0: vec4<i32>;
var<private> acc_1: vec4<i32>;
var<private> acc_2: vec4<i32>;
var<private> acc_3: vec4<i32>;

// Terms from t on of vector i. What is behind the last one is zero, so the other side's may be anything.
fn a_at(i: u32, t: u32) -> u32 {
    if i >= p.m || t >= p.k {
        return 0u;
    }
    let last = min(p.k - t, 4u) - 1u;
    var word: u32;
    if A_COLUMNS {
        let at = t * p.a_stride + i;
        word = a_integer(at) | a_integer(at + min(last, 1u) * p.a_stride) << 8u
            | a_integer(at + min(last, 2u) * p.a_stride) << 16u | a_integer(at + last * p.a_stride) << 24u;
    } else {
        word = a_four(i * p.a_stride + t);
    }
    return word & (0xffffffffu >> (24u - 8u * last));
}

fn b_at(j: u32, t: u32) -> u32 {
    if j >= p.n || t >= p.k {
        return 0u;
    }
    if B_COLUMNS {
        let last = min(p.k - t, 4u) - 1u;
        let at = t * p.b_stride + j;
        return b_integer(at) | b_integer(at + min(last, 1u) * p.b_stride) << 8u
            | b_integer(at + min(last, 2u) * p.b_stride) << 16u | b_integer(at + last * p.b_stride) << 24u;
    }
    return b_four(j * p.b_stride + t);
}

fn a_four_at(i: u32, t: u32) -> vec4<u32> {
    return vec4(a_at(i, t), a_at(i + 1u, t), a_at(i + 2u, t), a_at(i + 3u, t));
}

fn b_four_at(j: u32, t: u32) -> vec4<u32> {
    return vec4(b_at(j, t), b_at(j + 1u, t), b_at(j + 2u, t), b_at(j + 3u, t));
}

fn dots(a: u32, b: vec4<u32>) -> vec4<i32> {
    return vec4(dot4I8Packed(a, b.x), dot4I8Packed(a, b.y), dot4I8Packed(a, b.z), dot4I8Packed(a, b.w));
}

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
    var next_left = a_four_at(a_first, 4u * a_own.y);
    var next_right = b_four_at(b_first, 4u * b_own.y);
    for (var begin = 0u; begin < p.k; begin += 4u * STEP) {
        left[a_own.y * WIDE + a_own.x] = next_left;
        right[b_own.y * WIDE + b_own.x] = next_right;
        workgroupBarrier();
        // What comes next is on its way while this is multiplied.
        next_left = a_four_at(a_first, begin + 4u * (STEP + a_own.y));
        next_right = b_four_at(b_first, begin + 4u * (STEP + b_own.y));
        for (var w = 0u; w < STEP; w++) {
            let a = left[w * WIDE + row];
            let b = right[w * WIDE + column];
            acc_0 += dots(a.x, b);
            acc_1 += dots(a.y, b);
            acc_2 += dots(a.z, b);
            acc_3 += dots(a.w, b);
        }
        workgroupBarrier();
    }
    put(group, 4u * row, 4u * column, sum(group, 4u * row, 4u * column, acc_0));
    put(group, 4u * row + 1u, 4u * column, sum(group, 4u * row + 1u, 4u * column, acc_1));
    put(group, 4u * row + 2u, 4u * column, sum(group, 4u * row + 2u, 4u * column, acc_2));
    put(group, 4u * row + 3u, 4u * column, sum(group, 4u * row + 3u, 4u * column, acc_3));
}

fn sum(group: vec3<u32>, row: u32, column: u32, acc: vec4<i32>) -> vec4<f32> {
    if p.store == CONTINUE {
        return stored(group, row, column) + vec4<f32>(acc);
    }
    return vec4<f32>(acc);
}
