// For the way back through attention: the products of what attention gave with its gradients, [m, heads]. A thread a row of a head.

struct Params {
    // Rows of heads, and elements of one.
    n: u32,
    head_dim: u32,
    // Where operands begin.
    out: u32,
    dout: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> out: array<f32>;
@group(0) @binding(1) var<storage, read> dout: array<f32>;
@group(0) @binding(2) var<storage, read_write> means: array<f32>;

const SIZE = 256u;

@compute @workgroup_size(SIZE)
fn means_of(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        var sum = 0.0;
        for (var e = i * p.head_dim; e < (i + 1u) * p.head_dim; e++) {
            sum = fma(out[p.out + e], dout[p.dout + e], sum);
        }
        means[i] = sum;
    }
}
