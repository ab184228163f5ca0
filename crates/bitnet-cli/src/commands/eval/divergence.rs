//! What one row of logits says, alone and beside that of another model.

use std::thread;

/// The numbers of a row against the base's.
#[derive(Clone, Copy, Debug)]
pub struct Compared {
    /// Negative log-likelihoods of the token that follows.
    pub nll: f64,
    pub base_nll: f64,
    /// Kullback-Leibler divergence from the base, in nats.
    pub kld: f64,
    /// Whether both hold the same token for the likeliest.
    pub same_top: bool,
}

impl Compared {
    /// By how much the probability of the token that follows differs.
    pub fn difference(&self) -> f64 {
        (-self.nll).exp() - (-self.base_nll).exp()
    }
}

/// What the base says of a row.
#[derive(Clone, Copy)]
pub enum Base<'a> {
    Logits(&'a [f32]),
    /// A scale, the least log-probability, and how many scales each token's is above that.
    Stored((f32, f32, &'a [u8])),
}

/// Less likely than this in a file is as unlikely as it can say; llama.cpp leaves it out too.
const LEAST: f64 = -16.0;

/// Maps rows on several threads; the results are in their order.
pub fn rows<T: Send>(
    logits: &[f32],
    vocab: usize,
    threads: usize,
    of: impl Fn(usize, &[f32]) -> T + Sync,
) -> Vec<T> {
    let rows: Vec<(usize, &[f32])> = logits.chunks_exact(vocab).enumerate().collect();
    let share = rows.len().div_ceil(threads.max(1)).max(1);
    let work = |rows: &[(usize, &[f32])]| rows.iter().map(|(at, row)| of(*at, row)).collect::<Vec<T>>();
    thread::scope(|scope| {
        let work = &work;
        let handles: Vec<_> = rows.chunks(share).map(|rows| scope.spawn(move || work(rows))).collect();
        let join = |handle: thread::ScopedJoinHandle<'_, Vec<T>>| {
            handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        handles.into_iter().flat_map(join).collect()
    })
}

/// The logarithm of what makes a row's probabilities add up to one.
fn log_sum(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|v| f64::from(v - max).exp()).sum();
    f64::from(max) + sum.ln()
}

/// The negative log-likelihood of a token.
pub fn nll(logits: &[f32], id: u32) -> f64 {
    log_sum(logits) - f64::from(logits[id as usize])
}

/// Compares a row with the base's.
pub fn compare(logits: &[f32], base: Base<'_>, id: u32) -> Compared {
    let sum = log_sum(logits);
    let base_sum = match base {
        Base::Logits(logits) => log_sum(logits),
        Base::Stored(_) => 0.0,
    };
    let log = |at: usize| match base {
        Base::Logits(logits) => f64::from(logits[at]) - base_sum,
        Base::Stored((scale, least, steps)) => {
            let step = u16::from_le_bytes([steps[2 * at], steps[2 * at + 1]]);
            f64::from(scale) * f64::from(step) + f64::from(least)
        }
    };
    let floor = if matches!(base, Base::Stored(_)) { LEAST } else { f64::NEG_INFINITY };
    let (mut kld, mut top, mut base_top) = (0.0, 0, 0);
    let mut likeliest = f64::NEG_INFINITY;
    for (at, logit) in logits.iter().enumerate() {
        if *logit > logits[top] {
            top = at;
        }
        let p = log(at);
        if p > likeliest {
            (likeliest, base_top) = (p, at);
        }
        if p > floor {
            kld += p.exp() * (p - f64::from(*logit) + sum);
        }
    }
    let id = id as usize;
    Compared { nll: sum - f64::from(logits[id]), base_nll: -log(id), kld, same_top: top == base_top }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_no_distance_from_itself_and_some_from_another() {
        let (a, b) = ([0.5f32, -1.0, 3.0, 0.0], [0.0f32, 2.0, 1.0, -1.0]);
        let same = compare(&a, Base::Logits(&a), 1);
        assert!(same.kld.abs() < 1e-12 && same.same_top && same.nll == same.base_nll);
        let other = compare(&a, Base::Logits(&b), 1);
        // The definition, written out.
        let soft = |v: [f32; 4]| {
            let e = v.map(|x| f64::from(x).exp());
            e.map(|x| x / e.iter().sum::<f64>())
        };
        let (p, q) = (soft(b), soft(a));
        let want: f64 = (0..4).map(|i| p[i] * (p[i] / q[i]).ln()).sum();
        assert!((other.kld - want).abs() < 1e-12 && !other.same_top, "{other:?}");
        assert!((other.nll + q[1].ln()).abs() < 1e-12 && (other.difference() - (q[1] - p[1])).abs() < 1e-12);
    }

    #[test]
    fn rows_keep_their_order() {
        let logits: Vec<f32> = (0..21).map(|v| v as f32).collect();
        for threads in 1..9 {
            let got = rows(&logits, 3, threads, |at, row| (at, row[0]));
            assert_eq!(got, (0..7).map(|at| (at, 3.0 * at as f32)).collect::<Vec<_>>());
        }
    }
}
