//! Every kernel against the specification, and the specification's integers against a naive product.

use super::*;
use crate::testing::{Noise, for_each_isa_and_pool};
use bitnet_core::{Scale, TernaryMatrix};
use bitnet_quant::spec;

fn matrix(rows: usize, cols: usize, noise: &mut Noise, group: Option<usize>) -> TernaryMatrix {
    let trits: Vec<i8> = (0..rows * cols).map(|_| (noise.next() % 3) as i8 - 1).collect();
    let scale = match group {
        None => Scale::Rows(noise.floats(rows, 2.0).into()),
        Some(size) => Scale::Groups { size, values: noise.floats(rows * cols.div_ceil(size), 2.0).into() },
    };
    TernaryMatrix::from_trits(rows, cols, &trits, scale).unwrap()
}

const SHAPES: [(usize, usize); 6] = [(1, 1), (15, 17), (33, 130), (64, 2560), (40, 272), (16, 6912)];

#[test]
fn int8_products_equal_the_specification() {
    for_each_isa_and_pool(|isa, pool| {
        let mut scratch = Quantized::default();
        for (rows, cols) in SHAPES {
            for (m, group) in [(1, None), (3, None), (5, None), (31, None), (1, Some(128)), (4, Some(64))] {
                if m * rows * cols > 1_000_000 {
                    continue;
                }
                let mut noise = Noise((rows + m) as u32);
                let w = matrix(rows, cols, &mut noise, group);
                let x = noise.floats(m * cols, 3.0);
                let panels = Panels::new(pool, &[&w]).unwrap();
                let mut got = vec![f32::NAN; m * rows];
                ternary_linear(isa, pool, &panels, &x, &mut scratch, &mut got);
                let (mut q, mut want) = (vec![0; cols], vec![0.0; rows]);
                for (x, got) in x.chunks(cols).zip(got.chunks(rows)) {
                    let d = spec::quantize_row(x, &mut q);
                    spec::bitlinear(&w, &q, d, &mut want);
                    assert_eq!(got, want, "{isa} {rows} x {cols}, {m} tokens, {group:?}");
                }
            }
        }
    });
}

#[test]
fn integers_do_not_saturate() {
    let cols = 17_408;
    for isa in Isa::available() {
        for code in [0u32, 2] {
            let blocks = vec![Block([code * 0x5555_5555; 16]); cols / 16];
            for q in [-128i8, 127] {
                let want = code as i32 * i32::from(q) * cols as i32;
                let mut one = [[0; TILE]];
                (kernel(isa).gemv)(&blocks, cols / 16, &vec![q; cols], &mut one);
                assert_eq!(one, [[want; TILE]], "{isa} gemv");
                for m in [4, 12, 13] {
                    let mut many = vec![[0; TILE]; m];
                    (kernel(isa).gemm)(&blocks, cols / 16, &vec![q; m * cols], cols, &mut many);
                    assert_eq!(many, vec![[want; TILE]; m], "{isa} gemm");
                }
            }
        }
    }
}

#[test]
fn float_products_equal_the_specification() {
    for_each_isa_and_pool(|isa, pool| {
        for (rows, cols) in [(1, 1), (15, 17), (33, 130), (20, 512)] {
            for (m, group) in [(1, None), (2, Some(64)), (3, Some(128))] {
                let mut noise = Noise(cols as u32);
                let w = matrix(rows, cols, &mut noise, group);
                let x = noise.floats(m * cols, 3.0);
                let panels = Panels::new(pool, &[&w]).unwrap();
                let (mut got, mut want) = (vec![f32::NAN; m * rows], vec![0.0; rows]);
                float_linear(isa, pool, &panels, &x, &mut got);
                for (x, got) in x.chunks(cols).zip(got.chunks(rows)) {
                    spec::bitlinear_float(&w, x, &mut want);
                    assert_eq!(got, want, "{isa} {rows} x {cols}, {group:?}");
                }
            }
        }
    });
}
