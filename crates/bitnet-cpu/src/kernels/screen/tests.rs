//! The property that screening stands on: whatever rows and vector, the winners it gives are the exact winners.

use super::*;
use crate::kernels::dense;
use crate::memory::alone;
use crate::testing::Noise;
use bitnet_core::DenseType;
use bitnet_memory::Region;
use half::{bf16, f16};

/// The `k` best ids by (product descending, id ascending), from all products.
fn best(products: &[f32], k: usize) -> Vec<u32> {
    let mut ids: Vec<u32> = (0..products.len() as u32).collect();
    ids.sort_by(|a, b| products[*b as usize].total_cmp(&products[*a as usize]).then(a.cmp(b)));
    ids.truncate(k);
    ids
}

/// Rows of a type, encoded so coarsely that many of them are equal.
fn matrix(
    dtype: DenseType,
    rows: usize,
    cols: usize,
    mut value: impl FnMut(usize, usize) -> f32,
) -> DenseMatrix {
    let mut data = Vec::new();
    for row in 0..rows {
        match dtype {
            DenseType::F32 => data.extend((0..cols).flat_map(|c| value(row, c).to_le_bytes())),
            DenseType::F16 => data.extend((0..cols).flat_map(|c| f16::from_f32(value(row, c)).to_le_bytes())),
            DenseType::BF16 => {
                data.extend((0..cols).flat_map(|c| bf16::from_f32(value(row, c)).to_le_bytes()))
            }
            DenseType::Q6_K => {
                for block in 0..cols / 256 {
                    let mut raw = [0u8; 210];
                    for (i, byte) in raw.iter_mut().enumerate() {
                        *byte = (value(row, block * 256 + i) * 1e3) as i32 as u8;
                    }
                    let d = f16::from_f32(value(row, block * 256 + 7) / 64.0);
                    raw[208..].copy_from_slice(&d.to_le_bytes());
                    data.extend(raw);
                }
            }
            other => panic!("{other:?} has no screen"),
        }
    }
    DenseMatrix::new(rows, cols, dtype, data.into()).unwrap()
}

/// Screens for three tokens, the outer ones of which are `x`, and compares with all products; returns the share of rows that were
/// computed for `x`, or `None` where screening gave up.
fn check(name: &str, w: &DenseMatrix, x: &[f32], k: usize) -> Option<f64> {
    let pool = Pool::new(2).unwrap();
    let other: Vec<f32> = x.iter().map(|x| 1.0 - x / 2.0).collect();
    let all = [x, &other, x].concat();
    let also = vec![3, 4999];
    let needs = [
        LogitsNeed::Top { k, also: also.clone() },
        LogitsNeed::Top { k: 2, also: Vec::new() },
        LogitsNeed::Top { k, also },
    ];
    let mut share: Option<f64> = None;
    for isa in Isa::available() {
        let mut products = vec![0.0; w.rows()];
        alone(pool.memory(), |scratch| dense::dense_linear(isa, &pool, w, x, 1, scratch, &mut products));
        let Some(screen) = prepare(isa, &pool, w).unwrap() else { continue };
        let mut region = Region::default();
        // The scratch of another vector must not matter.
        screen.pick(isa, &pool, w, &vec![1.0; x.len()], &needs[..1], &region.begin(pool.memory())).unwrap();
        for tokens in [1, 3] {
            let (all, needs) = (&all[..tokens * x.len()], &needs[..tokens]);
            let scratch = region.begin(pool.memory());
            let picked = screen.pick(isa, &pool, w, all, needs, &scratch).unwrap();
            assert_eq!(picked.of(0), picked.of(tokens - 1), "{name} {isa}");
            let Some(ids) = picked.of(0) else { continue };
            assert!(ids.is_sorted());
            for id in best(&products, k).iter().chain(&[3, 4999]) {
                assert!(ids.binary_search(id).is_ok(), "{name} {isa}: {id} of the best {k} is missing");
            }
            let computed = ids.len() as f64 / w.rows() as f64;
            share = Some(share.map_or(computed, |share| share.max(computed)));
            assert!(screen.holds(&picked, &products), "{name} {isa}: a score lies outside its bound");
        }
    }
    share
}

const TYPES: [DenseType; 4] = [DenseType::Q6_K, DenseType::F16, DenseType::BF16, DenseType::F32];

