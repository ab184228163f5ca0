use super::*;
use bitnet_core::Scale;
use proptest::prelude::*;

fn vectors() -> Vec<u8> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/quant_vectors.safetensors");
    std::fs::read(path).unwrap()
}

/// Trits `[16, 256]` of the reference, and its bytes in a packing.
fn golden(name: &str) -> (Vec<i8>, Vec<u8>) {
    let file = vectors();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let trits = tensors.tensor("w.ternary").unwrap().data().iter().map(|b| *b as i8).collect();
    (trits, tensors.tensor(name).unwrap().data().to_vec())
}

#[test]
fn bytes_equal_the_reference() {
    for (packing, name) in [
        (&HF, "w.packed_hf"),
        (&I2_S, "w.i2_s"),
        (&I2_S_ARM, "w.i2_s_arm"),
        (&TQ1_0, "w.tq1_0"),
        (&TQ2_0, "w.tq2_0"),
    ] {
        let (trits, want) = golden(name);
        let m = (packing.unpack)(16, 256, &want).unwrap();
        for (i, trit) in trits.iter().enumerate() {
            assert_eq!(m.trit(i / 256, i % 256), *trit, "{name} {i}");
        }
        let mut got = Vec::new();
        (packing.pack)(&m, &mut got).unwrap();
        assert_eq!(got, want, "{name}");
    }
}

/// Bytes written down by hand.
#[test]
fn group_formats_are_sequential() {
    let mut data = vec![0x00, 0x3c];
    data.extend([0b10_01_00_10; 16]);
    let m = (Q2_0_G64.unpack)(1, 64, &data).unwrap();
    assert_eq!([m.trit(0, 0), m.trit(0, 1), m.trit(0, 2), m.trit(0, 3)], [1, -1, 0, 1]);
    assert_eq!(m.scale(), &Scale::Tensor(1.0));

    let mut data = vec![0x00, 0xc0];
    data.extend([0b0000_0101; 16]);
    let m = (Q1_0.unpack)(1, 128, &data).unwrap();
    assert_eq!([m.trit(0, 0), m.trit(0, 1), m.trit(0, 2), m.trit(0, 3)], [1, -1, 1, -1]);
    assert_eq!(m.scale(), &Scale::Tensor(-2.0));
}

#[test]
fn scales_are_merged_where_bits_are_equal_and_zeros_follow_their_row() {
    let block = |d: f32, codes: u8| [&half::f16::from_f32(d).to_le_bytes()[..], &[codes; 16]].concat();
    let unpack = |blocks: [Vec<u8>; 4]| (Q2_0_G64.unpack)(2, 128, &blocks.concat()).unwrap().scale().clone();
    let one = 0b1010_1010;
    assert_eq!(
        unpack([block(2.0, one), block(0.0, 0x55), block(2.0, one), block(2.0, one)]),
        Scale::Tensor(2.0)
    );
    assert_eq!(
        unpack([block(2.0, one), block(9.0, 0x55), block(3.0, one), block(3.0, one)]),
        Scale::Rows([2.0, 3.0].into())
    );
    assert_eq!(
        unpack([block(2.0, one), block(1.0, one), block(3.0, one), block(7.0, 0x55)]),
        Scale::Groups { size: 64, values: [2.0, 1.0, 3.0, 3.0].into() }
    );
}

