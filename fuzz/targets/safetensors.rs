//! Any bytes as a safetensors file: what is accepted has tensors as long as their shapes say.
#![no_main]

use bitnet_formats::{TensorType, safetensors_file};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fuzz_target!(|data: &[u8]| {
    let Ok(tensors) = safetensors_file::read(Path::new("fuzz"), &data.to_vec().into()) else { return };
    for t in tensors {
        let elements: usize = t.shape.iter().product();
        match t.ttype {
            TensorType::Dense(d) => assert_eq!(t.data.len(), elements * d.block().1),
            TensorType::U8 => assert_eq!(t.data.len(), elements),
            _ => {}
        }
    }
});
