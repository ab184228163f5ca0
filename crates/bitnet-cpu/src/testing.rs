//! What the tests of this crate share.

use crate::{Isa, pool::Pool};

/// A small linear congruential generator: test data that is the same everywhere.
pub(crate) struct Noise(pub(crate) u32);

impl Noise {
    pub(crate) fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    /// Values from `-limit` to `limit`.
    pub(crate) fn floats(&mut self, len: usize, limit: f32) -> Vec<f32> {
        (0..len).map(|_| (self.next() as f32 / 8_388_608.0 - 1.0) * limit).collect()
    }
}

/// Whether nothing but ternary kernels, which are tested one by one, differs from another instruction set.
fn is_ternary_only(isa: Isa) -> bool {
    #[cfg(target_arch = "x86_64")]
    return matches!(isa, Isa::Sse | Isa::AvxVnni | Isa::Avx512Bw | Isa::Amx);
    #[cfg(not(target_arch = "x86_64"))]
    return isa == Isa::I8mm;
}

/// Every available instruction set that has float lanes or products of its own, with one, two and three threads.
pub(crate) fn for_each_isa_and_pool(test: impl Fn(Isa, &Pool)) {
    for threads in [1, 2, 3] {
        let pool = Pool::new(threads).unwrap();
        for isa in Isa::available().into_iter().filter(|isa| !is_ternary_only(*isa)) {
            test(isa, &pool);
        }
    }
}
