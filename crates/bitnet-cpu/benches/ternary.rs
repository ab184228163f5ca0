//! Ternary products of every kernel at the shapes of BitNet b1.58 2B-4T: `cargo bench -p bitnet-cpu --bench ternary -- --help`.
//!
//! Kernels are measured in turn, round by round, so that a machine that drifts drifts for all of them; a probe that only
//! reads memory runs in every round. What is timed is the backend's whole product: activations quantized, weights multiplied,
//! sums rescaled.

use bitnet_core::{
    ActivationPrecision, Backend, DenseMatrix, DenseType, Matrix, Purpose, Scale, TernaryMatrix,
};
use bitnet_cpu::{CpuBackend, CpuOptions, CpuTensor, CpuWeight, Kernel, Roofline, memory};

use bitnet_memory::Profile;
use std::time::Instant;

const HELP: &str = "\
--kernels A,B     [all that run here]
--shapes NxK,...  [3840x2560,2560x2560,13824x2560,2560x6912]
--threads 1,2     [1,2]
--tokens 1,512    [1,512]; 1 is decoding, more is prefill
--rounds N        [5]
--mebibytes N     [512] weights that decoding rotates over; 0 keeps one matrix, as large as half of the second-level cache";

struct Arguments {
    kernels: Vec<Kernel>,
    shapes: Vec<(usize, usize)>,
    threads: Vec<usize>,
    tokens: Vec<usize>,
    rounds: usize,
    mebibytes: usize,
}

fn list<T: std::str::FromStr>(text: &str) -> Vec<T> {
    text.split(',').map(|t| t.parse().unwrap_or_else(|_| panic!("{t:?} is not understood\n{HELP}"))).collect()
}

fn arguments() -> Arguments {
    let mut a = Arguments {
        kernels: Kernel::available().collect(),
        shapes: vec![(3840, 2560), (2560, 2560), (13_824, 2560), (2560, 6912)],
        threads: vec![1, 2],
        tokens: vec![1, 512],
        rounds: 5,
        mebibytes: 512,
    };
    let mut args = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(name) = args.next() {
        let value = args.next().unwrap_or_else(|| panic!("{HELP}"));
        match name.as_str() {
            "--kernels" => a.kernels = list(&value),
            "--shapes" => {
                let shape = |s: &str| {
                    let (n, k) = s.split_once('x').unwrap_or_else(|| panic!("{HELP}"));
                    (list(n)[0], list(k)[0])
                };
                a.shapes = value.split(',').map(shape).collect();
            }
            "--threads" => a.threads = list(&value),
            "--tokens" => a.tokens = list(&value),
            "--rounds" => a.rounds = list(&value)[0],
            "--mebibytes" => a.mebibytes = list(&value)[0],
            _ => panic!("{HELP}"),
        }
    }
    a
}

/// Trits in a row of pseudo-random codes.
fn matrix(rows: usize, cols: usize) -> Matrix {
    let mut state = 1u32;
    let mut code = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8 % 3
    };
    let codes: Vec<u8> = (0..rows * TernaryMatrix::row_bytes(cols))
        .map(|_| code() | code() << 2 | code() << 4 | code() << 6)
        .collect();
    Matrix::Ternary(
        TernaryMatrix::new(rows, cols, codes.into(), Scale::Tensor(0.01)).expect("the shape is right"),
    )
}

/// Activations `[m, k]`, made by embedding rows of a matrix of floats.
fn input(backend: &CpuBackend, m: usize, k: usize) -> CpuTensor {
    let values = (0..m * k).map(|i| ((i * 7919) % 2003) as f32 / 1001.5 - 1.0);
    let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    let table =
        Matrix::Dense(DenseMatrix::new(m, k, DenseType::F32, bytes.into()).expect("the shape is right"));
    let table =
        backend.prepare(&[table], ActivationPrecision::Int8, Purpose::Product).expect("values are finite");
    let mut x = backend.tensor();
    backend.embed(&table, &(0..m as u32).collect::<Vec<_>>(), &mut x).expect("ids are rows");
    x
}

