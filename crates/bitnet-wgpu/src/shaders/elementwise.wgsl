// Operations on single elements. Threads take elements in strides, whatever their number.

struct Params {
    // Elements of the result, or rows and columns of what is read.
    n: u32,
    cols: u32,
    // Columns of the result, and the row and column where what is read goes.
    stride: u32,
    row: u32,
    first: u32,
    factor: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> y: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> rows: array<u32>;

const SIZE = 64u;

// y += x
@compute @workgroup_size(SIZE)
fn add(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        y[i] += x[i];
    }
}

// y *= factor
@compute @workgroup_size(SIZE)
fn scale(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        y[i] *= p.factor;
    }
}

// y[row + t, first + c] = x[t, c] for all rows of x.
@compute @workgroup_size(SIZE)
fn place(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        y[(p.row + i / p.cols) * p.stride + p.first + i % p.cols] = x[i];
    }
}

// y[row + t, first + c] = fma(x[t, c], factor, y[row + t, first + c])
@compute @workgroup_size(SIZE)
fn add_scaled(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        let at = (p.row + i / p.cols) * p.stride + p.first + i % p.cols;
        y[at] = fma(x[i], p.factor, y[at]);
    }
}

// y[i, c] = x[rows[i], c]
@compute @workgroup_size(SIZE)
fn gather(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        y[i] = x[rows[i / p.cols] * p.cols + i % p.cols];
    }
}
