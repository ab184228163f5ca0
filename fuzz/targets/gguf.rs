//! Any bytes as a GGUF file: what is accepted has tensors as long as their shapes say, none over another; then the
//! configuration in it is read.
#![no_main]

use bitnet_formats::{TensorType, gguf};
use bitnet_model::ModelConfig;
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let Ok(checkpoint) = gguf::read(Path::new("fuzz"), data.to_vec().into()) else { return };
    let mut places = Vec::new();
    for t in checkpoint.tensors() {
        let cols = *t.shape.last().expect("a tensor has dimensions");
        let rows: usize = t.shape[..t.shape.len() - 1].iter().product();
        match t.ttype {
            TensorType::Dense(d) => assert_eq!(Some(t.data.len()), d.row_bytes(cols).map(|b| b * rows)),
            TensorType::Ternary(p) => assert_eq!(Some(t.data.len()), (p.bytes)(rows, cols)),
            _ => {}
        }
        places.push((t.bytes().as_ptr() as usize, t.data.len()));
    }
    places.sort();
    assert!(places.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "tensors overlap");
    let _ = ModelConfig::read(&checkpoint);
});
