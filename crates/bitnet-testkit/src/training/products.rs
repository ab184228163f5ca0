//! Products: either side as rows or as columns, of every type, and all that becomes of sums.

use super::{Asked, LEAD, LEAD_BYTES, bytes, floats, read};
use bitnet_core::{
    At, DeviceSide, DeviceStore, DeviceValues, Factor, Memory, Product, Terms, TrainingDevice,
};

/// What a side is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    F32,
    I8,
    Trits,
}

/// Numbers of a side as they are uploaded.
enum Made {
    F32(Vec<f32>),
    Bytes(Vec<u8>),
}

/// A matrix that is stored, and how vectors lie in it.
struct Stored {
    kind: Kind,
    made: Made,
    stride: usize,
    columns: bool,
    factors: Option<Vec<f32>>,
}

/// A side on a device.
struct Held {
    values: Memory,
    factors: Option<Memory>,
}

impl Stored {
    fn upload(&self, device: &dyn TrainingDevice) -> Held {
        let values = match &self.made {
            Made::F32(values) => floats(device, values),
            Made::Bytes(values) => bytes(device, values),
        };
        Held { values, factors: self.factors.as_ref().map(|factors| floats(device, factors)) }
    }

    fn side<'a>(&self, held: &'a Held) -> DeviceSide<'a> {
        let at = |first| At { memory: &held.values, first };
        DeviceSide {
            values: match self.kind {
                Kind::F32 => DeviceValues::F32(at(LEAD)),
                Kind::I8 => DeviceValues::I8(at(LEAD_BYTES)),
                Kind::Trits => DeviceValues::Trits(at(LEAD_BYTES)),
            },
            stride: self.stride,
            columns: self.columns,
            factors: held.factors.as_ref().map(|memory| At { memory, first: LEAD }),
        }
    }
}

/// What becomes of sums, by number.
const STORES: usize = 8;

fn store(which: usize, [one, rows, columns]: [&Memory; 3]) -> DeviceStore<'_> {
    let at = |memory| At { memory, first: LEAD };
    match which {
        0 => DeviceStore::Set { rows: None, scale: Factor::Value(1.0) },
        1 => DeviceStore::Set { rows: Some(at(rows)), scale: Factor::Value(0.3) },
        2 => DeviceStore::Set { rows: Some(at(rows)), scale: Factor::One(at(one)) },
        3 => DeviceStore::Set { rows: Some(at(rows)), scale: Factor::Columns(at(columns)) },
        4 => DeviceStore::Set { rows: None, scale: Factor::Rows(at(rows)) },
        5 => DeviceStore::Add { scale: Factor::One(at(one)) },
        6 => DeviceStore::Add { scale: Factor::Value(-0.7) },
        _ => DeviceStore::Continue,
    }
}

