#![allow(clippy::single_range_in_vec_init, reason = "a device may have a single run")]

use super::*;

#[test]
fn runs_are_whole_units_near_the_shares() {
    for (n, unit, shares, want) in [
        (64, 16, &[1.0, 1.0][..], &[0..32, 32..64][..]),
        (5, 1, &[1.0, 1.0], &[0..3, 3..5]),
        (1, 1, &[1.0, 1.0], &[0..1, 1..1]),
        (1, 1, &[1.0, 3.0], &[0..0, 0..1]),
        (100, 16, &[1.0, 1.0], &[0..64, 64..100]),
        (10, 16, &[1.0, 1.0], &[0..10, 10..10]),
        (96, 16, &[20.0, 10.0], &[0..64, 64..96]),
        (96, 16, &[1.0, 1.0, 1.0], &[0..32, 32..64, 64..96]),
        (2, 1, &[1.0; 4], &[0..1, 1..1, 1..2, 2..2]),
        (3, 1, &[1e-9, 1.0], &[0..0, 0..3]),
        (0, 16, &[1.0, 1.0], &[0..0, 0..0]),
        (7, 1, &[5.0], &[0..7]),
    ] {
        assert_eq!(divide(n, unit, shares), want, "{n} in units of {unit} by {shares:?}");
    }
}

#[test]
fn every_column_has_one_owner() {
    for shares in [&[1.0, 1.0][..], &[3.0, 1.0], &[1.0, 2.0, 4.0], &[0.1, 0.1, 0.1, 9.0]] {
        // Five query heads of 8 for each of three key-value heads, and a single matrix with a ragged end.
        for stack in [&[(120, 40), (24, 8), (24, 8)][..], &[(77, 16)], &[(48, 16), (48, 16)]] {
            let cut = Cut::of(stack, shares);
            let mut seen = vec![0; cut.cols];
            for device in 0..shares.len() {
                let mut own = 0;
                for column in cut.columns(device).iter().cloned().flatten() {
                    assert_eq!(cut.place(column), Some((device, own)));
                    seen[column] += 1;
                    own += 1;
                }
                assert_eq!(own, cut.width(device));
            }
            assert!(seen.iter().all(|n| *n == 1), "{stack:?} by {shares:?}: {seen:?}");
            assert_eq!(cut.place(cut.cols), None);
        }
    }
}

#[test]
fn columns_of_a_piece_are_found() {
    let cut = Cut::of(&[(16, 8), (4, 2), (4, 2)], &[1.0, 1.0]);
    assert_eq!(cut.columns(1), [8..16, 18..20, 22..24]);
    assert_eq!(cut.within(1, &(0..16)), [0..8]);
    assert_eq!(cut.within(1, &(16..20)), [8..10]);
    assert_eq!(cut.within(1, &(12..23)), [4..8, 8..10, 10..11]);
    assert_eq!(cut.within(0, &(8..16)), []);
    assert_eq!(cut.halved(), None);
    let gated = Cut::of(&[(40, 16), (40, 16)], &[1.0, 1.0]);
    assert_eq!(gated.halved().unwrap(), Cut::of(&[(40, 16)], &[1.0, 1.0]));
    let rectangles = cut.rectangles(1, 3);
    assert_eq!(
        rectangles[1],
        Rectangle { from: 32, from_pitch: 48, to: 72, to_pitch: 96, width: 8, height: 3 }
    );
}
