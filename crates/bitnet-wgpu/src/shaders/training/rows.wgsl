// Copies of rows and sums of them. Threads take elements in strides, whatever their number.

struct Params {
    // Elements that are written, and columns of a row.
    n: u32,
    cols: u32,
    // Where operands begin, and elements of a row of each.
    to: u32,
    to_stride: u32,
    source: u32,
    source_stride: u32,
    // Rows that are added to.
    targets: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read_write> to: array<f32>;
@group(0) @binding(1) var<storage, read> source: array<f32>;
@group(0) @binding(2) var<storage, read> list: array<u32>;

const SIZE = 256u;

@compute @workgroup_size(SIZE)
fn columns(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        let row = i / p.cols;
        let col = i % p.cols;
        to[p.to + row * p.to_stride + col] = source[p.source + row * p.source_stride + col];
    }
}

// Row i is the one that the list has at i.
@compute @workgroup_size(SIZE)
fn gather(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        to[p.to + i] = source[p.source + list[i / p.cols] * p.source_stride + i % p.cols];
    }
}

// The list has the rows that are added to; where the rows of each begin in what is behind, and where the last ones end; all rows.
@compute @workgroup_size(SIZE)
fn scatter(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    let order = 2u * p.targets + 1u;
    for (var i = id.x; i < p.n; i += groups.x * SIZE) {
        let target_row = i / p.cols;
        let col = i % p.cols;
        let at = p.to + list[target_row] * p.to_stride + col;
        let end = list[p.targets + target_row + 1u];
        var sum = to[at];
        for (var row = list[p.targets + target_row]; row < end; row++) {
            sum += source[p.source + list[order + row] * p.source_stride + col];
        }
        to[at] = sum;
    }
}
