//! The transformer in double precision, written from the papers' formulas, with no care for speed.

/// Matrix `[rows, cols]` of real weights.
#[derive(Clone, Debug)]
pub struct Mat {
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// Row-major.
    pub w: Vec<f64>,
    /// Whether the input is quantized to int8, token by token.
    pub int8: bool,
    /// The norm of the input, before that.
    pub norm: Option<Vec<f64>>,
}

/// A layer that sees the last positions only.
#[derive(Clone, Debug)]
pub struct Local {
    /// How many, its own among them.
    pub window: usize,
    /// Its frequencies, where they are others.
    pub frequencies: Option<Vec<f64>>,
}

/// The nonlinearity of the feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Act {
    Silu,
    Relu2,
    /// By the approximation with tanh.
    Gelu,
}

impl Act {
    fn of(self, g: f64) -> f64 {
        match self {
            Self::Silu => g / (1.0 + (-g).exp()),
            Self::Relu2 => g.max(0.0).powi(2),
            Self::Gelu => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (g + 0.044715 * g.powi(3));
                0.5 * g * (1.0 + inner.tanh())
            }
        }
    }
}

/// One layer.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "the names are those of the architecture")]
pub struct Layer {
    pub attn_norm: Vec<f64>,
    pub q: Mat,
    pub k: Mat,
    pub v: Mat,
    pub qk_norms: Option<(Vec<f64>, Vec<f64>)>,
    pub attn_sub_norm: Option<Vec<f64>>,
    pub o: Mat,
    pub attn_post_norm: Option<Vec<f64>>,
    pub local: Option<Local>,
    pub ffn_norm: Vec<f64>,
    pub gate: Mat,
    pub up: Mat,
    pub ffn_sub_norm: Option<Vec<f64>>,
    pub down: Mat,
    pub ffn_post_norm: Option<Vec<f64>>,
}

/// A model.
#[derive(Clone, Debug)]
pub struct Model {
    /// Attention heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Epsilon of every norm.
    pub eps: f64,
    /// Angle a position adds to each of the `head_dim / 2` pairs.
    pub frequencies: Vec<f64>,
    /// What cosines and sines are multiplied with.
    pub rotation: f64,
    /// The nonlinearity of the feed-forward block.
    pub act: Act,
    /// What the embedding is multiplied with.
    pub embedding_scale: f64,
    /// `[vocab, hidden]`.
    pub embedding: Mat,
    /// Layers.
    pub layers: Vec<Layer>,
    /// Before the head.
    pub final_norm: Vec<f64>,
    /// `[vocab, hidden]`; the embedding when `None`.
    pub head: Option<Mat>,
}

