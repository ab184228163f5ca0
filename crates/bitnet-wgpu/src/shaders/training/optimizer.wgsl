// Steps of optimizers, in place. Threads take elements in strides, whatever their number.

struct Params {
    n: u32,
    // Where operands begin.
    values: u32,
    gradient: u32,
    m: u32,
    v: u32,
    scale: f32,
    keep: f32,
    // The step, or the rate.
    step: f32,
    // Of Adam.
    pull: f32,
    root: f32,
    // Of Adam the shares of what was and of what comes; of SGD the momentum, and not 0 where it looks ahead.
    first: f32,
    first_rest: f32,
    second: f32,
    second_rest: f32,
    eps: f32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> values: array<f32>;
@group(0) @binding(1) var<storage, read> gradient: array<f32>;
// The first moment, or the buffer.
@group(0) @binding(2) var<storage, read_write> m: array<f32>;
@group(0) @binding(3) var<storage, read_write> v: array<f32>;

const SIZE = 256u;

@compute @workgroup_size(SIZE)
fn adam(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        let value = values[p.values + i];
        let g = gradient[p.gradient + i] * p.scale + p.pull * value;
        let mean = p.first * m[p.m + i] + p.first_rest * g;
        let square = p.second * v[p.v + i] + p.second_rest * (g * g);
        m[p.m + i] = mean;
        v[p.v + i] = square;
        values[p.values + i] = value * p.keep - p.step * (mean / (sqrt(square) / p.root + p.eps));
    }
}

@compute @workgroup_size(SIZE)
fn sgd(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        let g = gradient[p.gradient + i] * p.scale;
        let buffer = p.first * m[p.m + i] + g;
        m[p.m + i] = buffer;
        var along = buffer;
        if p.first_rest != 0.0 {
            along = g + p.first * buffer;
        }
        values[p.values + i] = values[p.values + i] * p.keep - p.step * along;
    }
}
