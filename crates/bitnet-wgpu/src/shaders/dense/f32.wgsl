// A word a value.
fn value(row: u32, c: u32) -> f32 {
    return bitcast<f32>(w[row * p.row_words + c]);
}