/// `theta^(-2i/d)`.
pub fn frequencies(theta: f64, head_dim: usize) -> Vec<f64> {
    (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect()
}

/// Llama 3.1's scaling: `factor`, `low_freq_factor`, `high_freq_factor`, `original_max_position_embeddings`.
pub fn llama3(frequencies: &[f64], factor: f64, low: f64, high: f64, original: f64) -> Vec<f64> {
    let scale = |f: f64| {
        let wavelength = 2.0 * std::f64::consts::PI / f;
        let smooth = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
        smooth * f + (1.0 - smooth) * f / factor
    };
    frequencies.iter().map(|f| scale(*f)).collect()
}

/// YaRN's frequencies, and what cosines and sines are multiplied with where nothing else is said: of the `d/2` pairs, those that turn
/// round 32 times within the original context stay, those that do not turn round once are divided, and between them the division
/// grows with the pair's number.
pub fn yarn(frequencies: &[f64], theta: f64, factor: f64, original: f64) -> (Vec<f64>, f64) {
    let d = 2.0 * frequencies.len() as f64;
    let pair = |turns: f64| d * (original / (turns * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln());
    let (low, high) = (pair(32.0).floor().max(0.0), pair(1.0).ceil().min(d - 1.0));
    let divided = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
    let scaled =
        frequencies.iter().enumerate().map(|(i, f)| f / factor * divided(i) + f * (1.0 - divided(i)));
    (scaled.collect(), 0.1 * factor.ln() + 1.0)
}

/// Logits, and the smallest distance of a quantized activation to a rounding boundary, in int8 steps.
#[derive(Clone, Debug)]
pub struct Output {
    /// `[tokens, vocab]`.
    pub logits: Vec<f32>,
    /// What goes into the head, `[tokens, hidden]`.
    pub hidden: Vec<f64>,
    /// Infinite when nothing is quantized.
    pub gap: f64,
}

/// Keys and values of a layer, position by position.
type Cache = (Vec<Vec<f64>>, Vec<Vec<f64>>);

impl Mat {
    fn apply(&self, x: &[f64], eps: f64, gap: &mut f64) -> Vec<f64> {
        assert_eq!(x.len(), self.cols);
        let normed = self.norm.as_ref().map(|w| rms_norm(x, w, eps));
        let x = normed.as_deref().unwrap_or(x);
        let (q, step) = match self.int8 {
            false => (x.to_vec(), 1.0),
            true => {
                let s = 127.0 / x.iter().fold(1e-5, |m: f64, v| m.max(v.abs()));
                for v in x {
                    *gap = gap.min(((v * s).abs().fract() - 0.5).abs());
                }
                (x.iter().map(|v| (v * s).round_ties_even().clamp(-128.0, 127.0)).collect(), 1.0 / s)
            }
        };
        self.w
            .chunks(self.cols)
            .map(|row| row.iter().zip(&q).map(|(w, q)| w * q).sum::<f64>() * step)
            .collect()
    }
}

fn rms_norm(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    assert_eq!(x.len(), w.len());
    let r = 1.0 / (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + eps).sqrt();
    x.iter().zip(w).map(|(v, w)| v * r * w).collect()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

impl Model {
    /// The forward pass.
    pub fn forward(&self, ids: &[u32]) -> Output {
        let mut gap = f64::INFINITY;
        let mut caches = vec![Cache::default(); self.layers.len()];
        let (mut logits, mut all) = (Vec::new(), Vec::new());
        for (position, id) in ids.iter().enumerate() {
            let hidden = self.embedding.cols;
            let row = &self.embedding.w[*id as usize * hidden..][..hidden];
            let mut h: Vec<f64> = row.iter().map(|v| v * self.embedding_scale).collect();
            for (layer, cache) in self.layers.iter().zip(&mut caches) {
                let x = rms_norm(&h, &layer.attn_norm, self.eps);
                let attended = self.attention(layer, &x, position, cache, &mut gap);
                let attended = match &layer.attn_sub_norm {
                    Some(w) => rms_norm(&attended, w, self.eps),
                    None => attended,
                };
                let attended = layer.o.apply(&attended, self.eps, &mut gap);
                add(&mut h, &self.normed(&layer.attn_post_norm, attended));
                let x = rms_norm(&h, &layer.ffn_norm, self.eps);
                let gate = layer.gate.apply(&x, self.eps, &mut gap);
                let up = layer.up.apply(&x, self.eps, &mut gap);
                let gated: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| self.act.of(*g) * u).collect();
                let gated = match &layer.ffn_sub_norm {
                    Some(w) => rms_norm(&gated, w, self.eps),
                    None => gated,
                };
                let gated = layer.down.apply(&gated, self.eps, &mut gap);
                add(&mut h, &self.normed(&layer.ffn_post_norm, gated));
            }
            let x = rms_norm(&h, &self.final_norm, self.eps);
            let row = self.head.as_ref().unwrap_or(&self.embedding).apply(&x, self.eps, &mut gap);
            logits.extend(row.iter().map(|v| *v as f32));
            all.extend(x);
        }
        Output { logits, hidden: all, gap }
    }

    fn normed(&self, w: &Option<Vec<f64>>, x: Vec<f64>) -> Vec<f64> {
        w.as_ref().map_or_else(|| x.clone(), |w| rms_norm(&x, w, self.eps))
    }

    fn attention(
        &self,
        layer: &Layer,
        x: &[f64],
        position: usize,
        (keys, values): &mut Cache,
        gap: &mut f64,
    ) -> Vec<f64> {
        let d = self.head_dim;
        let (mut q, mut k) = (layer.q.apply(x, self.eps, gap), layer.k.apply(x, self.eps, gap));
        if let Some((q_norm, k_norm)) = &layer.qk_norms {
            q = q.chunks(d).flat_map(|head| rms_norm(head, q_norm, self.eps)).collect();
            k = k.chunks(d).flat_map(|head| rms_norm(head, k_norm, self.eps)).collect();
        }
        let local = layer.local.as_ref();
        let frequencies = local.and_then(|l| l.frequencies.as_ref()).unwrap_or(&self.frequencies);
        for head in q.chunks_mut(d).chain(k.chunks_mut(d)) {
            for (i, f) in frequencies.iter().enumerate() {
                let (sin, cos) = (position as f64 * f).sin_cos();
                let (sin, cos) = (sin * self.rotation, cos * self.rotation);
                let (a, b) = (head[i], head[i + d / 2]);
                (head[i], head[i + d / 2]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
        keys.push(k);
        values.push(layer.v.apply(x, self.eps, gap));
        let first = local.map_or(0, |l| (position + 1).saturating_sub(l.window));
        let mut out = Vec::new();
        for (head, q) in q.chunks(d).enumerate() {
            let at = head / (self.heads / self.kv_heads) * d;
            let score = |k: &Vec<f64>| {
                q.iter().zip(&k[at..at + d]).map(|(q, k)| q * k).sum::<f64>() / (d as f64).sqrt()
            };
            let scores: Vec<f64> = keys[first..].iter().map(score).collect();
            let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - largest).exp()).collect();
            let total: f64 = weights.iter().sum();
            out.extend((0..d).map(|i| {
                weights.iter().zip(&values[first..]).map(|(w, v)| w * v[at + i]).sum::<f64>() / total
            }));
        }
        out
    }
}
