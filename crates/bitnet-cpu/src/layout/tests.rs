use super::*;
use crate::testing::Noise;

#[test]
fn every_trit_and_scale_comes_back() {
    let pool = Pool::new(2).unwrap();
    for layout in LAYOUTS {
        for (rows, cols) in [(1, 1), (15, 17), (33, 130), (16, 256), (300, 530)] {
            let mut noise = Noise(7);
            let matrix = |rows: usize, noise: &mut Noise| {
                let trits: Vec<i8> = (0..rows * cols).map(|_| (noise.next() % 3) as i8 - 1).collect();
                let scale =
                    Scale::Groups { size: 32, values: noise.floats(rows * cols.div_ceil(32), 1.0).into() };
                TernaryMatrix::from_trits(rows, cols, &trits, scale).unwrap()
            };
            let (a, b) = (matrix(rows, &mut noise), matrix(3, &mut noise));
            let stack = [&a, &b];
            for panels in [
                Panels::new(&pool, layout, &stack),
                Panels::by_row(&pool, &stack),
                Panels::by_column(&pool, &stack),
            ] {
                let panels = panels.unwrap();
                for row in 0..rows + 3 {
                    let (m, r) = if row < rows { (&a, row) } else { (&b, row - rows) };
                    let mut got = vec![0.0; cols];
                    panels.dequantize_row(row, &mut got);
                    let want: Vec<f32> =
                        (0..cols).map(|c| f32::from(m.trit(r, c)) * m.scale_at(r, c)).collect();
                    assert_eq!(got, want, "{} {:?} {rows} x {cols} row {row}", layout.name, panels.order);
                }
            }
        }
    }
}
