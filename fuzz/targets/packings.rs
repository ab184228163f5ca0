//! Any bytes in any packing: what is accepted holds no code that is no trit, and survives being packed again.
#![no_main]

use bitnet_quant::packing::PACKINGS;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some(([which, rows, low, high], data)) = data.split_first_chunk::<4>() else { return };
    let packing = PACKINGS[usize::from(*which) % PACKINGS.len()];
    let (rows, cols) = (usize::from(*rows), usize::from(u16::from_le_bytes([*low, *high])));
    // The length as it comes, and the one that fits the shape.
    let _ = (packing.unpack)(rows, cols, data);
    let Some(need) = (packing.bytes)(rows, cols).filter(|n| *n < 1 << 16) else { return };
    let full: Vec<u8> = data.iter().copied().chain(std::iter::repeat(0x55)).take(need).collect();
    let Ok(m) = (packing.unpack)(rows, cols, &full) else { return };
    for row in 0..rows {
        assert!(
            (0..cols).all(|col| (-1..=1).contains(&m.trit(row, col)) && m.scale_at(row, col).is_finite())
        );
    }
    let mut packed = Vec::new();
    (packing.pack)(&m, &mut packed).expect("what was unpacked can be packed");
    let again = (packing.unpack)(rows, cols, &packed).expect("what was packed can be unpacked");
    assert_eq!(again.codes(), m.codes());
    for row in 0..rows {
        for col in (0..cols).filter(|col| m.trit(row, *col) != 0) {
            assert_eq!(again.scale_at(row, col).to_bits(), m.scale_at(row, col).to_bits());
        }
    }
});
