//! Tensors made byte by byte, with what they mean in double precision, from the layouts' descriptions alone.

/// A generator of small random numbers.
pub struct Noise(pub u64);

impl Noise {
    /// The next 32 random bits.
    pub fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// The next whole number below `n`.
    pub fn below(&mut self, n: u32) -> u32 {
        self.bits() % n
    }

    /// Evenly from -1 to 1.
    pub fn unit(&mut self) -> f64 {
        f64::from(self.bits()) / f64::from(1u32 << 30) - 1.0
    }

    /// A positive f16, from 1/64 to 1/32 of `size`, as its bits and its value. `size` is a power of two.
    fn half(&mut self, size: f64) -> (u16, f64) {
        let mantissa = self.bits() as u16 & 0x3ff;
        let exponent = size.log2() as i32 - 6 + 15;
        assert!((1..31).contains(&exponent), "{size} is no normal number of f16");
        ((exponent as u16) << 10 | mantissa, size / 64.0 * (1.0 + f64::from(mantissa) / 1024.0))
    }
}

/// Bytes of a type and the values they stand for.
pub type Made = (Vec<u8>, Vec<f64>);

/// A float type of files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the formats' own")]
pub enum Float {
    F32,
    F16,
    BF16,
}

/// How many scales a tensor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// One for all of it.
    One,
    /// One for each block or row.
    Each,
}

/// `blocks` blocks of one type, each with an f16 scale of about `size / 64`.
fn blocks(
    noise: &mut Noise,
    blocks: usize,
    mut one: impl FnMut(&mut Noise, &mut Vec<u8>, &mut Vec<f64>),
) -> Made {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for _ in 0..blocks {
        one(noise, &mut bytes, &mut values);
    }
    (bytes, values)
}

/// `Q1_0`: 128 weights; f16 scale, one bit each, lowest first, 1 is plus.
pub fn q1_0(noise: &mut Noise, n: usize) -> Made {
    blocks(noise, n / 128, |noise, bytes, values| {
        let (bits, d) = noise.half(4.0);
        bytes.extend(bits.to_le_bytes());
        for _ in 0..16 {
            let byte = noise.bits() as u8;
            bytes.push(byte);
            values.extend((0..8).map(|i| if byte >> i & 1 == 1 { d } else { -d }));
        }
    })
}

/// `Q2_0`: `group` weights; f16 scale, two bits each, lowest first, `(code - 1) * d`, never 3.
pub fn q2_0(noise: &mut Noise, n: usize, group: usize) -> Made {
    blocks(noise, n / group, |noise, bytes, values| {
        let (bits, d) = noise.half(4.0);
        bytes.extend(bits.to_le_bytes());
        for _ in 0..group / 4 {
            let codes: [u8; 4] = std::array::from_fn(|_| (noise.bits() % 3) as u8);
            bytes.push(codes[0] | codes[1] << 2 | codes[2] << 4 | codes[3] << 6);
            values.extend(codes.map(|c| (f64::from(c) - 1.0) * d));
        }
    })
}

/// `Q4_0`: 32 weights; f16 scale, 16 bytes; weight `i` is the low nibble of byte `i`, weight `16 + i` the high one.
pub fn q4_0(noise: &mut Noise, n: usize) -> Made {
    blocks(noise, n / 32, |noise, bytes, values| {
        let (bits, d) = noise.half(1.0);
        bytes.extend(bits.to_le_bytes());
        let raw: [u8; 16] = std::array::from_fn(|_| noise.bits() as u8);
        bytes.extend(raw);
        values.extend(raw.map(|b| (f64::from(b & 15) - 8.0) * d));
        values.extend(raw.map(|b| (f64::from(b >> 4) - 8.0) * d));
    })
}

/// `Q4_1`: 32 weights; f16 scale, f16 offset, 16 bytes; nibbles as in `Q4_0`, from 0 on.
pub fn q4_1(noise: &mut Noise, n: usize) -> Made {
    blocks(noise, n / 32, |noise, bytes, values| {
        let ((bits, d), (offset_bits, offset)) = (noise.half(0.125), noise.half(1.0));
        bytes.extend(bits.to_le_bytes());
        bytes.extend(offset_bits.to_le_bytes());
        let raw: [u8; 16] = std::array::from_fn(|_| noise.bits() as u8);
        bytes.extend(raw);
        values.extend(raw.map(|b| f64::from(b & 15) * d + offset));
        values.extend(raw.map(|b| f64::from(b >> 4) * d + offset));
    })
}

