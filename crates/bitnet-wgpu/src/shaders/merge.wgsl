// Rule 11 of docs/numerics.md: segments of attention become one output, a workgroup a head and token.

struct Params {
    heads: u32,
    head_dim: u32,
    // The first token of this dispatch, and segments that each has.
    token: u32,
    segments: u32,
}
var<immediate> p: Params;

// Of each token of the dispatch, head and segment: the largest score, the sum of weights, and the output, [head_dim].
@group(0) @binding(0) var<storage, read> parts: array<f32>;
// [m, heads * head_dim]
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

const SIZE = 64u;
const UNSEEN = -3.4028234e38;

@compute @workgroup_size(SIZE)
fn merge(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let head = group.x;
    let token = group.y;
    let size = p.head_dim + 2u;
    let first = (token * p.heads + head) * p.segments * size;
    var largest = UNSEEN;
    for (var s = 0u; s < p.segments; s++) {
        largest = max(largest, parts[first + s * size]);
    }
    for (var e = i; e < p.head_dim; e += SIZE) {
        var sum = 0.0;
        var total = 0.0;
        for (var s = 0u; s < p.segments; s++) {
            let part = first + s * size;
            if parts[part] > UNSEEN {
                let factor = exponential(parts[part] - largest);
                total = fma(parts[part + 1u], factor, total);
                sum = fma(parts[part + 2u + e], factor, sum);
            }
        }
        out[((p.token + token) * p.heads + head) * p.head_dim + e] = sum / total;
    }
}
