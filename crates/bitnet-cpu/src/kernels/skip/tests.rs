//! What is left out must not change a bit.

use super::*;
use crate::kernels::quantize::int8;
use crate::kernels::ternary::{Place, ternary_linear};
use crate::layout::TILE2;
use crate::memory::alone;
use crate::testing::{Noise, for_each_isa_and_pool};
use bitnet_core::{Scale, TernaryMatrix};
use bitnet_quant::spec;

fn matrix(rows: usize, cols: usize, noise: &mut Noise) -> TernaryMatrix {
    let trits: Vec<i8> = (0..rows * cols).map(|_| (noise.next() % 3) as i8 - 1).collect();
    TernaryMatrix::from_trits(rows, cols, &trits, Scale::Rows(noise.floats(rows, 2.0).into())).unwrap()
}

/// `m` tokens of which one in `keep` values is not zero.
fn sparse(m: usize, cols: usize, keep: u32, noise: &mut Noise) -> Vec<f32> {
    let mut x = noise.floats(m * cols, 3.0);
    x.iter_mut().for_each(|x| *x *= f32::from(noise.next().is_multiple_of(keep)));
    x
}

fn bitlinear(w: &TernaryMatrix, x: &[f32]) -> Vec<f32> {
    let (mut q, mut y) = (vec![0; w.cols()], vec![0.0; w.rows()]);
    let d = spec::quantize_row(x, &mut q);
    spec::bitlinear(w, &q, d, &mut y);
    y
}

#[test]
fn products_without_zero_columns_equal_the_specification() {
    for_each_isa_and_pool(|isa, pool| {
        for (rows, cols, m, keep) in [
            (1, 1, 1, 1),
            (15, 130, 1, 2),
            (300, 700, 3, 5),
            (520, 33, 1, 1),
            (270, 2048, 1, 4000),
            (300, 90, 6, 2),
        ] {
            let mut noise = Noise((rows + cols) as u32);
            let (w, x) = (matrix(rows, cols, &mut noise), sparse(m, cols, keep, &mut noise));
            let panels = Panels::by_column(pool, &[&w]).unwrap();
            let mut got = vec![f32::NAN; m * (rows + 2)];
            let place = Place { y: &mut got, stride: rows + 2, first: 1 };
            alone(pool.memory(), |scratch| {
                let x = int8(isa, pool, &x, cols, scratch)?;
                ternary_linear(isa, Kernel::of(isa).general(), pool, &panels, x, scratch, place)
            });
            for (x, got) in x.chunks(cols).zip(got.chunks(rows + 2)) {
                assert_eq!(got[1..=rows], bitlinear(&w, x), "{isa} {rows} x {cols}, {m} tokens");
                assert!(got[0].is_nan() && got[rows + 1].is_nan());
            }
        }
    });
}

#[test]
fn gates_first_equal_the_specification() {
    for_each_isa_and_pool(|isa, pool| {
        for (n, cols) in [(1, 1), (17, 130), (700, 300), (40, 2560)] {
            let mut noise = Noise((n + cols) as u32);
            let (gate, up) = (matrix(n, cols, &mut noise), matrix(n, cols, &mut noise));
            let x = noise.floats(cols, 3.0);
            let kernel = Kernel::of(isa).general();
            let panels =
                (Panels::new(pool, &TILE2, &[&gate]).unwrap(), Panels::by_row(pool, &[&up]).unwrap());
            let mut got = vec![f32::NAN; n];
            alone(pool.memory(), |scratch| {
                let x = int8(isa, pool, &x, cols, scratch)?;
                gated_relu2(isa, kernel, pool, (&panels.0, &panels.1), x, scratch, &mut got)
            });
            let gates = bitlinear(&gate, &x);
            let want = gates.iter().zip(bitlinear(&up, &x)).map(|(g, u)| spec::gate_relu2(*g, u).to_bits());
            assert!(got.iter().map(|y| y.to_bits()).eq(want), "{isa} {n} x {cols}");
        }
    });
}

#[test]
fn integers_do_not_saturate() {
    let (pool, cols) = (Pool::new(1).unwrap(), MAX_COLUMNS);
    for trit in [-1i8, 1] {
        let w = TernaryMatrix::from_trits(1, cols, &vec![trit; cols], Scale::Tensor(1.0)).unwrap();
        let (rows, columns) =
            (Panels::by_row(&pool, &[&w]).unwrap(), Panels::by_column(&pool, &[&w]).unwrap());
        for q in [-128i8, 127] {
            let want = (i32::from(trit) + 1) * i32::from(q) * cols as i32;
            let x = vec![q; cols];
            let all: Vec<u32> = (0..cols as u32).collect();
            for kernel in TABLE.iter().filter(|k| k.isa.is_available()) {
                let row = rows.rows_of(0..1);
                assert_eq!((kernel.row)(row, row, &x), want, "{} row", kernel.isa);
                let mut sums = [[0; TILE]; STRIPE_TILES];
                (kernel.columns)(columns.stripe(0), Picked { columns: &all, values: &x }, &mut sums);
                assert_eq!(sums[0][0], want, "{} column", kernel.isa);
            }
        }
    }
}
