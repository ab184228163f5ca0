// Rule 9 of docs/numerics.md. WGSL's own exp may be much farther off.
fn exponential(v: f32) -> f32 {
    let x = clamp(v, -104.0, 89.0);
    let k = round(x * bitcast<f32>(0x3fb8aa3bu));
    var r = fma(-k, bitcast<f32>(0x3f318000u), x);
    r = fma(-k, bitcast<f32>(0xb95e8083u), r);
    var s = bitcast<f32>(0x3ab5121au);
    s = fma(s, r, bitcast<f32>(0x3c091cf1u));
    s = fma(s, r, bitcast<f32>(0x3d2aac79u));
    s = fma(s, r, bitcast<f32>(0x3e2aaa49u));
    s = fma(s, r, bitcast<f32>(0x3efffffeu));
    s = fma(s, r, 1.0);
    s = fma(s, r, 1.0);
    // 2^k as two factors, so that 2^128 overflows to infinity.
    let low = i32(k) >> 1u;
    let high = i32(k) - low;
    return s * bitcast<f32>(u32(low + 127) << 23u) * bitcast<f32>(u32(high + 127) << 23u);
}
