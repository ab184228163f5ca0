// Five words have 32 values: sixteen bytes behind an f16 scale in a word of its own. Low nibbles are the first sixteen values.
fn value(row: u32, c: u32) -> f32 {
    let block = row * p.row_words + c / 32u * 5u;
    let nibble = (byte_at(block + 1u, c % 16u) >> (4u * (c % 32u / 16u))) & 15u;
    return (f32(nibble) - 8.0) * unpack2x16float(w[block]).x;
}
