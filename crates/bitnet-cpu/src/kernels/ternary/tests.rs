//! Every kernel against the specification, and the specification's integers against a naive product.

use super::*;
use crate::kernels::quantize::int8;
use crate::layout::TILE2;
use crate::memory::alone;
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

fn for_each_kernel_and_pool(test: impl Fn(Kernel, &Pool)) {
    for kernel in Kernel::all().filter(|k| !k.is_available()) {
        println!("not run: {kernel}, this processor has no {}", kernel.isa());
    }
    for threads in [1, 2, 3] {
        let pool = Pool::new(threads).unwrap();
        Kernel::available().for_each(|kernel| test(kernel, &pool));
    }
}

const SHAPES: [(usize, usize); 8] =
    [(1, 1), (15, 17), (33, 130), (64, 2560), (40, 272), (16, 6912), (120, 144), (210, 100)];

#[test]
fn int8_products_equal_the_specification() {
    for_each_kernel_and_pool(|kernel, pool| {
        for (rows, cols) in SHAPES {
            for (m, group) in
                [(1, None), (3, None), (5, None), (16, None), (31, None), (1, Some(128)), (4, Some(64))]
            {
                if m * rows * cols > 1_000_000 {
                    continue;
                }
                let mut noise = Noise((rows + m) as u32);
                let w = matrix(rows, cols, &mut noise, group);
                let x = noise.floats(m * cols, 3.0);
                let kernel = if group.is_some() { kernel.general() } else { kernel };
                let panels = Panels::new(pool, kernel.layout(), &[&w]).unwrap();
                let mut got = vec![f32::NAN; m * rows];
                let place = Place { y: &mut got, stride: rows, first: 0 };
                alone(pool.memory(), |scratch| {
                    let x = int8(kernel.isa(), pool, &x, cols, scratch)?;
                    ternary_linear(kernel.isa(), kernel, pool, &panels, x, scratch, place)
                });
                let (mut q, mut want) = (vec![0; cols], vec![0.0; rows]);
                for (x, got) in x.chunks(cols).zip(got.chunks(rows)) {
                    let d = spec::quantize_row(x, &mut q);
                    spec::bitlinear(&w, &q, d, &mut want);
                    assert_eq!(got, want, "{kernel} {rows} x {cols}, {m} tokens, {group:?}");
                }
            }
        }
    });
}

#[test]
fn integers_do_not_saturate() {
    let (pool, cols) = (Pool::new(1).unwrap(), 17_408);
    for kernel in Kernel::available() {
        let TernaryKernel { gemv, gemm, layout, .. } = kernel.0;
        for trit in [-1i8, 1] {
            let w =
                TernaryMatrix::from_trits(TILE, cols, &vec![trit; TILE * cols], Scale::Tensor(1.0)).unwrap();
            let panels = Panels::new(&pool, layout, &[&w]).unwrap();
            for q in [-128i8, 127] {
                let want = (i32::from(trit) + 1) * i32::from(q) * cols as i32;
                let mut x = vec![q; cols + 64];
                x[cols..].fill(0);
                let mut one = [[0; TILE]];
                gemv(panels.tile(0), panels.tile_bytes, &x, &mut one);
                assert_eq!(one, [[want; TILE]], "{kernel} gemv");
                let mut panel = vec![Line([0; 64]); gemm.panel_lines(1, panels.tile_cols())];
                (gemm.unpack)(panels.tile(0), panels.tile_bytes, &mut panel);
                for tokens in 1..=gemm.tokens {
                    let mut many = vec![[0; TILE]; tokens];
                    let mut x = vec![q; tokens * cols];
                    x.resize(tokens * panels.tile_cols().next_multiple_of(gemm.columns), 0);
                    (gemm.multiply)(&panel, &x, &mut many, tokens);
                    assert_eq!(many, vec![[want; TILE]; tokens], "{kernel} gemm");
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
                let panels = Panels::new(pool, &TILE2, &[&w]).unwrap();
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
