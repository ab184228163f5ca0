//! Every kernel on the machine at hand, against numbers that were fixed when it was written.
//!
//! The scalar specification is compiled code too, so the kernels are not compared with it but with hashes of what it gave:
//! an instruction that a processor, an emulator or a compiler gets wrong shows here.

use crate::kernels::quantize::Quantized;
use crate::kernels::screen;
use crate::kernels::ternary::{self, Kernel, Place};
use crate::kernels::{attend, dense, gate, low_rank, norm, quantize, rope, skip};
use crate::kv::KvCache;
use crate::layout::{Panels, TILE2};
use crate::memory::alone;
use crate::pool::Pool;
use crate::{CpuError, Isa};
use bitnet_core::{
    Activation, AttentionShape, DenseMatrix, DenseType, KvSpan, KvSpec, KvType, LogitsNeed, RopeRows, Scale,
    TernaryMatrix,
};

/// The result of one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfTest {
    /// The operation.
    pub op: &'static str,
    /// The instruction set, or for ternary products the kernel.
    pub kernel: &'static str,
    /// What came out.
    pub verdict: Verdict,
}

/// What a self-test found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The expected result, to the last bit.
    Passed,
    /// Another result.
    Wrong,
    /// Nothing: this processor lacks the instructions.
    NotRun,
}

/// What an operation must give, as a hash of its bits.
struct Case {
    op: &'static str,
    run: Run,
    golden: u64,
}

enum Run {
    /// Once for every instruction set.
    Isa(fn(Isa, &Pool) -> Vec<f32>),
    /// Once for every instruction set that heads are screened with.
    Screen(fn(Isa, &Pool) -> Vec<f32>),
    /// Once for every ternary kernel.
    Kernel(fn(Kernel, &Pool) -> Vec<f32>),
}

static CASES: &[Case] = &[
    Case { op: "rms norm", run: Run::Isa(rms_norm), golden: 0x9c84_986b_470d_f917 },
    Case { op: "int8 activations", run: Run::Isa(int8), golden: 0xdba7_be28_d7c5_d802 },
    Case {
        op: "ternary product, 1 token",
        run: Run::Kernel(|k, p| ternary_product(k, p, 1)),
        golden: 0x8b34_7d9a_2746_826d,
    },
    Case {
        op: "ternary product, 19 tokens",
        run: Run::Kernel(|k, p| ternary_product(k, p, 19)),
        golden: 0x828c_3e06_2000_56ca,
    },
    Case { op: "ternary product, group scales", run: Run::Kernel(grouped), golden: 0x7763_7932_a230_e54e },
    Case {
        op: "ternary product without zero inputs",
        run: Run::Isa(skipping_columns),
        golden: 0x7b29_63ca_9e33_3719,
    },
    Case {
        op: "ternary gate and up without closed rows",
        run: Run::Isa(skipping_rows),
        golden: 0x637e_b695_9afd_1b12,
    },
    Case { op: "ternary product, float activations", run: Run::Isa(float), golden: 0x19d1_cb28_1cd2_8088 },
    Case {
        op: "dense product, F32",
        run: Run::Isa(|i, p| dense_product(i, p, DenseType::F32)),
        golden: 0x9d11_3dcf_b1c9_89d4,
    },
    Case {
        op: "dense product, F16",
        run: Run::Isa(|i, p| dense_product(i, p, DenseType::F16)),
        golden: 0x78e3_1523_88e8_e89b,
    },
    Case {
        op: "dense product, BF16",
        run: Run::Isa(|i, p| dense_product(i, p, DenseType::BF16)),
        golden: 0x0c48_36b6_751d_9c31,
    },
    Case {
        op: "dense product, Q8_0",
        run: Run::Isa(|i, p| dense_product(i, p, DenseType::Q8_0)),
        golden: 0xe5be_5fb2_d0eb_b8e7,
    },
    Case {
        op: "dense product, Q4_0",
        run: Run::Isa(|i, p| dense_product(i, p, DenseType::Q4_0)),
        golden: 0x7b84_0a47_9c13_3599,
    },
    Case {
        op: "dense product, Q4_1",
        run: Run::Isa(|i, p| dense_product(i, p, DenseType::Q4_1)),
        golden: 0x024b_9a22_06e4_df7f,
    },
    Case {
        op: "dense product, Q6_K",
        run: Run::Isa(|i, p| dense_product(i, p, DenseType::Q6_K)),
        golden: 0xb113_3624_7e93_5f1b,
    },
    Case {
        op: "certified head, Q6_K",
        run: Run::Screen(|i, p| certified_head(i, p, DenseType::Q6_K)),
        golden: 0x971d_d788_4f5d_5c66,
    },
    Case {
        op: "certified head, int8 copy",
        run: Run::Screen(|i, p| certified_head(i, p, DenseType::BF16)),
        golden: 0x0908_4e83_1b59_d88f,
    },
    Case {
        op: "attention, F32 cache",
        run: Run::Isa(|i, p| attention(i, p, KvType::F32, None)),
        golden: 0x7494_8529_21fb_2069,
    },
    Case {
        op: "attention, F16 cache",
        run: Run::Isa(|i, p| attention(i, p, KvType::F16, None)),
        golden: 0x22c5_9897_683e_d263,
    },
    Case {
        op: "attention, BF16 cache",
        run: Run::Isa(|i, p| attention(i, p, KvType::BF16, None)),
        golden: 0x6ec0_4df7_76e3_4a56,
    },
    Case {
        op: "attention, Q8_0 cache",
        run: Run::Isa(|i, p| attention(i, p, KvType::Q8_0, None)),
        golden: 0x2977_44a9_bb25_a12f,
    },
    Case {
        op: "attention, sliding window",
        run: Run::Isa(|i, p| attention(i, p, KvType::F16, Some(75))),
        golden: 0xbf32_0e3f_a69b_d485,
    },
    Case { op: "low-rank addition", run: Run::Isa(low_rank_addition), golden: 0x67ab_d6be_5522_99f9 },
    Case {
        op: "gate, ReLU squared",
        run: Run::Isa(|i, p| gated(i, p, Activation::Relu2)),
        golden: 0xf638_4ddb_70d9_c573,
    },
    Case {
        op: "gate, SiLU",
        run: Run::Isa(|i, p| gated(i, p, Activation::Silu)),
        golden: 0xdef0_42e0_91e4_48ee,
    },
];