impl Asked<'_> {
    fn stored(&mut self, kind: Kind, vectors: usize, k: usize, columns: bool, scaled: bool) -> Stored {
        let (rows, cols) = if columns { (k, vectors) } else { (vectors, k) };
        let stride = match kind {
            Kind::F32 => cols + 3,
            Kind::I8 => cols.next_multiple_of(16) + 16,
            Kind::Trits => cols.next_multiple_of(128),
        };
        let len = rows * stride;
        let made = match kind {
            Kind::F32 => Made::F32(self.floats(len, 2.0)),
            Kind::I8 => Made::Bytes((0..len).map(|_| self.noise.bits() as u8).collect()),
            Kind::Trits => {
                let mut four = || (0..4).fold(0, |byte, i| byte | (self.noise.below(3) as u8) << (2 * i));
                Made::Bytes((0..len / 4).map(|_| four()).collect())
            }
        };
        let factors = scaled.then(|| self.floats(k, 1.0));
        Stored { kind, made, stride, columns, factors }
    }

    /// A product of these sides.
    fn product(&mut self, terms: Terms, (m, n, k): (usize, usize, usize), a: &Stored, b: &Stored, to: usize) {
        let whole = [a, b].iter().all(|side| side.kind != Kind::F32 && side.factors.is_none());
        let near = match terms {
            // The scale is one multiplication more, which is everywhere the same.
            _ if whole => 0.0,
            Terms::F32 => self.near.products,
            Terms::Bf16 => self.near.products_bf16,
        };
        // Columns of `c` before and behind those that are written.
        let (stride, first) = (n + 4, 1);
        let whole_before: Vec<f32> = (0..m * stride).map(|_| self.noise.below(100) as f32).collect();
        let before = if whole { whole_before } else { self.floats(m * stride, 1.0) };
        let (one, rows, columns) = (self.floats(1, 2.0), self.floats(m, 1.0), self.floats(n, 1.0));
        let of = |side: &Stored| {
            format!(
                "{:?}{}{}",
                side.kind,
                ["", " columns"][usize::from(side.columns)],
                ["", " scaled"][usize::from(side.factors.is_some())]
            )
        };
        let name = format!("product {terms:?} of {m} {n} {k}, {} with {}, stored by way {to}", of(a), of(b));
        self.case(&name, near, &|device| {
            let (x, y, c) = (a.upload(device), b.upload(device), floats(device, &before));
            let held = [&one, &rows, &columns].map(|values| floats(device, values));
            device.product(&Product {
                terms,
                sizes: (m, n, k),
                a: a.side(&x),
                b: b.side(&y),
                store: store(to, held.each_ref()),
                c: At { memory: &c, first: LEAD },
                stride,
                first,
            });
            vec![read(device, &c)]
        });
    }

    pub(super) fn products(&mut self) {
        let mut to = 0;
        for terms in [Terms::F32, Terms::Bf16] {
            // Every pair of types and layouts.
            let sizes = (37, 50, 70);
            for (a, b) in [
                (Kind::F32, Kind::F32),
                (Kind::F32, Kind::I8),
                (Kind::F32, Kind::Trits),
                (Kind::I8, Kind::F32),
            ] {
                for which in 0..4 {
                    let scaled = (to % 3 == 1, to % 3 == 2 || to % 5 == 0);
                    let a = self.stored(a, sizes.0, sizes.2, which % 2 == 1, scaled.0);
                    let b = self.stored(b, sizes.1, sizes.2, which / 2 == 1, scaled.1);
                    self.product(terms, sizes, &a, &b, to % STORES);
                    to += 1;
                }
            }
            // Integers with factors are no integers.
            let a = self.stored(Kind::I8, 5, 70, false, true);
            let b = self.stored(Kind::Trits, 6, 70, false, false);
            self.product(terms, (5, 6, 70), &a, &b, 0);
            // Sizes: none, one, tiles and more, long sums in parts.
            let sizes = [
                (1, 1, 1),
                (0, 3, 4),
                (3, 0, 4),
                (1, 200, 33),
                (130, 2, 16),
                (129, 140, 40),
                (3, 5, 4200),
                (2, 3, 8201),
            ];
            for sizes in sizes {
                for store in [0, 1, 5, 7] {
                    let a = self.stored(Kind::F32, sizes.0, sizes.2, store == 5, false);
                    let b = self.stored(Kind::F32, sizes.1, sizes.2, store == 1, sizes.2 > 4096);
                    self.product(terms, sizes, &a, &b, store);
                }
            }
            for store in 0..STORES {
                let (a, b) =
                    (self.stored(Kind::F32, 4, 0, false, false), self.stored(Kind::F32, 5, 0, true, false));
                self.product(terms, (4, 5, 0), &a, &b, store);
            }
            self.large(terms);
        }
        self.rounding();
    }

    /// So many rows or columns that a device with large tiles takes them.
    fn large(&mut self, terms: Terms) {
        for (m, n) in [(17_000, 3), (3, 17_000)] {
            let sizes = (m, n, 20);
            for (kind, right) in [(Kind::F32, Kind::F32), (Kind::I8, Kind::I8)] {
                let a = self.stored(kind, m, 20, false, false);
                let b = self.stored(right, n, 20, false, false);
                self.product(terms, sizes, &a, &b, 1);
            }
        }
    }

    /// Terms of bf16 are rounded to nearest even, and tiny ones are zero: sums of one term show it.
    fn rounding(&mut self) {
        let values = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 1e-15, -8e-16, 3.333_333, -0.1, 1e20, 0.0];
        self.case("terms of bf16", 0.0, &|device| {
            let (x, y) = (floats(device, &values), floats(device, &[1.0]));
            let c = floats(device, &[0.0; 8]);
            let side = |memory, k| DeviceSide {
                values: DeviceValues::F32(At { memory, first: LEAD }),
                stride: k,
                columns: false,
                factors: None,
            };
            device.product(&Product {
                terms: Terms::Bf16,
                sizes: (8, 1, 1),
                a: side(&x, 1),
                b: side(&y, 1),
                store: DeviceStore::Set { rows: None, scale: Factor::Value(1.0) },
                c: At { memory: &c, first: LEAD },
                stride: 1,
                first: 0,
            });
            vec![read(device, &c)]
        });
    }

    pub(super) fn integers(&mut self) {
        let mut to = 0;
        for terms in [Terms::F32, Terms::Bf16] {
            for sizes in [(1, 1, 1), (37, 50, 70), (130, 65, 200), (3, 150, 4200), (2, 3, 33_000)] {
                for b in [Kind::I8, Kind::Trits] {
                    for columns in [false, true] {
                        let a = self.stored(Kind::I8, sizes.0, sizes.2, columns && to % 2 == 0, false);
                        let b = self.stored(b, sizes.1, sizes.2, columns, false);
                        // Sums that are added to are below 2^24, so that it does not matter when.
                        let store = if sizes.2 > 200 { to % 5 } else { to % STORES };
                        self.product(terms, sizes, &a, &b, store);
                        to += 1;
                    }
                }
            }
            let a = self.stored(Kind::I8, 4, 0, false, false);
            let b = self.stored(Kind::Trits, 5, 0, false, false);
            self.product(terms, (4, 5, 0), &a, &b, 0);
        }
    }
}
