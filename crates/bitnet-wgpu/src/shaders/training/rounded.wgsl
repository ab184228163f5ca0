// Rule 19 of docs/numerics.md: to the nearest bf16, ties to even, and zero below 2^-50.
fn rounded(v: f32) -> f32 {
    let bits = bitcast<u32>(v);
    let magnitude = bits & 0x7fffffffu;
    if magnitude < 0x26800000u {
        return 0.0;
    }
    let near = (bits + 0x7fffu + ((bits >> 16u) & 1u)) & 0xffff0000u;
    return bitcast<f32>(select(near, bits, magnitude > 0x7f800000u));
}