/// `Q8_0`: 32 weights; f16 scale, 32 signed bytes.
pub fn q8_0(noise: &mut Noise, n: usize) -> Made {
    blocks(noise, n / 32, |noise, bytes, values| {
        let (bits, d) = noise.half(0.0625);
        bytes.extend(bits.to_le_bytes());
        let raw: [u8; 32] = std::array::from_fn(|_| noise.bits() as u8);
        bytes.extend(raw);
        values.extend(raw.map(|b| f64::from(b as i8) * d));
    })
}

/// `Q6_K`: 256 weights; 128 bytes of low nibbles, 64 bytes of upper pairs, 16 signed scales, f16 scale. In each half of 128,
/// weight `32 k + i` has its low bits in byte `i + 32 (k mod 2)`, nibble `k / 2`, and its upper bits in byte `i`, pair `k`.
pub fn q6_k(noise: &mut Noise, n: usize) -> Made {
    blocks(noise, n / 256, |noise, bytes, values| {
        let mut raw: Vec<u8> = (0..208).map(|_| noise.bits() as u8).collect();
        let (bits, d) = noise.half(0.00390625);
        for half in 0..2 {
            for k in 0..4 {
                for i in 0..32 {
                    let low = raw[64 * half + i + 32 * (k % 2)] >> (4 * (k / 2)) & 15;
                    let high = raw[128 + 32 * half + i] >> (2 * k) & 3;
                    let scale = raw[192 + 8 * half + 2 * k + i / 16] as i8;
                    values.push(d * f64::from(scale) * (f64::from(low | high << 4) - 32.0));
                }
            }
        }
        bytes.append(&mut raw);
        bytes.extend(bits.to_le_bytes());
    })
}

/// f32 numbers around zero, of deviation about `size / 2`.
pub fn f32s(noise: &mut Noise, n: usize, size: f64) -> Made {
    blocks(noise, n, |noise, bytes, values| {
        let v = (noise.unit() * size) as f32;
        bytes.extend(v.to_le_bytes());
        values.push(v.into());
    })
}

/// bf16 numbers around `middle`.
pub fn bf16s(noise: &mut Noise, n: usize, middle: f64, size: f64) -> Made {
    blocks(noise, n, |noise, bytes, values| {
        let bits = (((middle + noise.unit() * size) as f32).to_bits() >> 16) as u16;
        bytes.extend(bits.to_le_bytes());
        values.push(f32::from_bits(u32::from(bits) << 16).into());
    })
}

/// f16 numbers of either sign, from 1/64 to 1/2 of `size` in magnitude, a power of two.
pub fn f16s(noise: &mut Noise, n: usize, size: f64) -> Made {
    blocks(noise, n, |noise, bytes, values| {
        let octave = f64::from(1u32 << (noise.bits() % 5));
        let (bits, v) = noise.half(size * octave);
        let negative = noise.bits() & 1 == 1;
        bytes.extend((bits | u16::from(negative) << 15).to_le_bytes());
        values.push(if negative { -v } else { v });
    })
}

/// Trits, about a third of each.
pub fn trits(noise: &mut Noise, n: usize) -> Vec<i8> {
    (0..n).map(|_| (noise.bits() % 3) as i8 - 1).collect()
}

fn code(trit: i8) -> u8 {
    (trit + 1) as u8
}

/// Blocks of 256 trits with an f16 scale behind them. As ggml writes it, a block of zeros has the scale 0; the second block
/// is one.
fn tq(noise: &mut Noise, n: usize, scales: Scales, pack: impl Fn(&[i8], &mut Vec<u8>)) -> Made {
    let one = noise.half(4.0);
    let mut number = 0;
    blocks(noise, n / 256, |noise, bytes, values| {
        number += 1;
        let (d, t) = match (number, scales) {
            (2, _) => ((0, 0.0), vec![0; 256]),
            (_, Scales::One) => (one, trits(noise, 256)),
            (_, Scales::Each) => (noise.half(4.0), trits(noise, 256)),
        };
        pack(&t, bytes);
        bytes.extend(d.0.to_le_bytes());
        values.extend(t.iter().map(|t| f64::from(*t) * d.1));
    })
}