#[test]
fn what_is_no_trit_or_no_scale_is_named() {
    let mut data = vec![0x55; 32 + 32];
    data[32..36].copy_from_slice(&1.0f32.to_le_bytes());
    data[5] = 0b01_11_01_01;
    let reserved = PackingError::ReservedCode { packing: "I2_S", row: 0, col: 37 };
    assert_eq!((I2_S.unpack)(1, 128, &data).unwrap_err(), reserved);
    assert_eq!(I2_S.read(1, 128, &data.clone().into()).unwrap_err(), reserved);
    data[5] = 0x55;
    data[32..36].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(matches!((I2_S.unpack)(1, 128, &data), Err(PackingError::ScaleNotFinite { .. })));
    let m = TernaryMatrix::from_trits(1, 256, &[1; 256], Scale::Tensor(0.1)).unwrap();
    assert!(matches!((TQ2_0.pack)(&m, &mut Vec::new()), Err(PackingError::ScaleNotExact { .. })));
    let m = TernaryMatrix::from_trits(1, 128, &[0; 128], Scale::Tensor(1.0)).unwrap();
    assert!(matches!((Q1_0.pack)(&m, &mut Vec::new()), Err(PackingError::Zero { row: 0, col: 0, .. })));
}

proptest! {
    /// Every packing gives back what it took, whatever the shape it can hold.
    #[test]
    fn round_trip(rows in 1usize..9, blocks in 1usize..4, odd in 0usize..3, seed in any::<u64>(), per_row in any::<bool>()) {
        for packing in PACKINGS {
            let cols = match packing.name {
                "HF" | "I8" => blocks * 37 + odd,
                "I2_S" | "I2_S_ARM" => [128, 64, 32][odd] * blocks,
                _ => 256 * blocks,
            };
            let rows = match packing.name { "HF" | "I2_S" | "I2_S_ARM" => rows * 4, _ => rows };
            let Some(bytes) = (packing.bytes)(rows, cols) else { continue };
            let mut state = seed | 1;
            let mut trit = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                match packing.name { "Q1_0" => ((state >> 40) & 1) as i8 * 2 - 1, _ => ((state >> 40) % 3) as i8 - 1 }
            };
            let trits: Vec<i8> = (0..rows * cols).map(|_| trit()).collect();
            let scale = match packing.name {
                "HF" | "I8" => Scale::Tensor(1.0),
                "I2_S" | "I2_S_ARM" => Scale::Tensor(0.123),
                _ if per_row => Scale::Rows((0..rows).map(|r| 0.5 + r as f32).collect()),
                _ => Scale::Tensor(0.25),
            };
            let scale = match scale { Scale::Rows(v) if v.len() == 1 => Scale::Tensor(v[0]), s => s };
            let m = TernaryMatrix::from_trits(rows, cols, &trits, scale).unwrap();
            let mut data = Vec::new();
            (packing.pack)(&m, &mut data).unwrap();
            prop_assert_eq!(data.len(), bytes);
            let back = (packing.unpack)(rows, cols, &data).unwrap();
            prop_assert_eq!(back.codes(), m.codes(), "{}", packing.name);
            prop_assert_eq!(back.scale(), m.scale());
            let read = packing.read(rows, cols, &data.clone().into()).unwrap();
            prop_assert_eq!(read.in_file().is_some(), packing.name == "I2_S" && cols % 128 == 0);
            // Some rows first: asking for all of them makes the canonical form.
            for (first, last) in [(0, rows), (rows / 2, rows), (rows, rows)] {
                prop_assert_eq!(read.rows_codes(first..last), m.rows_codes(first..last), "{}", packing.name);
            }
            prop_assert_eq!(read.codes(), m.codes(), "{}", packing.name);
            prop_assert_eq!(read.scale(), m.scale());
            // A byte more or less is refused.
            prop_assert!((packing.unpack)(rows, cols, &data[1..]).is_err());
        }
    }

    /// No bytes panic.
    #[test]
    fn any_bytes(rows in 0usize..5, cols in 0usize..600, data in proptest::collection::vec(any::<u8>(), 0..600)) {
        for packing in PACKINGS {
            let _ = (packing.unpack)(rows, cols, &data);
            if let Some(len) = (packing.bytes)(rows, cols) {
                let full: Vec<u8> = data.iter().copied().cycle().take(if data.is_empty() { 0 } else { len }).collect();
                let _ = (packing.unpack)(rows, cols, &full);
            }
        }
    }
}
