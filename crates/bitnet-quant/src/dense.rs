//! Dense element and block types, dequantized.
