//! The graph of a model in ONNX: one pass over a whole sequence, from ids to logits.
//!
//! Activations are quantized as BitNet's are and products with trits are products of integers, so that they are as exact as
//! ours; floats are summed in the runtime's own order. Tensors have their Hugging Face names and shapes, and the transpositions
//! that products need are operations of the graph, which runtimes carry out once.

use crate::plan::{Make, Plan, Source};
use bitnet_core::{Activation, DenseType};
use bitnet_formats::TensorType;
use bitnet_formats::onnx::{Attribute, Graph, Node, Value};
use bitnet_formats::safetensors_file::TensorInfo;
use bitnet_model::Role;
use bitnet_quant::spec;
use std::collections::HashSet;

/// Makes the graph of a model; it refers to the tensors of the plan by name.
pub(crate) fn graph(source: &Source<'_>, plan: &Plan) -> Graph {
    let mut b = Builder { graph: Graph::default(), source, plan, count: 0, known: HashSet::new() };
    b.model();
    b.graph
}

struct Builder<'a> {
    graph: Graph,
    source: &'a Source<'a>,
    plan: &'a Plan,
    /// Names given so far.
    count: usize,
    /// Constants that are there.
    known: HashSet<String>,
}

impl Builder<'_> {
    /// One operation with one result, whose name is returned.
    fn op(&mut self, op: &'static str, inputs: &[&str]) -> String {
        self.with(op, inputs, vec![])
    }

    fn with(
        &mut self,
        op: &'static str,
        inputs: &[&str],
        attributes: Vec<(&'static str, Attribute)>,
    ) -> String {
        self.count += 1;
        let name = format!("{}_{}", op.to_lowercase(), self.count);
        self.node(op, inputs, vec![name.clone()], attributes);
        name
    }

    fn node(
        &mut self,
        op: &'static str,
        inputs: &[&str],
        outputs: Vec<String>,
        attributes: Vec<(&'static str, Attribute)>,
    ) {
        let inputs = inputs.iter().map(|s| (*s).to_owned()).collect();
        self.graph.nodes.push(Node { op, inputs, outputs, attributes });
    }

    fn constant(&mut self, name: String, dtype: &'static str, shape: Vec<usize>, bytes: Vec<u8>) -> String {
        if self.known.insert(name.clone()) {
            self.graph.constants.push((TensorInfo { name: name.clone(), dtype, shape }, bytes));
        }
        name
    }

    fn float(&mut self, value: f32) -> String {
        self.constant(format!("f32_{value:e}"), "F32", vec![], value.to_le_bytes().into())
    }

    fn ints(&mut self, values: &[i64]) -> String {
        let shown = values.iter().map(i64::to_string).collect::<Vec<_>>().join("_");
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(format!("i64_{shown}"), "I64", vec![values.len()], bytes)
    }

    fn int(&mut self, value: i64) -> String {
        self.constant(format!("scalar_i64_{value}"), "I64", vec![], value.to_le_bytes().into())
    }

    fn cast(&mut self, x: &str, to: i64) -> String {
        self.with("Cast", &[x], vec![("to", Attribute::Int(to))])
    }

    fn transposed(&mut self, x: &str, order: &[i64]) -> String {
        self.with("Transpose", &[x], vec![("perm", Attribute::Ints(order.into()))])
    }

    fn reshaped(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.op("Reshape", &[x, &shape])
    }

    fn unsqueezed(&mut self, x: &str, axis: i64) -> String {
        let axes = self.ints(&[axis]);
        self.op("Unsqueeze", &[x, &axes])
    }

    /// A reduction over the last dimension, which stays as one element.
    fn reduced(&mut self, op: &'static str, x: &str) -> String {
        self.with(op, &[x], vec![("axes", Attribute::Ints(vec![-1])), ("keepdims", Attribute::Int(1))])
    }

    fn name(&self, role: Role, layer: usize) -> String {
        self.plan.arch.tensor_name(role, layer)
    }

    /// A tensor of the plan in f32.
    fn stored(&mut self, role: Role, layer: usize) -> String {
        let name = self.name(role, layer);
        let piece = self.plan.pieces.iter().find(|p| p.name == name);
        match piece.map(|p| p.ttype) {
            Some(TensorType::Dense(DenseType::F32)) => name,
            _ => self.cast(&name, F32),
        }
    }

    fn norm(&mut self, x: &str, role: Role, layer: usize) -> String {
        let weight = self.stored(role, layer);
        let eps = self.float(self.source.config.eps);
        let squares = self.op("Mul", &[x, x]);
        let mean = self.reduced("ReduceMean", &squares);
        let sum = self.op("Add", &[&mean, &eps]);
        let root = self.op("Sqrt", &[&sum]);
        let scaled = self.op("Div", &[x, &root]);
        self.op("Mul", &[&scaled, &weight])
    }

    /// Activations in int8, and what turns a product of them back.
    fn quantized(&mut self, x: &str) -> (String, String) {
        let (floor, top) = (self.float(1e-5), self.float(127.0));
        let (low, one) = (self.float(-128.0), self.float(1.0));
        let magnitudes = self.op("Abs", &[x]);
        let largest = self.reduced("ReduceMax", &magnitudes);
        let largest = self.op("Max", &[&largest, &floor]);
        let scale = self.op("Div", &[&top, &largest]);
        let scaled = self.op("Mul", &[x, &scale]);
        let rounded = self.op("Round", &[&scaled]);
        let within = self.op("Clip", &[&rounded, &low, &top]);
        let q = self.cast(&within, I8);
        (q, self.op("Div", &[&one, &scale]))
    }

    /// A projection of activations that are quantized already; `x` is what they were.
    fn linear(&mut self, (q, back): &(String, String), x: &str, role: Role, layer: usize) -> String {
        let name = self.name(role, layer);
        let job = self.plan.jobs.iter().find(|j| j.slot.role == role && j.slot.layer == layer);
        if let Some(Make::Real(_)) = job.map(|j| &j.make) {
            let weight = self.stored(role, layer);
            let weight = self.transposed(&weight, &[1, 0]);
            return self.op("MatMul", &[x, &weight]);
        }
        let weight = self.transposed(&name, &[1, 0]);
        let product = self.op("MatMulInteger", &[q, &weight]);
        let product = self.cast(&product, F32);
        let scale = self.op("Mul", &[back, &format!("{name}_scale")]);
        self.op("Mul", &[&product, &scale])
    }

    fn model(&mut self) {
        let c = self.source.config;
        let dims = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        self.graph.inputs.push(Value { name: "input_ids", dtype: "I64", dims: dims(&["batch", "sequence"]) });
        let vocab = c.vocab.to_string();
        self.graph.outputs.push(Value {
            name: "logits",
            dtype: "F32",
            dims: dims(&["batch", "sequence", &vocab]),
        });
        let embedding = self.name(Role::Embedding, 0);
        let rows = self.op("Gather", &[&embedding, "input_ids"]);
        let stored = self.plan.pieces.iter().find(|p| p.name == embedding).map(|p| p.ttype);
        let mut h = match stored {
            Some(TensorType::Dense(DenseType::F32)) => rows,
            _ => self.cast(&rows, F32),
        };
        let (rotation, mask) = self.positions();
        for layer in 0..c.layers {
            let x = self.norm(&h, Role::AttnNorm, layer);
            let attention = self.attention(&x, layer, &rotation, &mask);
            h = self.op("Add", &[&h, &attention]);
            let x = self.norm(&h, Role::FfnNorm, layer);
            let ffn = self.ffn(&x, layer);
            h = self.op("Add", &[&h, &ffn]);
        }
        let x = self.norm(&h, Role::FinalNorm, 0);
        let head = if self.source.tensors.own_head() { Role::Head } else { Role::Embedding };
        let table = self.stored(head, 0);
        let table = self.transposed(&table, &[1, 0]);
        self.node("MatMul", &[&x, &table], vec!["logits".to_owned()], vec![]);
    }

    /// Cosines and sines of the sequence's positions, and what is added to scores of later ones.
    fn positions(&mut self) -> ([String; 2], String) {
        let c = self.source.config;
        let (mut cos, mut sin) = (Vec::new(), Vec::new());
        let (inverse, factor) = (c.inverse_frequencies(), c.rope.attention_factor());
        (0..c.context as u32).for_each(|p| spec::rope_angles(p, &inverse, factor, &mut cos, &mut sin));
        let (zero, last, one) = (self.ints(&[0]), self.ints(&[1]), self.int(1));
        let shape = self.op("Shape", &["input_ids"]);
        let length = self.op("Gather", &[&shape, &one]);
        let end = self.op("Unsqueeze", &[&length, &zero]);
        let tables = [("cosines", cos), ("sines", sin)].map(|(name, values)| {
            let bytes = values.iter().flat_map(|v: &f32| v.to_le_bytes()).collect();
            let table = self.constant(name.to_owned(), "F32", vec![c.context, inverse.len()], bytes);
            self.op("Slice", &[&table, &zero, &end, &zero, &last])
        });
        let start = self.int(0);
        let positions = self.op("Range", &[&start, &length, &one]);
        let (queries, keys) = (self.unsqueezed(&positions, 1), self.unsqueezed(&positions, 0));
        let seen = self.op("GreaterOrEqual", &[&queries, &keys]);
        let (nothing, never) = (self.float(0.0), self.float(f32::MIN));
        (tables, self.op("Where", &[&seen, &nothing, &never]))
    }

    /// Heads of queries, keys or values, `[batch, key heads, queries of each, sequence, head size]`.
    fn heads(&mut self, x: &str, groups: usize, norm: Option<(Role, usize)>) -> String {
        let s = self.source.config.shape;
        let mut x = self.reshaped(x, &[0, 0, s.kv_heads as i64, groups as i64, s.head_dim as i64]);
        if let Some((role, layer)) = norm {
            x = self.norm(&x, role, layer);
        }
        self.transposed(&x, &[0, 2, 3, 1, 4])
    }

    fn rotated(&mut self, x: &str, [cos, sin]: &[String; 2]) -> String {
        self.count += 1;
        let halves = [format!("low_{}", self.count), format!("high_{}", self.count)];
        self.node("Split", &[x], halves.to_vec(), vec![("axis", Attribute::Int(-1))]);
        let [a, b] = halves;
        let (ac, bs) = (self.op("Mul", &[&a, cos]), self.op("Mul", &[&b, sin]));
        let (bc, a_s) = (self.op("Mul", &[&b, cos]), self.op("Mul", &[&a, sin]));
        let (low, high) = (self.op("Sub", &[&ac, &bs]), self.op("Add", &[&bc, &a_s]));
        self.with("Concat", &[&low, &high], vec![("axis", Attribute::Int(-1))])
    }

    fn attention(&mut self, x: &str, layer: usize, rotation: &[String; 2], mask: &str) -> String {
        let c = self.source.config;
        let s = c.shape;
        let norm = |role| c.arch.qk_norms.then_some((role, layer));
        let q = self.quantized(x);
        let [query, key, value] = [Role::Q, Role::K, Role::V].map(|role| self.linear(&q, x, role, layer));
        let query = self.heads(&query, s.heads / s.kv_heads, norm(Role::QNorm));
        let (key, value) = (self.heads(&key, 1, norm(Role::KNorm)), self.heads(&value, 1, None));
        let (query, key) = (self.rotated(&query, rotation), self.rotated(&key, rotation));
        let key = self.transposed(&key, &[0, 1, 2, 4, 3]);
        let scores = self.op("MatMul", &[&query, &key]);
        let scale = self.float(1.0 / (s.head_dim as f32).sqrt());
        let scores = self.op("Mul", &[&scores, &scale]);
        let scores = self.op("Add", &[&scores, mask]);
        let weights = self.with("Softmax", &[&scores], vec![("axis", Attribute::Int(-1))]);
        let heads = self.op("MatMul", &[&weights, &value]);
        let heads = self.transposed(&heads, &[0, 3, 1, 2, 4]);
        let mut heads = self.reshaped(&heads, &[0, 0, (s.heads * s.head_dim) as i64]);
        if c.arch.sub_norms {
            heads = self.norm(&heads, Role::AttnSubNorm, layer);
        }
        let q = self.quantized(&heads);
        self.linear(&q, &heads, Role::O, layer)
    }

    fn ffn(&mut self, x: &str, layer: usize) -> String {
        let c = self.source.config;
        let q = self.quantized(x);
        let [gate, up] = [Role::Gate, Role::Up].map(|role| self.linear(&q, x, role, layer));
        let open = match c.activation {
            Activation::Relu2 => {
                let open = self.op("Relu", &[&gate]);
                self.op("Mul", &[&open, &open])
            }
            Activation::Gelu => {
                let (cube, slope) = (self.float(spec::GELU_CUBE), self.float(spec::GELU_SLOPE));
                let square = self.op("Mul", &[&gate, &gate]);
                let factor = self.op("Mul", &[&square, &cube]);
                let bent = self.op("Mul", &[&factor, &gate]);
                let sum = self.op("Add", &[&bent, &gate]);
                let slope = self.op("Mul", &[&sum, &slope]);
                let open = self.op("Sigmoid", &[&slope]);
                self.op("Mul", &[&gate, &open])
            }
            Activation::Silu => {
                let open = self.op("Sigmoid", &[&gate]);
                self.op("Mul", &[&gate, &open])
            }
        };
        let mut hidden = self.op("Mul", &[&open, &up]);
        if c.arch.sub_norms {
            hidden = self.norm(&hidden, Role::FfnSubNorm, layer);
        }
        let q = self.quantized(&hidden);
        self.linear(&q, &hidden, Role::Down, layer)
    }
}

/// ONNX's numbers of element types.
const F32: i64 = 1;
const I8: i64 = 3;
