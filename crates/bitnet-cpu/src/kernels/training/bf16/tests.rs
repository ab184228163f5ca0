use super::super::product::Values;
use super::*;
use crate::testing::Noise;

/// The nearest bf16, as the `half` crate rounds; tiny values are none.
fn near(x: f32) -> f32 {
    if x.abs() < 2f32.powi(-50) { 0.0 } else { half::bf16::from_f32(x).to_f32() }
}

/// One element by rule 19, continuing from `total`.
fn element(a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32, terms: Range<usize>, total: f32) -> f32 {
    let mut total = total;
    for from in terms.clone().step_by(TERMS) {
        let chain = |first: usize| {
            let own = (from + first..terms.end.min(from + TERMS)).step_by(2);
            own.fold(0.0, |sum, p| f32::mul_add(near(a(p)), near(b(p)), sum))
        };
        total += chain(0) + chain(1);
    }
    total
}

#[test]
fn every_element_is_that_of_the_rule_whatever_the_sides_are() {
    for threads in [1, 2, 3] {
        let pool = Pool::new(threads).unwrap();
        for isa in Isa::available() {
            let mut room = Room::default();
            for (m, n, k) in
                [(1, 1, 1), (13, 33, 7), (45, 70, 40), (5, 3, DEPTH + 9), (3, COLUMNS + 9, 2), (64, 64, 64)]
            {
                let mut noise = Noise((m * n + k) as u32);
                let (mut x, w) = (noise.floats(m * k, 2.0), noise.floats(n * k, 1.0));
                // Denormals, and what is below the smallest magnitude that counts.
                x.iter_mut().step_by(5).for_each(|x| *x *= 1e-20);
                x.iter_mut().step_by(7).for_each(|x| *x *= 1e-39);
                let bytes: Vec<i8> = (0..n * k).map(|_| (noise.next() % 255) as i8).collect();
                let (rows, factors) = (noise.floats(m, 1.0), noise.floats(k, 1.0));
                let before = noise.floats(m * (n + 2), 1.0);
                let mut check =
                    |a: Side<'_>, b: Side<'_>, store: Store<'_>, want: &dyn Fn(usize, usize) -> f32| {
                        let mut c = before.clone();
                        let target = Target { values: &mut c, stride: n + 2, first: 1 };
                        product(isa, &pool, (m, n, k), a, b, store, target, &mut room);
                        for (i, (got, old)) in c.iter().zip(&before).enumerate() {
                            let (row, column) = (i / (n + 2), i % (n + 2));
                            let inside = (1..=n).contains(&column);
                            let want = if inside { want(row, column - 1) } else { *old };
                            assert_eq!(
                                got.to_bits(),
                                want.to_bits(),
                                "{isa} {m} {n} {k} {row} {column}: {got} {want}"
                            );
                        }
                    };
                let parts = || (0..k).step_by(DEPTH).map(|from| from..k.min(from + DEPTH));
                let (f, i) = (Values::F32(&x), Values::I8(&bytes));
                check(Side::rows(f, k), Side::rows(i, k), Store::SetRows(&rows, 0.5), &|r, c| {
                    let b = |p: usize| f32::from(bytes[c * k + p]);
                    parts().fold(0.0, |total, part| element(|p| x[r * k + p], b, part, total))
                        * (rows[r] * 0.5)
                });
                check(Side::rows(f, k), Side::rows(i, k), Store::Continue, &|r, c| {
                    let (a, b) = (|p: usize| x[r * k + p], |p: usize| f32::from(bytes[c * k + p]));
                    parts().fold(before[r * (n + 2) + c + 1], |total, part| element(a, b, part, total))
                });
                check(Side::columns(f, m), Side::columns(Values::F32(&w), n), Store::Set(2.0), &|r, c| {
                    let (a, b) = (|p: usize| x[p * m + r], |p: usize| w[p * n + c]);
                    parts().fold(0.0, |total, part| element(a, b, part, total)) * 2.0
                });
                let scaled = Side::columns(f, m).scaled(&factors);
                check(scaled, Side::columns(i, n), Store::Add(0.5), &|r, c| {
                    let (a, b) =
                        (|p: usize| x[p * m + r] * factors[p], |p: usize| f32::from(bytes[p * n + c]));
                    let sums = parts().map(|part| element(a, b, part, 0.0) * 0.5);
                    sums.fold(before[r * (n + 2) + c + 1], |total, sum| total + sum)
                });
            }
        }
    }
}

#[test]
fn what_is_no_number_stays_so() {
    let pool = Pool::new(2).unwrap();
    for isa in Isa::available() {
        let (mut a, b) = (vec![1.0; 40 * 50], vec![1.0; 40 * 50]);
        (a[3 * 50 + 17], a[8 * 50]) = (f32::NAN, f32::INFINITY);
        let mut c = vec![0.0; 40 * 40];
        let (a, b) = (Side::rows(Values::F32(&a), 50), Side::rows(Values::F32(&b), 50));
        let target = Target { values: &mut c, stride: 40, first: 0 };
        product(isa, &pool, (40, 40, 50), a, b, Store::Set(1.0), target, &mut Room::default());
        for (i, c) in c.iter().enumerate() {
            match i / 40 {
                3 => assert!(c.is_nan(), "{isa}"),
                8 => assert_eq!(*c, f32::INFINITY, "{isa}"),
                _ => assert_eq!(*c, 50.0, "{isa}"),
            }
        }
    }
}
