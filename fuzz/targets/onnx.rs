//! Any bytes as an ONNX file: what is accepted has tensors as long as their shapes say, in whatever order they lie.
#![no_main]

use bitnet_formats::{TensorType, onnx};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let Ok(found) = onnx::read(Path::new("fuzz/model.onnx"), &data.to_vec().into()) else { return };
    for t in found.model.iter().chain(&found.others) {
        assert_eq!(t.bytes().len(), t.data.len());
        let elements: usize = t.shape.iter().product();
        match t.ttype {
            TensorType::Dense(d) => assert_eq!(t.data.len(), elements * d.block().1),
            TensorType::U8 | TensorType::Ternary(_) => assert_eq!(t.data.len(), elements),
            TensorType::Tiled(..) | TensorType::Other(_) => {}
        }
    }
});
