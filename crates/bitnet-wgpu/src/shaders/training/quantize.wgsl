// Rule 4 of docs/numerics.md: int8 activations, a workgroup a token.

struct Params {
    m: u32,
    k: u32,
    // Where operands begin; codes at a word.
    x: u32,
    codes: u32,
    // Words of a row of codes, four each.
    words: u32,
    d: u32,
}
var<immediate> p: Params;

// [m, k]
@group(0) @binding(0) var<storage, read> x: array<f32>;
// [m, words]
@group(0) @binding(1) var<storage, read_write> codes: array<u32>;
// [m]
@group(0) @binding(2) var<storage, read_write> d: array<f32>;

@compute @workgroup_size(SIZE)
fn quantize(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let row = number(group, groups);
    if row >= p.m {
        return;
    }
    let at = p.x + row * p.k;
    var most = 1e-5;
    for (var c = i; c < p.k; c += SIZE) {
        most = max(most, abs(x[at + c]));
    }
    let s = 127.0 / largest(i, most);
    for (var word = i; word < p.words; word += SIZE) {
        var packed = 0u;
        for (var j = 0u; j < 4u; j++) {
            let c = 4u * word + j;
            if c < p.k {
                let v = i32(clamp(round(x[at + c] * s), -128.0, 127.0));
                packed |= (bitcast<u32>(v) & 0xffu) << (8u * j);
            }
        }
        codes[p.codes + row * p.words + word] = packed;
    }
    if i == 0u {
        d[p.d + row] = 1.0 / s;
    }
}
