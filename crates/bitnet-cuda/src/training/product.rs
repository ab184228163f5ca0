//! Products: both sides are arranged for the kernel that multiplies, whatever they are of.

use super::stream::{Stream, bits};
use crate::driver::Function;
use crate::memory::Buffer;
use bitnet_core::{BackendError, DeviceSide, DeviceStore, DeviceValues, Factor, Product, Terms};

/// The most terms of a part of a sum of f32 (rule 18 of `docs/numerics.md`).
const DEPTH: usize = 4096;
/// Vectors are filled up to a multiple of the largest tile.
const WIDTH: usize = 128;
/// Vectors and terms that a block arranges.
const SQUARE: usize = 64;
/// Words of a vector that kernels for tensor cores multiply at a time, and with how many of room between them they are kept, how often.
const WORDS: usize = 16;
const PITCH: usize = WORDS + 4;
const STAGES: usize = 3;
/// Words of a part of a sum, at least, and parts, at most.
const PART: usize = 16 * WORDS;
const PARTS: usize = 16;
/// Terms of f32 that are multiplied at a time.
const CHAIN: usize = 16;
const THREADS: u32 = 256;

/// What kernels call how sides lie and what becomes of sums (`kernels/training_product.cu`).
const SIDE_COLUMNS: u64 = 4;
const STORE_ADDS: u64 = 4;
const STORE_GOES_ON: u64 = 8;

/// What a kernel multiplies.
#[derive(Clone, Copy)]
enum Form {
    Floats,
    /// Words of two bf16.
    Halves,
    /// Words of four integers.
    Integers,
}

/// A side of a product as kernels read it.
#[derive(Clone, Copy)]
struct Side {
    address: u64,
    stride: u64,
    how: u64,
    factors: u64,
    vectors: usize,
}

impl Side {
    fn new(s: &Stream, side: DeviceSide<'_>, vectors: usize, k: usize) -> Self {
        let DeviceSide { values, stride, columns, factors } = side;
        let (rows, cols) = if columns { (k, vectors) } else { (vectors, k) };
        let len = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols };
        let (kind, address) = match values {
            DeviceValues::F32(at) => (0, s.floats(at, len)),
            DeviceValues::I8(at) => (1, s.bytes(at.memory, at.first, len)),
            DeviceValues::Trits(at) => {
                assert!(stride.is_multiple_of(128), "rows of trits have a multiple of 128");
                (2, s.bytes(at.memory, at.first, len.div_ceil(4)))
            }
        };
        let how = kind | if columns { SIDE_COLUMNS } else { 0 };
        let factors = factors.map_or(0, |at| s.floats(at, k));
        Self { address, stride: stride as u64, how, factors, vectors }
    }

    /// How many vectors there is room for.
    fn width(&self) -> usize {
        self.vectors.next_multiple_of(WIDTH)
    }

    /// Terms `from..from + terms` as a kernel wants them: `[terms, width]` floats, or `[width, words]`.
    fn arrange(&self, s: &Stream, form: Form, from: usize, terms: usize) -> Option<Buffer> {
        let k = &s.kernels;
        let (kernel, row, len, squares) = match form {
            Form::Floats => (k.train_arrange_f32, self.width(), terms * self.width(), terms.div_ceil(SQUARE)),
            Form::Halves | Form::Integers => {
                let words = form.words(terms);
                let squares = words.div_ceil(SQUARE / form.in_a_word());
                let kernel = match form {
                    Form::Halves => k.train_arrange_bf16,
                    _ => k.train_arrange_i8,
                };
                (kernel, words, words * self.width(), squares)
            }
        };
        let piece = s.room(len * 4)?;
        let numbers = [self.vectors, from, terms].map(|n| n as u64);
        let params =
            [&[piece.address(), row as u64, self.address, self.stride, self.how, self.factors], &numbers[..]]
                .concat();
        s.run(kernel, [self.width() / SQUARE, squares, 1], THREADS, 0, &params);
        Some(piece)
    }
}

impl Form {
    fn in_a_word(self) -> usize {
        match self {
            Self::Floats => 1,
            Self::Halves => 2,
            Self::Integers => 4,
        }
    }

    /// Words of a vector of so many terms.
    fn words(self, terms: usize) -> usize {
        terms.div_ceil(self.in_a_word()).next_multiple_of(WORDS)
    }
}

/// What becomes of sums, as kernels are told it.
#[derive(Clone, Copy)]
struct Store {
    rows: u64,
    scale: u64,
    value: f32,
    how: u64,
}

impl Store {
    /// Sums are kept as they are.
    const PLAIN: Self = Self { rows: 0, scale: 0, value: 1.0, how: 0 };

    fn new(s: &Stream, store: DeviceStore<'_>, m: usize, n: usize) -> Self {
        let of = |scale: Factor<'_>| match scale {
            Factor::Value(value) => Self { value, ..Self::PLAIN },
            Factor::One(at) => Self { scale: s.floats(at, 1), how: 1, ..Self::PLAIN },
            Factor::Rows(at) => Self { scale: s.floats(at, m), how: 2, ..Self::PLAIN },
            Factor::Columns(at) => Self { scale: s.floats(at, n), how: 3, ..Self::PLAIN },
        };
        match store {
            DeviceStore::Set { rows, scale } => {
                Self { rows: rows.map_or(0, |at| s.floats(at, m)), ..of(scale) }
            }
            DeviceStore::Add { scale } => {
                let own = of(scale);
                Self { how: own.how | STORE_ADDS, ..own }
            }
            DeviceStore::Continue => Self { how: STORE_GOES_ON, ..Self::PLAIN },
        }
    }

    fn going_on(self, goes_on: bool) -> Self {
        Self { how: self.how | if goes_on { STORE_GOES_ON } else { 0 }, ..self }
    }
}

