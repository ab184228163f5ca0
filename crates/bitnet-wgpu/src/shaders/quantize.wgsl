// Rule 4 of docs/numerics.md: int8 activations of a token, a workgroup of SIZE threads a token.

struct Params {
    // Columns of x, and words of q a token has: four columns each, rows padded with zeros.
    cols: u32,
    words: u32,
    // The first row of x.
    x_row: u32,
}
var<immediate> p: Params;

struct Token {
    // What turns integers back into reals.
    d: f32,
    // The sum of q: codes are trits + 1, so it is what products with codes have too much.
    sum: i32,
}

// [.., cols]
@group(0) @binding(0) var<storage, read> x: array<f32>;
// [m, words]. Sixteen columns are four words; word i has columns i, i + 4, i + 8 and i + 12 of them, lowest byte first: in
// that order a shift and a mask take the codes out of a word of weights.
@group(0) @binding(1) var<storage, read_write> q: array<u32>;
// [m]
@group(0) @binding(2) var<storage, read_write> tokens: array<Token>;


@compute @workgroup_size(SIZE)
fn quantize(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let row = (p.x_row + group.x) * p.cols;
    var most = 1e-5;
    for (var c = i; c < p.cols; c += SIZE) {
        most = max(most, abs(x[row + c]));
    }
    let s = 127.0 / largest_of(most, i);

    var own = 0;
    for (var word = i; word < p.words; word += SIZE) {
        var packed = 0u;
        for (var j = 0u; j < 4u; j++) {
            let c = word / 4u * 16u + word % 4u + 4u * j;
            if c < p.cols {
                let v = i32(clamp(round(x[row + c] * s), -128.0, 127.0));
                own += v;
                packed |= (bitcast<u32>(v) & 0xffu) << (8u * j);
            }
        }
        q[group.x * p.words + word] = packed;
    }
    let sum = sum_of(own, i);
    if i == 0u {
        tokens[group.x] = Token(1.0 / s, sum);
    }
}
