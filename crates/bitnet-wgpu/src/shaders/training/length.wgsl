// Sums of squares, of PART elements each. So that none is too large or too small to be told, elements are divided by a power of two before.

struct Params {
    n: u32,
    x: u32,
}
var<immediate> p: Params;

@group(0) @binding(0) var<storage, read> x: array<f32>;
// Of each part the bits of its largest magnitude, and of its sum.
@group(0) @binding(1) var<storage, read_write> parts: array<vec2<u32>>;

const PART = 16384u;
var<workgroup> magnitudes: array<u32, SIZE>;

@compute @workgroup_size(SIZE)
fn squares(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let end = min(p.n, (group.x + 1u) * PART);
    // Bits of magnitudes are ordered as they are, and those of what is no number come last.
    var most = 0u;
    for (var at = group.x * PART + i; at < end; at += SIZE) {
        most = max(most, bitcast<u32>(x[p.x + at]) & 0x7fffffffu);
    }
    magnitudes[i] = most;
    workgroupBarrier();
    for (var width = SIZE / 2u; width > 0u; width /= 2u) {
        if i < width {
            magnitudes[i] = max(magnitudes[i], magnitudes[i + width]);
        }
        workgroupBarrier();
    }
    most = magnitudes[0];
    // 2^-e for an exponent e, which is kept from where powers are no normal numbers.
    let factor = bitcast<f32>((254u - clamp(most >> 23u, 1u, 253u)) << 23u);
    var sum = 0.0;
    for (var at = group.x * PART + i; at < end; at += SIZE) {
        let v = x[p.x + at] * factor;
        sum = fma(v, v, sum);
    }
    sum = total(i, sum);
    if i == 0u {
        parts[group.x] = vec2(most, bitcast<u32>(sum));
    }
}
