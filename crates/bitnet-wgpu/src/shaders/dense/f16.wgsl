// Two values a word, low half first.
fn value(row: u32, c: u32) -> f32 {
    return unpack2x16float(w[row * p.row_words + c / 2u])[c % 2u];
}
