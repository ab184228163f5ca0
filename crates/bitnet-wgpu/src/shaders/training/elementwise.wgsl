// Operations on single elements of training. Threads take elements in strides, whatever their number.

struct Params {
    n: u32,
    // Where operands begin.
    x: u32,
    y: u32,
    to: u32,
    // Factors, or the value that is put.
    a: f32,
    b: f32,
    // The operand whose place the result takes.
    place: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> to: array<f32>;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> y: array<f32>;

const SIZE = 256u;
// Of `place`.
const X = 1u;
const Y = 2u;

@compute @workgroup_size(SIZE)
fn fill(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        to[p.to + i] = p.a;
    }
}

// to = a x + b y; a term whose factor is 0 is left out.
@compute @workgroup_size(SIZE)
fn mix(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        var sum = 0.0;
        if p.a != 0.0 {
            var v: f32;
            if p.place == X { v = to[p.to + i]; } else { v = x[p.x + i]; }
            sum = p.a * v;
        }
        if p.b != 0.0 {
            var v: f32;
            if p.place == Y { v = to[p.to + i]; } else { v = y[p.y + i]; }
            let product = p.b * v;
            if p.a != 0.0 { sum += product; } else { sum = product; }
        }
        to[p.to + i] = sum;
    }
}
