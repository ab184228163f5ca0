//! Operations of training with the shapes of real models: microseconds, and operations a second.
//!
//! `cargo bench -p bitnet-cuda --bench training`, on a machine with an NVIDIA GPU. Each is asked for many times, and the median of several
//! rounds counts.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot be made ends the program")]

use bitnet_core::{
    At, AttentionShape, DeviceNorm, DeviceSide, DeviceStore, DeviceValues, Factor, Memory, Product,
    Sequences, Terms, TrainingDevice,
};
use bitnet_cuda::{CudaTraining, devices};
use bitnet_memory::Tag;
use std::ops::Range;
use std::time::Instant;

/// Tokens, output features and input features: a model of 12 million parameters, one of 700 million, one of two billion.
const SHAPES: [(usize, usize, usize); 6] = [
    (8192, 1152, 384),
    (8192, 384, 1024),
    (8192, 4096, 1536),
    (8192, 1536, 4096),
    (8192, 13_824, 2560),
    (8192, 2560, 6912),
];
/// Times that an operation is asked for in a round.
const TIMES: usize = 10;
const ROUNDS: usize = 7;

/// The median of what an operation takes, in seconds.
fn seconds(device: &dyn TrainingDevice, one: &Memory, operation: impl Fn()) -> f64 {
    let wait = || device.download(one, 0, &mut [0; 4]).unwrap();
    let mut rounds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            wait();
            let begin = Instant::now();
            (0..TIMES).for_each(|_| operation());
            wait();
            begin.elapsed().as_secs_f64() / TIMES as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

fn told(name: &str, seconds: f64, operations: f64) {
    println!("{name},{:.1},{:.1}", seconds * 1e6, operations / seconds / 1e12);
}

/// Memory of so many numbers, all of them small.
fn floats(device: &dyn TrainingDevice, len: usize) -> Memory {
    let memory = device.memory(len * 4, Tag::Activations).unwrap();
    device.fill(At::start(&memory), len, 0.01);
    memory
}

fn side(values: DeviceValues<'_>, stride: usize, columns: bool) -> DeviceSide<'_> {
    DeviceSide { values, stride, columns, factors: None }
}

/// The products of a linear layer: forward with integers, and both of the way back.
fn products(device: &dyn TrainingDevice, (m, n, k): (usize, usize, usize)) {
    let [x, w, y] = [m * k, n * k, m * n].map(|len| floats(device, len));
    let of = |memory| DeviceValues::F32(At::start(memory));
    let whole = |memory| DeviceValues::I8(At::start(memory));
    let operations = 2.0 * (m * n * k) as f64;
    let set = DeviceStore::Set { rows: None, scale: Factor::Value(1.0) };
    let add = DeviceStore::Add { scale: Factor::Value(1.0) };
    let ask = |name: &str, terms, sizes, a, b, store, c: &Memory, stride| {
        let product = Product { terms, sizes, a, b, store, c: At::start(c), stride, first: 0 };
        let seconds = seconds(device, c, || device.product(&product));
        told(&format!("{name} of {m} tokens from {k} to {n}"), seconds, operations);
    };
    let forward = (side(whole(&x), k, false), side(whole(&w), k, false));
    ask("forward int8", Terms::Bf16, (m, n, k), forward.0, forward.1, set, &y, n);
    for terms in [Terms::Bf16, Terms::F32] {
        let (inputs, weights) = (side(of(&y), n, false), side(of(&w), k, true));
        ask(&format!("gradient of inputs {terms:?}"), terms, (m, k, n), inputs, weights, set, &x, k);
        let (outputs, inputs) = (side(of(&y), n, true), side(of(&x), k, true));
        ask(&format!("gradient of weights {terms:?}"), terms, (n, k, m), outputs, inputs, add, &w, k);
    }
}

fn attention(device: &dyn TrainingDevice, shape: AttentionShape, length: usize) {
    let (rows, wide) = (8192, shape.heads * shape.head_dim);
    let spans: Vec<Range<usize>> = (0..rows).step_by(length).map(|from| from..from + length).collect();
    let [qkv, dqkv] = [0; 2].map(|_| floats(device, rows * shape.qkv_cols()));
    let [out, dout] = [0; 2].map(|_| floats(device, rows * wide));
    let sums = floats(device, rows * shape.heads * 2);
    let at = At::start;
    let sequences = Sequences { qkv: at(&qkv), rows, shape, spans: &spans };
    // Half of all pairs of positions, two products forward and five on the way back.
    let pairs = 2.0 * (rows * length / 2 * wide) as f64;
    let name = format!("of {} heads of {}, sequences of {length}", shape.heads, shape.head_dim);
    let time = seconds(device, &sums, || device.attend(sequences, at(&out), at(&sums)));
    told(&format!("attention {name}"), time, 2.0 * pairs);
    for terms in [Terms::Bf16, Terms::F32] {
        let time = seconds(device, &sums, || {
            device.attend_backward(sequences, (at(&out), at(&sums)), at(&dout), terms, at(&dqkv));
        });
        told(&format!("way back {terms:?} {name}"), time, 5.0 * pairs);
    }
}

fn rows(device: &dyn TrainingDevice, (m, n): (usize, usize)) {
    let [x, y, w, dw, d] = [m * n, m * n, n, n, m].map(|len| floats(device, len));
    let codes = device.memory(m * n, Tag::Activations).unwrap();
    let at = At::start;
    let norm = DeviceNorm { x: at(&x), w: at(&w), sizes: (m, n), eps: 1e-5 };
    let each = |name: &str, bytes: f64, operation: &dyn Fn()| {
        let seconds = seconds(device, &d, operation);
        let all = (m * n) as f64;
        println!("{name} of {m} x {n},{:.1},{:.0} GB/s", seconds * 1e6, all * bytes / seconds / 1e9);
    };
    each("norm", 8.0, &|| device.norm(norm, at(&y)));
    each("way back through a norm", 12.0, &|| {
        device.norm_backward(norm, at(&x), false, at(&y), Some(at(&dw)));
    });
    each("int8 activations", 5.0, &|| device.quantize(at(&x), (m, n), at(&codes), n, at(&d)));
    each("absmean", 9.0, &|| device.absmean(at(&x), (m, n), at(&codes), n, at(&d)));
}

fn main() {
    if let Err(why) = devices() {
        println!("not run: {why}");
        return;
    }
    let device = CudaTraining::new(0).unwrap();
    println!("operation,microseconds,teraops a second");
    SHAPES.iter().for_each(|shape| products(&device, *shape));
    let of = |heads, kv_heads, head_dim| AttentionShape { heads, kv_heads, head_dim };
    attention(&device, of(6, 6, 64), 512);
    attention(&device, of(20, 5, 128), 512);
    attention(&device, of(20, 5, 128), 2048);
    rows(&device, (8192, 2560));
    rows(&device, (13_824, 2560));
}