/// Runs every kernel of every instruction set that this processor has.
pub fn self_test() -> Result<Vec<SelfTest>, CpuError> {
    let pool = Pool::new(2).map_err(|source| CpuError::Spawn { threads: 2, source })?;
    let mut results = Vec::new();
    for case in CASES {
        let mut add = |kernel, values: Option<Vec<f32>>| {
            let verdict = match values {
                None => Verdict::NotRun,
                Some(values) if hash(&values) == case.golden => Verdict::Passed,
                Some(_) => Verdict::Wrong,
            };
            results.push(SelfTest { op: case.op, kernel, verdict });
        };
        match case.run {
            Run::Isa(run) => {
                for isa in Isa::ALL.iter().copied() {
                    add(isa.name(), isa.is_available().then(|| run(isa, &pool)));
                }
            }
            Run::Screen(run) => {
                for isa in screen::isas() {
                    add(isa.name(), isa.is_available().then(|| run(isa, &pool)));
                }
            }
            Run::Kernel(run) => {
                for kernel in Kernel::all() {
                    add(kernel.name(), kernel.is_available().then(|| run(kernel, &pool)));
                }
            }
        }
    }
    Ok(results)
}

/// FNV-1a over the bits.
fn hash(values: &[f32]) -> u64 {
    values
        .iter()
        .flat_map(|v| v.to_bits().to_le_bytes())
        .fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Numbers that are the same on every machine.
struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        self.0 >> 8
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.next() as f32 / 4_194_304.0 - 2.0).collect()
    }

    fn ternary(&mut self, rows: usize, cols: usize, scale: Scale) -> TernaryMatrix {
        let trits: Vec<i8> = (0..rows * cols).map(|_| (self.next() % 3) as i8 - 1).collect();
        TernaryMatrix::from_trits(rows, cols, &trits, scale).expect("the shape is that of the trits")
    }

    fn dense(&mut self, rows: usize, cols: usize, dtype: DenseType) -> DenseMatrix {
        let mut data = Vec::new();
        let (values, len) = dtype.block();
        for _ in 0..rows * cols / values {
            let mut block: Vec<u8> = (0..len).map(|_| self.next() as u8).collect();
            // A finite scale, or a finite number.
            let scale = half::f16::from_f32(self.floats(1)[0]).to_le_bytes();
            match dtype {
                DenseType::F32 => block.copy_from_slice(&self.floats(1)[0].to_le_bytes()),
                DenseType::F16 => block.copy_from_slice(&scale),
                DenseType::BF16 => block.copy_from_slice(&self.floats(1)[0].to_le_bytes()[2..]),
                DenseType::Q8_0 | DenseType::Q4_0 => block[..2].copy_from_slice(&scale),
                DenseType::Q4_1 => block[..4].copy_from_slice(&[scale, scale].concat()),
                DenseType::Q6_K => block[208..].copy_from_slice(&scale),
            }
            data.extend(block);
        }
        DenseMatrix::new(rows, cols, dtype, data.into()).expect("the data are whole rows")
    }
}

