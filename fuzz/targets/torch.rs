//! Any bytes as a PyTorch file, and as the pickle in one: what is accepted has tensors as long as their shapes say, in
//! whatever order they lie.
#![no_main]

use bitnet_formats::{Tensor, TensorType, torch};
use libfuzzer_sys::fuzz_target;
use std::path::Path;

fn check(tensors: &[Tensor]) {
    for t in tensors {
        assert_eq!(t.bytes().len(), t.data.len());
        let elements: usize = t.shape.iter().product();
        match t.ttype {
            TensorType::Dense(d) => assert_eq!(t.data.len(), elements * d.block().1),
            TensorType::U8 => assert_eq!(t.data.len(), elements),
            _ => {}
        }
    }
}

fuzz_target!(|data: &[u8]| {
    for bytes in [data.to_vec(), archive(data)] {
        if let Ok(found) = torch::read(Path::new("fuzz"), &bytes.into()) {
            check(&found.model);
            check(&found.others);
        }
    }
});

/// A zip archive with a pickle and two storages, one of them empty. Check sums are not looked at.
fn archive(pickle: &[u8]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in [("a/data.pkl", pickle), ("a/data/0", &[7; 64]), ("a/data/1", &[])] {
        let fields = |out: &mut Vec<u8>| {
            out.extend([0; 10]);
            out.extend([0; 4]);
            out.extend((data.len() as u32).to_le_bytes());
            out.extend((data.len() as u32).to_le_bytes());
            out.extend((name.len() as u16).to_le_bytes());
            out.extend([0; 2]);
        };
        directory.extend(*b"PK\x01\x02\0\0");
        let at = file.len() as u32;
        fields(&mut directory);
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
        file.extend(*b"PK\x03\x04");
        fields(&mut file);
        file.extend(name.as_bytes());
        file.extend(data);
    }
    let at = file.len() as u32;
    file.extend(&directory);
    file.extend(*b"PK\x05\x06\0\0\0\0\x03\0\x03\0");
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(at.to_le_bytes());
    file.extend([0; 2]);
    file
}
