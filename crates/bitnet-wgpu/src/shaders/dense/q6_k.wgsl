// 53 words have 256 values: 128 bytes of low nibbles, 64 bytes of high pairs, sixteen signed scales, an f16 scale.
fn value(row: u32, c: u32) -> f32 {
    let block = row * p.row_words + c / 256u * 53u;
    let half = c % 256u / 128u;
    let quarter = c % 128u / 32u;
    let i = c % 32u;
    let nibble = (byte_at(block, 64u * half + i + 32u * (quarter % 2u)) >> (4u * (quarter / 2u))) & 15u;
    let pair = (byte_at(block, 128u + 32u * half + i) >> (2u * quarter)) & 3u;
    let scale = signed_byte(byte_at(block, 192u + 8u * half + 2u * quarter + i / 16u));
    let d = unpack2x16float(w[block + 52u]).x;
    return (d * scale) * (f32(nibble | (pair << 4u)) - 32.0);
}
