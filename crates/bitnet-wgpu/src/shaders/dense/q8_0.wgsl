// Nine words have 32 values: 32 signed bytes behind an f16 scale in a word of its own.
fn value(row: u32, c: u32) -> f32 {
    let block = row * p.row_words + c / 32u * 9u;
    return signed_byte(byte_at(block + 1u, c % 32u)) * unpack2x16float(w[block]).x;
}