/// `TQ2_0`: each half of 128 trits in 32 bytes; byte `b` holds trits `b`, `32 + b`, `64 + b` and `96 + b`, lowest bits first.
pub fn tq2_0(noise: &mut Noise, n: usize, scales: Scales) -> Made {
    tq(noise, n, scales, |t, bytes| {
        for half in t.chunks(128) {
            bytes.extend((0..32).map(|b| (0..4).fold(0, |byte, k| byte | code(half[32 * k + b]) << (2 * k))));
        }
    })
}

/// `TQ1_0`: five trits a byte as digits of base 3, strides of 32 and then 16; the last sixteen are four a byte, stride 4.
pub fn tq1_0(noise: &mut Noise, n: usize, scales: Scales) -> Made {
    tq(noise, n, scales, |t, bytes| {
        for (from, stride, digits) in [(0, 32, 5), (160, 16, 5), (240, 4, 4)] {
            for b in 0..stride {
                let digit = |k: usize| u32::from(code(t[from + stride * k + b])) * 3u32.pow(4 - k as u32);
                let v: u32 = (0..digits).map(digit).sum();
                bytes.push((v * 256).div_ceil(243) as u8);
            }
        }
    })
}

/// `I2_S`: blocks of 128 trits of the flat tensor, 32 bytes each; byte `b` holds trits `b`, `32 + b`, `64 + b` and `96 + b`,
/// highest bits first. Then one f32 and what happens to stand in the 28 bytes of padding.
pub fn i2_s(trits: &[i8], scale: f32) -> Vec<u8> {
    i2_s_blocks(trits, scale, 32)
}

/// The same as bitnet.cpp writes it on ARM: blocks of 64 trits, 16 bytes each.
pub fn i2_s_arm(trits: &[i8], scale: f32) -> Vec<u8> {
    i2_s_blocks(trits, scale, 16)
}

fn i2_s_blocks(trits: &[i8], scale: f32, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for block in trits.chunks(4 * len) {
        bytes.extend(
            (0..len).map(|b| (0..4).fold(0, |byte, k| byte | code(block[len * k + b]) << (6 - 2 * k))),
        );
    }
    bytes.extend(scale.to_le_bytes());
    bytes.resize(bytes.len() + 28, 0xa5);
    bytes
}

/// Trits times one magnitude, stored as floats.
pub fn one_magnitude(noise: &mut Noise, n: usize, float: Float) -> Made {
    let (bits, d) = noise.half(4.0);
    let narrow = (d as f32).to_bits() >> 16;
    let (plus, minus, d) = match float {
        Float::F16 => (bits.to_le_bytes().to_vec(), (bits | 1 << 15).to_le_bytes().to_vec(), d),
        Float::BF16 => {
            let bits = narrow as u16;
            let d = f32::from_bits(narrow << 16);
            (bits.to_le_bytes().to_vec(), (bits | 1 << 15).to_le_bytes().to_vec(), d.into())
        }
        Float::F32 => {
            let d = d as f32 * 1.000_001;
            (d.to_le_bytes().to_vec(), (-d).to_le_bytes().to_vec(), d.into())
        }
    };
    blocks(noise, n, |noise, bytes, values| {
        let trit = trits(noise, 1)[0];
        match trit {
            0 => bytes.resize(bytes.len() + plus.len(), 0),
            t => bytes.extend(if t > 0 { &plus } else { &minus }),
        }
        values.push(f64::from(trit) * d);
    })
}

/// Absmean: trits and their scale.
pub fn absmean(values: &[f64]) -> Vec<f64> {
    let mean = (values.iter().map(|v| v.abs()).sum::<f64>() / values.len() as f64).max(1e-5);
    values.iter().map(|v| (v / mean).round_ties_even().clamp(-1.0, 1.0) * mean).collect()
}

/// Trits `[rows, cols]` as Hugging Face packs them: byte `[r, c]` holds rows `r + i * rows / 4` at bits `2 i`.
pub fn hf_packed(trits: &[i8], rows: usize, cols: usize) -> Vec<u8> {
    let at = |r: usize, c: usize| code(trits[r * cols + c]);
    let quarter = rows / 4;
    (0..quarter * cols)
        .map(|i| (0..4).fold(0, |b, part| b | at(part * quarter + i / cols, i % cols) << (2 * part)))
        .collect()
}
