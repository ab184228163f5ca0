// What the threads of a workgroup have, folded; all of them get it.

const SIZE = 256u;
var<workgroup> lanes: array<f32, SIZE>;

fn total(i: u32, v: f32) -> f32 {
    lanes[i] = v;
    workgroupBarrier();
    for (var width = SIZE / 2u; width > 0u; width /= 2u) {
        if i < width {
            lanes[i] += lanes[i + width];
        }
        workgroupBarrier();
    }
    let sum = lanes[0];
    workgroupBarrier();
    return sum;
}

fn largest(i: u32, v: f32) -> f32 {
    lanes[i] = v;
    workgroupBarrier();
    for (var width = SIZE / 2u; width > 0u; width /= 2u) {
        if i < width {
            lanes[i] = max(lanes[i], lanes[i + width]);
        }
        workgroupBarrier();
    }
    let most = lanes[0];
    workgroupBarrier();
    return most;
}

// The number of a workgroup where there may be more of them than a dimension has room for.
fn number(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y * groups.x + group.x;
}
