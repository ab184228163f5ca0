//! Numbers by their place: any part of a tensor can be made without what comes before it.

/// The generator of a model.
pub(super) struct Random(pub(super) u64);

/// The numbers of one tensor.
#[derive(Clone, Copy)]
pub(super) struct Stream(u64);

/// SplitMix64's output function (Steele, Lea, Flood, 2014).
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    pub(super) fn stream(&self, index: usize) -> Stream {
        Stream(mix(self.0.wrapping_add(1).wrapping_mul(STEP) ^ mix(index as u64 + 1)))
    }
}

impl Stream {
    fn word(self, at: u64) -> u64 {
        mix(self.0.wrapping_add(at.wrapping_mul(STEP)))
    }

    /// `count` codes from `first` on, four a byte: 40 % zeros, the rest evenly -1 and +1.
    pub(super) fn codes(self, first: u64, count: usize, out: &mut [u8]) {
        for (group, out) in out.chunks_mut(2).enumerate() {
            let bytes = self.word(first / 8 + group as u64).to_le_bytes();
            for (j, byte) in bytes.into_iter().enumerate().take(count.saturating_sub(group * 8)) {
                let code = match byte {
                    0..102 => 1,
                    102..179 => 0,
                    179.. => 2u8,
                };
                let shift = 2 * (j % 4);
                out[j / 4] = out[j / 4] & !(3 << shift) | code << shift;
            }
        }
    }

    /// Nearly normal, deviation 1: the sum of four even numbers.
    pub(super) fn normal(self, at: u64) -> f32 {
        let word = self.word(at);
        let sum: i32 = (0..4).map(|i| i32::from((word >> (16 * i)) as u16)).sum();
        (sum - 2 * 65535) as f32 / 37837.0
    }

    /// Normal with its tails, by Box and Muller.
    pub(super) fn exact_normal(self, at: u64) -> f32 {
        let word = self.word(at);
        let unit = |half: u64| ((half & 0xffff_ffff) as f64 + 0.5) / 4_294_967_296.0;
        ((-2.0 * unit(word).ln()).sqrt() * (std::f64::consts::TAU * unit(word >> 32)).cos()) as f32
    }
}
