//! GGUF and safetensors files made byte by byte, right or wrong: nothing in them is checked.

/// A GGUF file in the making.
#[derive(Clone, Default)]
pub struct Gguf {
    /// Keys and their values, as type and bytes.
    pub metadata: Vec<(String, Vec<u8>)>,
    /// The tensors.
    pub tensors: Vec<GgufTensor>,
}

/// A tensor of a GGUF file.
#[derive(Clone)]
pub struct GgufTensor {
    /// Its name.
    pub name: String,
    /// Rows first.
    pub shape: Vec<u64>,
    /// The number of its type.
    pub id: u32,
    /// Where it begins in the data; behind the one before it when `None`.
    pub offset: Option<u64>,
    /// Its bytes.
    pub data: Vec<u8>,
}

const ALIGNMENT: usize = 32;

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn typed(id: u32, value: &[u8]) -> Vec<u8> {
    [&id.to_le_bytes(), value].concat()
}

impl Gguf {
    /// Sets a key to a value of any type, given as the format's number and its bytes.
    pub fn set(&mut self, key: &str, id: u32, value: &[u8]) {
        let value = typed(id, value);
        match self.metadata.iter_mut().find(|(k, _)| k == key) {
            Some((_, old)) => *old = value,
            None => self.metadata.push((key.to_owned(), value)),
        }
    }

    /// Sets an unsigned number.
    pub fn set_u32(&mut self, key: &str, value: u32) {
        self.set(key, 4, &value.to_le_bytes());
    }

    /// Sets a float.
    pub fn set_f32(&mut self, key: &str, value: f32) {
        self.set(key, 6, &value.to_le_bytes());
    }

    /// Sets a string.
    pub fn set_str(&mut self, key: &str, value: &str) {
        self.set(key, 8, &string(value));
    }

    /// Sets a list of strings.
    pub fn set_strs(&mut self, key: &str, values: &[&str]) {
        let head = typed(8, &(values.len() as u64).to_le_bytes());
        let all = values.iter().fold(head, |all, v| [all, string(v)].concat());
        self.set(key, 9, &all);
    }

    /// Sets a list of signed numbers.
    pub fn set_i32s(&mut self, key: &str, values: &[i32]) {
        let head = typed(5, &(values.len() as u64).to_le_bytes());
        let all = values.iter().fold(head, |all, v| [all, v.to_le_bytes().to_vec()].concat());
        self.set(key, 9, &all);
    }

    /// Adds a tensor.
    pub fn tensor(&mut self, name: &str, shape: &[u64], id: u32, data: Vec<u8>) {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        self.tensors.push(GgufTensor { name, shape, id, offset: None, data });
    }

    /// The tensor of a name.
    pub fn get(&mut self, name: &str) -> &mut GgufTensor {
        self.tensors.iter_mut().find(|t| t.name == name).unwrap()
    }

    /// Without a tensor.
    pub fn remove(&mut self, name: &str) {
        self.get(name);
        self.tensors.retain(|t| t.name != name);
    }

    /// The file.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF\x03\0\0\0".to_vec();
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            out.extend(string(key));
            out.extend(value);
        }
        let mut data = Vec::new();
        for t in &self.tensors {
            out.extend(string(&t.name));
            out.extend((t.shape.len() as u32).to_le_bytes());
            t.shape.iter().rev().for_each(|dim| out.extend(dim.to_le_bytes()));
            out.extend(t.id.to_le_bytes());
            out.extend(t.offset.unwrap_or(data.len() as u64).to_le_bytes());
            data.extend(&t.data);
            data.resize(data.len().next_multiple_of(ALIGNMENT), 0);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
        [out, data].concat()
    }
}

/// A tensor of a safetensors file: name, type, shape, bytes.
pub type SafeTensor = (String, &'static str, Vec<usize>, Vec<u8>);

/// A safetensors file.
pub fn safetensors(tensors: &[SafeTensor]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let from = data.len();
        data.extend(bytes);
        let entry = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [from, data.len()]});
        header.insert(name.clone(), entry);
    }
    with_header(&serde_json::Value::Object(header).to_string(), &data)
}

/// A safetensors file of a header and data.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}