struct Case {
    name: &'static str,
    backend: CpuBackend,
    weights: Vec<CpuWeight>,
    /// Bytes of one product's weights.
    bytes: usize,
    rates: Vec<f64>,
}

fn spread(rates: &mut [f64]) -> (f64, f64, f64) {
    rates.sort_by(f64::total_cmp);
    (rates[rates.len() / 2], rates[0], rates[rates.len() - 1])
}

fn main() {
    let a = arguments();
    println!(
        "| tokens | shape | threads | kernel | weights/s, 1e9 | range | GB/s | share of the probe | GOPS |"
    );
    println!("|--:|---|--:|---|--:|---|--:|--:|--:|");
    for &m in &a.tokens {
        for &(n, k) in &a.shapes {
            // Without rotation a matrix that the second-level cache holds takes the place of the model's.
            let n = if a.mebibytes == 0 && m == 1 { (512 * 1024 * 4 / k) & !31 } else { n };
            let matrix = matrix(n, k);
            let copies = if m == 1 { ((a.mebibytes << 20) * 4 / (n * k)).max(1) } else { 1 };
            for &threads in &a.threads {
                measure(&a, &matrix, (m, n, k), copies, threads);
            }
        }
    }
}

fn measure(a: &Arguments, matrix: &Matrix, (m, n, k): (usize, usize, usize), copies: usize, threads: usize) {
    let probe = Roofline::new(threads, a.mebibytes << 20).expect("memory");
    let mut probes = Vec::new();
    // What one kernel's weights were is the next one's.
    let memory = memory(Profile::Inference.into());
    let mut cases: Vec<Case> = a
        .kernels
        .iter()
        .map(|kernel| {
            let options = CpuOptions {
                threads: Some(threads),
                kernel: Some(*kernel),
                memory: Some(memory.clone()),
                ..CpuOptions::default()
            };
            let backend = CpuBackend::new(options).unwrap_or_else(|e| panic!("{e}"));
            Case { name: kernel.name(), backend, weights: Vec::new(), bytes: 0, rates: Vec::new() }
        })
        .collect();
    for _ in 0..a.rounds {
        probes.push(probe.read_bytes());
        for case in &mut cases {
            let prepare = || {
                case.backend.prepare(
                    std::slice::from_ref(matrix),
                    ActivationPrecision::Int8,
                    Purpose::Product,
                )
            };
            case.weights.extend((case.weights.len()..copies).map(|_| prepare().expect("memory for weights")));
            case.bytes = case.backend.weight_bytes(&case.weights[0]).0;
            let x = input(&case.backend, m, k);
            let mut out = case.backend.tensor();
            case.backend.linear(&x, &case.weights[0], &mut out);
            let (begin, mut products) = (Instant::now(), 0);
            while products == 0 || begin.elapsed().as_secs_f64() < 0.12 {
                for w in &case.weights {
                    case.backend.linear(&x, w, &mut out);
                }
                products += copies;
            }
            case.rates.push((products * n * k) as f64 / begin.elapsed().as_secs_f64());
            if copies > 1 {
                case.weights.clear();
            }
        }
    }
    let (probe, low, high) = spread(&mut probes);
    if m == 1 {
        println!(
            "| {m} | {n}x{k} | {threads} | *probe* | | {:.1}-{:.1} | {:.1} | | |",
            low / 1e9,
            high / 1e9,
            probe / 1e9
        );
    }
    for case in &mut cases {
        let (rate, low, high) = spread(&mut case.rates);
        let bytes = rate * case.bytes as f64 / (n * k) as f64;
        println!(
            "| {m} | {n}x{k} | {threads} | {} | {:.1} | {:.1}-{:.1} | {:.1} | {:.0} % | {:.0} |",
            case.name,
            rate / 1e9,
            low / 1e9,
            high / 1e9,
            bytes / 1e9,
            bytes / probe * 100.0,
            rate * m as f64 * 2.0 / 1e9,
        );
    }
}
