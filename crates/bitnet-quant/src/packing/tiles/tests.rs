use super::*;

fn random(rows: usize, cols: usize) -> TernaryMatrix {
    let mut state = 7u64;
    let mut trit = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 40) % 3) as i8 - 1
    };
    let trits: Vec<i8> = (0..rows * cols).map(|_| trit()).collect();
    TernaryMatrix::from_trits(rows, cols, &trits, Scale::Tensor(1.0)).unwrap()
}

/// Hashes of bytes that bitnet.cpp's own converter made of the same trits.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn bytes_are_those_of_bitnet_cpp_and_come_back() {
    for (kind, rows, cols, tile_rows, tile_cols, lanes, want) in
        [GOLDEN_TL1_32, GOLDEN_TL1_64, GOLDEN_TL2, GOLDEN_TL2_PAIRS]
    {
        let tile = Tile { rows, cols, tile_rows, tile_cols, lanes };
        let (m, mut data) = (random(rows, cols), vec![]);
        kind.pack(&tile, &m, &mut data).unwrap();
        assert_eq!(hash(&data), want, "{kind:?} {tile:?}");
        assert_eq!(Some(data.len()), kind.bytes(&tile));
        assert_eq!(kind.unpack(&tile, &data).unwrap().codes(), m.codes());
        assert!(kind.unpack(&tile, &data[1..]).is_err());
        data[0] = 0xff;
        assert!(matches!(kind.unpack(&tile, &data), Err(PackingError::ReservedCode { .. })));
    }
}

type Golden = (Tiled, usize, usize, usize, usize, usize, u64);
const GOLDEN_TL1_32: Golden = (Tiled::Tl1, 256, 512, 128, 64, 32, 0x2ace_24cd_9579_8354);
const GOLDEN_TL1_64: Golden = (Tiled::Tl1, 128, 256, 128, 128, 64, 0xa75e_36aa_a540_91a3);
const GOLDEN_TL2: Golden = (Tiled::Tl2, 128, 384, 64, 96, 32, 0x2449_8d8a_ce16_efc0);
const GOLDEN_TL2_PAIRS: Golden = (Tiled::Tl2, 192, 640, 96, 96, 32, 0xf118_41ec_5818_a598);

#[test]
fn tiles_that_do_not_fit_are_refused() {
    let tile = Tile { rows: 256, cols: 512, tile_rows: 128, tile_cols: 64, lanes: 32 };
    for t in [
        Tile { tile_rows: 96, ..tile },
        Tile { tile_cols: 0, ..tile },
        Tile { lanes: 0, ..tile },
        Tile { lanes: 24, ..tile },
        Tile { tile_cols: 60, ..tile },
    ] {
        assert_eq!((Tiled::Tl1.bytes(&t), Tiled::Tl2.bytes(&t)), (None, None), "{t:?}");
    }
    assert_eq!(Tiled::Tl2.bytes(&tile), None);
    for text in ["m = 1", "[a]\nm 1", "[a]\nm = x", "[a]\nq = 1", "[a]\nm = 1"] {
        assert!(TileTable::parse(text).is_err(), "{text:?}");
    }
}
