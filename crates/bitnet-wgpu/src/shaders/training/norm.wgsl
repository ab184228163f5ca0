// Rule 3 of docs/numerics.md and the way back: RMSNorm, a workgroup a row.

struct Params {
    m: u32,
    n: u32,
    // Where operands begin; `y` is where the result does.
    x: u32,
    w: u32,
    y: u32,
    dy: u32,
    eps: f32,
    // Whether the result is added to what is there.
    add: u32,
}
var<immediate> p: Params;

// [m, n]
@group(0) @binding(0) var<storage, read> x: array<f32>;
// [n]
@group(0) @binding(1) var<storage, read> w: array<f32>;
// The result: [m, n], or [n] for the weight's gradient.
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
// [m, n]
@group(0) @binding(3) var<storage, read> dy: array<f32>;
// [m]: what the elements of a row are multiplied with.
@group(0) @binding(4) var<storage, read_write> factors: array<f32>;
// [m / ROWS, n]: what rows together give to the weight's gradient.
@group(0) @binding(5) var<storage, read_write> parts: array<f32>;

const ROWS = 64u;

@compute @workgroup_size(SIZE)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let row = number(group, groups);
    if row >= p.m {
        return;
    }
    let at = row * p.n;
    var squares = 0.0;
    for (var c = i; c < p.n; c += SIZE) {
        let v = x[p.x + at + c];
        squares = fma(v, v, squares);
    }
    let r = 1.0 / sqrt(total(i, squares) / f32(p.n) + p.eps);
    for (var c = i; c < p.n; c += SIZE) {
        y[p.y + at + c] = (x[p.x + at + c] * r) * w[p.w + c];
    }
}

@compute @workgroup_size(SIZE)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let row = number(group, groups);
    if row >= p.m {
        return;
    }
    let at = row * p.n;
    var squares = 0.0;
    var along = 0.0;
    for (var c = i; c < p.n; c += SIZE) {
        let v = x[p.x + at + c];
        squares = fma(v, v, squares);
        along = fma(v, w[p.w + c] * dy[p.dy + at + c], along);
    }
    let r = 1.0 / sqrt(total(i, squares) / f32(p.n) + p.eps);
    let back = r * r * r * (total(i, along) / f32(p.n));
    for (var c = i; c < p.n; c += SIZE) {
        let d = r * (w[p.w + c] * dy[p.dy + at + c]) - x[p.x + at + c] * back;
        if p.add != 0u {
            y[p.y + at + c] += d;
        } else {
            y[p.y + at + c] = d;
        }
    }
    if i == 0u {
        factors[row] = r;
    }
}

// What ROWS rows give to the gradient of each element of the weight; a thread a column.
@compute @workgroup_size(SIZE)
fn weight_parts(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let c = group.x * SIZE + i;
    if c >= p.n {
        return;
    }
    let end = min((group.y + 1u) * ROWS, p.m);
    var sum = 0.0;
    for (var row = group.y * ROWS; row < end; row++) {
        let at = row * p.n + c;
        sum += dy[p.dy + at] * (x[p.x + at] * factors[row]);
    }
    parts[group.y * p.n + c] = sum;
}

@compute @workgroup_size(SIZE)
fn weight(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let c = group.x * SIZE + i;
    if c >= p.n {
        return;
    }
    var sum = y[p.y + c];
    for (var part = 0u; part * ROWS < p.m; part++) {
        sum += parts[part * p.n + c];
    }
    y[p.y + c] = sum;
}