fn rms_norm(isa: Isa, pool: &Pool) -> Vec<f32> {
    let mut numbers = Numbers(1);
    let (x, w) = (numbers.floats(3 * 203), numbers.floats(203));
    let mut y = vec![0.0; x.len()];
    norm::rms_norm(isa, pool, &x, &w, 1e-5, &mut y);
    y
}

fn int8(isa: Isa, pool: &Pool) -> Vec<f32> {
    let mut out = Quantized::default();
    quantize::quantize(isa, pool, &Numbers(2).floats(3 * 203), 203, &mut out);
    out.q.iter().map(|q| f32::from(*q)).chain(out.d.iter().copied()).collect()
}

fn ternary_product(kernel: Kernel, pool: &Pool, m: usize) -> Vec<f32> {
    let mut numbers = Numbers(3);
    let w = numbers.ternary(77, 203, Scale::Rows(vec![0.37; 77].into()));
    product(kernel, pool, &w, &numbers.floats(m * 203))
}

fn grouped(kernel: Kernel, pool: &Pool) -> Vec<f32> {
    let mut numbers = Numbers(4);
    let values = numbers.floats(77 * 4).into();
    let w = numbers.ternary(77, 256, Scale::Groups { size: 64, values });
    let kernel = kernel.general();
    product(kernel, pool, &w, &numbers.floats(3 * 256))
}

fn product(kernel: Kernel, pool: &Pool, w: &TernaryMatrix, x: &[f32]) -> Vec<f32> {
    let panels = Panels::new(pool, kernel.layout(), &[w]).expect("one matrix stacks with itself");
    let mut y = vec![0.0; x.len() / w.cols() * w.rows()];
    multiply(kernel, pool, &panels, x, &mut y);
    y
}

fn multiply(kernel: Kernel, pool: &Pool, w: &Panels, x: &[f32], y: &mut [f32]) {
    let (isa, place) = (kernel.isa(), Place { y, stride: w.rows, first: 0 });
    alone(pool.memory(), |scratch| {
        let x = quantize::int8(isa, pool, x, w.cols, scratch)?;
        ternary::ternary_linear(isa, kernel, pool, w, x, scratch, place)
    });
}

/// Three in four inputs are zero.
fn skipping_columns(isa: Isa, pool: &Pool) -> Vec<f32> {
    let mut numbers = Numbers(9);
    let w = numbers.ternary(290, 203, Scale::Tensor(0.41));
    let mut x = numbers.floats(203);
    x.iter_mut().enumerate().filter(|(i, _)| i % 4 != 1).for_each(|(_, x)| *x = 0.0);
    let panels = Panels::by_column(pool, &[&w]).expect("one matrix stacks with itself");
    let mut y = vec![0.0; w.rows()];
    multiply(Kernel::of(isa).general(), pool, &panels, &x, &mut y);
    y
}

fn skipping_rows(isa: Isa, pool: &Pool) -> Vec<f32> {
    let mut numbers = Numbers(10);
    let kernel = Kernel::of(isa).general();
    let gate = numbers.ternary(77, 603, Scale::Tensor(0.41));
    let up = numbers.ternary(77, 603, Scale::Tensor(0.23));
    let gate = Panels::new(pool, kernel.layout(), &[&gate]).expect("one matrix stacks with itself");
    let up = Panels::by_row(pool, &[&up]).expect("one matrix stacks with itself");
    let mut y = vec![0.0; 77];
    alone(pool.memory(), |scratch| {
        let x = quantize::int8(isa, pool, &numbers.floats(603), 603, scratch)?;
        skip::gated_relu2(isa, kernel, pool, (&gate, &up), x, scratch, &mut y)
    });
    y
}

fn float(isa: Isa, pool: &Pool) -> Vec<f32> {
    let mut numbers = Numbers(5);
    let values = numbers.floats(77 * 4).into();
    let w = numbers.ternary(77, 256, Scale::Groups { size: 64, values });
    let panels = Panels::new(pool, &TILE2, &[&w]).expect("one matrix stacks with itself");
    let mut y = vec![0.0; 3 * 77];
    ternary::float_linear(isa, pool, &panels, &numbers.floats(3 * 256), &mut y);
    y
}