fn is_whole(side: &DeviceSide<'_>) -> bool {
    side.factors.is_none() && !matches!(side.values, DeviceValues::F32(_))
}

pub(super) fn product(s: &Stream, product: &Product<'_>) {
    let Product { terms, sizes: (m, n, k), a, b, store, c, stride, first } = *product;
    if m == 0 || n == 0 {
        return;
    }
    assert!(first + n <= stride, "columns that a product writes");
    let whole = is_whole(&a) && is_whole(&b);
    let most = if matches!(b.values, DeviceValues::Trits(_)) { 1 << 23 } else { (1 << 17) - 1 };
    if whole && k > most {
        return s.fail(BackendError::Unsupported {
            backend: "cuda",
            what: format!("a sum of {k} products of integers"),
            hint: "sums of fewer terms would fit 32 bits",
        });
    }
    let store = Store::new(s, store, m, n);
    let to = s.floats(c.skip(first), (m - 1) * stride + n);
    let (a, b) = (Side::new(s, a, m, k), Side::new(s, b, n, k));
    let multiply = Multiply { s, to, stride, sizes: (m, n), a, b };
    let adds = store.how & STORE_ADDS != 0;
    match terms {
        _ if k == 0 && (adds || store.how & STORE_GOES_ON != 0) => {}
        // Sums of nothing, whatever their factors are.
        _ if k == 0 => multiply.part(Form::Floats, 0, 0, Store::PLAIN),
        _ if whole => multiply.part(Form::Integers, 0, k, store),
        Terms::Bf16 => multiply.part(Form::Halves, 0, k, store),
        Terms::F32 => {
            for from in (0..k).step_by(DEPTH) {
                let count = DEPTH.min(k - from);
                // A sum that goes on is kept as it is.
                let own = if adds || from + count == k { store } else { Store::PLAIN };
                let goes_on = !adds && (from > 0 || store.how & STORE_GOES_ON != 0);
                multiply.part(Form::Floats, from, count, own.going_on(goes_on));
            }
        }
    }
}

/// Two sides and where their product goes.
struct Multiply<'a> {
    s: &'a Stream,
    to: u64,
    stride: usize,
    sizes: (usize, usize),
    a: Side,
    b: Side,
}

impl Multiply<'_> {
    fn part(&self, form: Form, from: usize, terms: usize, store: Store) {
        let s = self.s;
        let Some(a) = self.a.arrange(s, form, from, terms) else { return };
        let Some(b) = self.b.arrange(s, form, from, terms) else { return };
        let (a, b) = (a.address(), b.address());
        if let Form::Floats = form {
            let sizes = [self.a.width(), self.b.width(), terms].map(|n| n as u64);
            return self.run(form, 1, &[&[a, b], &sizes[..]].concat(), self.target(store));
        }
        let words = form.words(terms);
        let part = self.words_of_parts(form, words);
        let (parts, sides) = (words.div_ceil(part), [a, b, words as u64, part as u64]);
        if parts == 1 {
            return self.run(form, 1, &sides, self.target(store));
        }
        let (m, n) = self.sizes;
        let Some(sums) = s.room(parts * m * n * 4) else { return };
        let plain = Multiply { to: sums.address(), stride: n, ..*self }.target(Store::PLAIN);
        self.run(form, parts, &sides, plain);
        let params = [&[sums.address(), parts as u64], &self.target(store)[..]].concat();
        s.run_elements(s.kernels.train_product_parts, m * n, &params);
    }

    /// What kernels are told of where sums go.
    fn target(&self, store: Store) -> [u64; 8] {
        let (m, n) = self.sizes;
        let Store { rows, scale, value, how } = store;
        [self.to, self.stride as u64, m as u64, n as u64, rows, scale, bits(value), how]
    }

    fn run(&self, form: Form, parts: usize, sides: &[u64], target: [u64; 8]) {
        let ((m, n), (tile, kernel)) = (self.sizes, self.kernel(form));
        let shared = match form {
            Form::Floats => STAGES * CHAIN * 2 * tile,
            Form::Halves | Form::Integers => STAGES * 2 * tile * PITCH,
        };
        let grid = [m.div_ceil(tile), n.div_ceil(tile), parts];
        self.s.run(kernel, grid, THREADS, shared * 4, &[sides, &target].concat());
    }

    /// How many words of a vector each part of a sum has: long sums of bf16 are cut where tiles are fewer than multiprocessors. That is a matter
    /// of sizes and the device alone, and parts are added in their order.
    fn words_of_parts(&self, form: Form, words: usize) -> usize {
        let (m, n) = self.sizes;
        let tiles = m.div_ceil(WIDTH / 2) * n.div_ceil(WIDTH / 2);
        let parts = match form {
            Form::Halves => (2 * self.processors() / tiles).min(words / PART).clamp(1, PARTS),
            Form::Floats | Form::Integers => 1,
        };
        words.div_ceil(parts).next_multiple_of(WORDS)
    }

    fn processors(&self) -> usize {
        self.s.driver.details().processors as usize
    }

    /// Large tiles where every multiprocessor has one.
    fn kernel(&self, form: Form) -> (usize, Function) {
        let (k, (m, n)) = (&self.s.kernels, self.sizes);
        let (small, large) = match form {
            Form::Floats => (k.train_product_f32_64, k.train_product_f32_128),
            Form::Halves => (k.train_product_bf16_64, k.train_product_bf16_128),
            Form::Integers => (k.train_product_i8_64, k.train_product_i8_128),
        };
        let tiles = m.div_ceil(WIDTH) * n.div_ceil(WIDTH);
        if tiles < self.processors() { (WIDTH / 2, small) } else { (WIDTH, large) }
    }
}
