// Rule 3 of docs/numerics.md: RMSNorm, a workgroup a row. SIZE threads take every SIZE-th element and fold their sums.

struct Params {
    // Elements that are normed together.
    n: u32,
    // Elements of a row of x, and the first one that is normed: heads of a row follow each other.
    stride: u32,
    first: u32,
    eps: f32,
}
var<immediate> p: Params;

// [n]
@group(0) @binding(0) var<storage, read> w: array<f32>;
@group(0) @binding(1) var<storage, read_write> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

var<workgroup> sums: array<f32, SIZE>;

// What the elements from `at` on are multiplied with.
fn factor(at: u32, i: u32) -> f32 {
    var sum = 0.0;
    for (var c = i; c < p.n; c += SIZE) {
        let v = x[at + c];
        sum = fma(v, v, sum);
    }
    sums[i] = sum;
    workgroupBarrier();
    for (var width = SIZE / 2u; width > 0u; width /= 2u) {
        if i < width {
            sums[i] += sums[i + width];
        }
        workgroupBarrier();
    }
    return 1.0 / sqrt(sums[0] / f32(p.n) + p.eps);
}

@compute @workgroup_size(SIZE)
fn rows(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let at = group.x * p.n;
    let r = factor(at, i);
    for (var c = i; c < p.n; c += SIZE) {
        y[at + c] = (x[at + c] * r) * w[c];
    }
}

// In place.
@compute @workgroup_size(SIZE)
fn heads(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let at = group.y * p.stride + p.first + group.x * p.n;
    let r = factor(at, i);
    for (var c = i; c < p.n; c += SIZE) {
        x[at + c] = (x[at + c] * r) * w[c];
    }
}
