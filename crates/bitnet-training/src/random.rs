//! Random numbers without a state: a number follows from the seed, what it is for, and its index.

/// What numbers are for; those of one index have nothing to do with each other.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    /// The weights of a fresh model.
    Weights,
    /// The order of documents.
    Documents,
    /// The order of rows in an epoch.
    Rows,
    /// Which examples are kept for validation.
    Validation,
    /// Which way weights are rounded.
    Rounding,
    /// Tokens of samples.
    Samples,
    /// Which inputs of adapters are left out.
    Dropout,
}

/// SplitMix64's finalizer (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// 64 random bits.
pub(crate) fn bits(seed: u64, purpose: Purpose, stream: u64, index: u64) -> u64 {
    let stream =
        mix(seed.wrapping_add(GOLDEN)) ^ mix(stream.wrapping_add(GOLDEN << 3) ^ ((purpose as u64 + 1) << 56));
    mix(mix(stream).wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN)))
}

/// A number in `(0, 1)`.
pub(crate) fn uniform(bits: u64) -> f64 {
    ((bits >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// A number of the normal distribution (Box and Muller).
pub(crate) fn normal(seed: u64, stream: u64, index: u64) -> f64 {
    let (u, v) = (
        uniform(bits(seed, Purpose::Weights, stream, 2 * index)),
        uniform(bits(seed, Purpose::Weights, stream, 2 * index + 1)),
    );
    libm::sqrt(-2.0 * libm::log(u)) * libm::cos(2.0 * std::f64::consts::PI * v)
}

/// The numbers below `n` in a random order (Fisher and Yates).
pub(crate) fn permutation(seed: u64, purpose: Purpose, stream: u64, n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    for i in (1..n).rev() {
        // The high half of a product: bias is below n / 2^64.
        let other = (u128::from(bits(seed, purpose, stream, i as u64)) * (i as u128 + 1)) >> 64;
        order.swap(i, other as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_distribution() {
        let n = 20_000;
        let x: Vec<f64> = (0..n).map(|i| normal(1, 2, i)).collect();
        let mean = x.iter().sum::<f64>() / n as f64;
        let variance = x.iter().map(|v| v * v).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
    }

    #[test]
    fn an_order_has_every_number_once_and_depends_on_all_that_names_it() {
        let order = |seed, purpose, stream| permutation(seed, purpose, stream, 100);
        let mut sorted = order(1, Purpose::Rows, 0);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        let orders = [
            order(1, Purpose::Rows, 0),
            order(2, Purpose::Rows, 0),
            order(1, Purpose::Documents, 0),
            order(1, Purpose::Rows, 1),
        ];
        for (i, a) in orders.iter().enumerate() {
            assert!(orders[..i].iter().all(|b| a != b));
        }
    }
}
