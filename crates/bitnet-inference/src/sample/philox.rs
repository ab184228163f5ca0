//! The generator: Philox 4x32 with ten rounds, a counter-based generator of the Random123 family.
//!
//! Salmon, Moraes, Dror, Shaw: "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. Having no state, it gives position
//! `n` the same number however the sequence got there: in one go, resumed, or beside other sequences.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Philox 4x32-10: four random words for a counter and a key.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLY: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    let wide = |a: u32, b: u32| {
        let product = u64::from(a) * u64::from(b);
        ((product >> 32) as u32, product as u32)
    };
    for _ in 0..10 {
        let (high0, low0) = wide(MULTIPLY[0], counter[0]);
        let (high1, low1) = wide(MULTIPLY[1], counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// A number in `[0, 1)` with 53 random bits for one position of the sequence that `seed` names.
pub fn uniform(seed: u64, position: u64) -> f64 {
    let words =
        philox4x32([position as u32, (position >> 32) as u32, 0, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(words[0]) << 32 | u64::from(words[1]);
    (bits >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// A seed nobody asked for. Limited to 32 bits, so that it can be typed into any tool's `--seed`. The standard library's
/// hash keys come from the operating system's generator, which saves a dependency.
pub(crate) fn fresh_seed() -> u64 {
    RandomState::new().build_hasher().finish() >> 32
}