#[test]
fn random_rows_separate() {
    for dtype in TYPES {
        for cols in [256, 1024] {
            let mut noise = Noise(cols as u32);
            let w = matrix(dtype, 5003, cols, |_, _| noise.floats(1, 1.0)[0]);
            let x = noise.floats(cols, 3.0);
            for k in [1, 40] {
                let share = check("random", &w, &x, k).expect("random rows separate");
                assert!(share < 0.1, "{dtype:?} {cols} {k}: {share}");
            }
        }
    }
}

#[test]
fn rows_that_are_no_whole_blocks() {
    let mut noise = Noise(5);
    for cols in [7, 100, 300] {
        let w = matrix(DenseType::F32, 5000, cols, |_, _| noise.floats(1, 1.0)[0]);
        check("odd", &w, &noise.floats(cols, 1.0), 5);
    }
}

#[test]
fn more_tokens_than_fit_side_by_side() {
    let (mut noise, pool) = (Noise(8), Pool::new(2).unwrap());
    for dtype in TYPES {
        // Two rows are left over behind the last whole group.
        let w = matrix(dtype, 4098, 512, |_, _| noise.floats(1, 1.0)[0]);
        let x = noise.floats(37 * 512, 2.0);
        let mut needs = vec![LogitsNeed::Top { k: 5, also: Vec::new() }; 37];
        needs[20] = LogitsNeed::All;
        for isa in Isa::available() {
            let Some(screen) = prepare(isa, &pool, &w).unwrap() else { continue };
            let mut region = Region::default();
            let scratch = region.begin(pool.memory());
            let all = screen.pick(isa, &pool, &w, &x, &needs, &scratch).unwrap();
            for (t, x) in x.chunks(512).enumerate() {
                let (mut products, picked) = (vec![0.0; w.rows()], all.of(t));
                alone(pool.memory(), |scratch| {
                    dense::dense_linear(isa, &pool, &w, x, 1, scratch, &mut products)
                });
                assert_eq!(picked.is_none(), t == 20, "{dtype:?} {isa} token {t}");
                let Some(ids) = picked else { continue };
                assert!(best(&products, 5).iter().all(|id| ids.contains(id)), "{dtype:?} {isa} token {t}");
            }
        }
    }
}

#[test]
fn ties_go_to_the_lowest_ids() {
    for dtype in TYPES {
        let mut noise = Noise(11);
        let pattern = noise.floats(256 * 8, 1.0);
        // Eight different rows, each some 625 times.
        let w = matrix(dtype, 5000, 256, |row, col| pattern[row % 8 * 256 + col]);
        check("ties", &w, &noise.floats(256, 1.0), 1);
        check("ties", &w, &noise.floats(256, 1.0), 30);
    }
}

#[test]
fn adversarial_rows_and_vectors() {
    for dtype in TYPES {
        for seed in 0..12 {
            let mut noise = Noise(seed + 100);
            let odd = noise.next() % 5;
            // Rows of very different norms, rows that nearly equal the best one, zero rows, rows too small to be coded.
            let base = noise.floats(512, 1.0);
            let w = matrix(dtype, 5000, 512, |row, col| {
                let jitter = noise.floats(1, 1.0)[0];
                match (row as u32 * 7 + odd) % 11 {
                    0 => base[col] + 1e-3 * jitter,
                    1 => base[col],
                    2 => 0.0,
                    3 => jitter * 1e-38,
                    4 => jitter * if dtype == DenseType::F32 { 1e12 } else { 900.0 },
                    5 => -base[col],
                    _ => jitter,
                }
            });
            let mut x = match seed % 4 {
                0 => base.clone(),
                1 => noise.floats(512, 1e-3),
                2 => noise.floats(512, 1e9),
                _ => vec![0.0; 512],
            };
            // Outliers, and vectors so small that int8 misses them.
            x[17] *= 1e4;
            if seed % 3 == 0 {
                x[300..].fill(1e-41);
            }
            check("adversarial", &w, &x, 1 + 13 * (seed as usize % 3));
        }
    }
}

#[test]
fn what_is_out_of_range_is_computed_in_full() {
    let mut noise = Noise(1);
    let w = matrix(DenseType::F32, 5000, 256, |_, _| noise.floats(1, 1e30)[0]);
    for extreme in [f32::NAN, f32::INFINITY, 1e9] {
        let mut x = vec![1.0; 256];
        x[9] = extreme;
        assert_eq!(check("extreme", &w, &x, 1), None);
    }
    let few = matrix(DenseType::F32, 100, 256, |_, _| 1.0);
    assert!(prepare(Isa::detect(), &Pool::new(1).unwrap(), &few).unwrap().is_none());
}
