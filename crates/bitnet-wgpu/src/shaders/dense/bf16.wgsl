// Two values a word, low half first: the upper halves of singles.
fn value(row: u32, c: u32) -> f32 {
    let word = w[row * p.row_words + c / 2u];
    return bitcast<f32>(select(word << 16u, word & 0xffff0000u, c % 2u == 1u));
}