fn dense_product(isa: Isa, pool: &Pool, dtype: DenseType) -> Vec<f32> {
    let mut numbers = Numbers(6);
    let w = numbers.dense(21, 512, dtype);
    let mut y = vec![0.0; 3 * w.rows()];
    let x = numbers.floats(3 * w.cols());
    alone(pool.memory(), |scratch| dense::dense_linear(isa, pool, &w, &x, 3, scratch, &mut y));
    y
}

/// The best rows of a head and their products, by screening where the instruction set has it. Nothing where a score lies
/// farther from its product than its bound says, or the bounds separate nothing.
fn certified_head(isa: Isa, pool: &Pool, dtype: DenseType) -> Vec<f32> {
    const BEST: usize = 8;
    let mut numbers = Numbers(9);
    let w = numbers.dense(4099, 256, dtype);
    let x = numbers.floats(w.cols());
    let mut products = vec![0.0; w.rows()];
    alone(pool.memory(), |scratch| dense::dense_linear(isa, pool, &w, &x, 1, scratch, &mut products));
    let mut ids: Vec<u32> = (0..w.rows() as u32).collect();
    if let Some(screen) = screen::prepare(isa, pool, &w).expect("the head is a megabyte") {
        // One token alone, and as many as are scored at once.
        for tokens in [1, 4] {
            let needs = vec![LogitsNeed::Top { k: BEST, also: Vec::new() }; tokens];
            let picked = alone(pool.memory(), |scratch| {
                let picked = screen.pick(isa, pool, &w, &x.repeat(tokens), &needs, scratch)?;
                Ok(picked.of(0).filter(|_| screen.holds(&picked, &products)).map(<[u32]>::to_vec))
            });
            let Some(picked) = picked else { return Vec::new() };
            ids = picked;
        }
    }
    ids.sort_by(|a, b| products[*b as usize].total_cmp(&products[*a as usize]));
    ids.truncate(BEST);
    ids.iter().flat_map(|id| [*id as f32, products[*id as usize]]).collect()
}

/// Rotation, the cache and attention over more than one segment of positions.
fn attention(isa: Isa, pool: &Pool, ty: KvType, window: Option<usize>) -> Vec<f32> {
    let (mut numbers, m) = (Numbers(7), 270);
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 24 };
    let spec = KvSpec { layers: 1, shape, capacity: m, key: ty, value: ty };
    let mut cache = KvCache::new(pool.memory(), spec).expect("a few kilobytes");
    let mut qkv = numbers.floats(m * shape.qkv_cols());
    let (cos, sin) = (numbers.floats(m * 12), numbers.floats(m * 12));
    let spans = [KvSpan { start: 0, len: m, blocks: &[0, 1, 2, 3, 4] }];
    let (rope, mut y) = (RopeRows { cos: &cos, sin: &sin }, vec![0.0; m * 4 * 24]);
    alone(pool.memory(), |scratch| {
        rope::rope_append(pool, &mut qkv, rope, &mut cache, 0, &spans, scratch)?;
        attend::attend(isa, pool, &qkv, &cache, 0, (&spans, window), scratch, &mut y)
    });
    y
}

fn low_rank_addition(isa: Isa, pool: &Pool) -> Vec<f32> {
    let mut numbers = Numbers(10);
    let (x, mut y) = (numbers.floats(3 * 77), numbers.floats(3 * 90));
    low_rank::add_scaled(isa, pool, &x, 77, 0.3, (&mut y, 90, 5));
    y
}

fn gated(isa: Isa, pool: &Pool, act: Activation) -> Vec<f32> {
    let mut y = vec![0.0; 3 * 203];
    gate::gate(isa, pool, &Numbers(8).floats(6 * 203), 203, act, &mut y);
    y
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_gives_its_golden_bits() {
        let pool = Pool::new(1).unwrap();
        let goldens: Vec<String> = CASES
            .iter()
            .map(|case| match case.run {
                Run::Isa(run) | Run::Screen(run) => (case, hash(&run(Isa::Scalar, &pool))),
                Run::Kernel(run) => (case, hash(&run(Kernel::of(Isa::Scalar), &pool))),
            })
            .filter(|(case, got)| case.golden != *got)
            .map(|(case, got)| format!("{}: {got:#018x}", case.op))
            .collect();
        assert!(goldens.is_empty(), "{goldens:#?}");
        let failed: Vec<SelfTest> =
            self_test().unwrap().into_iter().filter(|t| t.verdict == Verdict::Wrong).collect();
        assert_eq!(failed, []);
    }
}
