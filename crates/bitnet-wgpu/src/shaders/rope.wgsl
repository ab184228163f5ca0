// Rules 8 and 12 of docs/numerics.md: rotates queries in place, and writes rotated keys and values of the step's tokens into
// the cache.

struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
}
var<immediate> p: Params;

// [m, (heads + 2 kv_heads) * head_dim]
@group(0) @binding(0) var<storage, read_write> qkv: array<f32>;
// [m, head_dim / 2]
@group(0) @binding(1) var<storage, read> cosines: array<f32>;
@group(0) @binding(2) var<storage, read> sines: array<f32>;
// For each token its position and where the blocks of its sequence begin; behind that, the blocks.
@group(0) @binding(3) var<storage, read> spans: array<u32>;
@group(0) @binding(4) var<storage, read_write> keys: array<u32>;
@group(0) @binding(5) var<storage, read_write> values: array<u32>;

// Element `e` of a head that begins at `at`.
fn rotated(token: u32, at: u32, e: u32) -> f32 {
    let half = p.head_dim / 2u;
    let pair = token * half + e % half;
    if e < half {
        return qkv[at + e] * cosines[pair] - qkv[at + e + half] * sines[pair];
    }
    return qkv[at + e] * cosines[pair] + qkv[at + e - half] * sines[pair];
}

@compute @workgroup_size(64)
fn append(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    let half = p.head_dim / 2u;
    let row = token * (p.heads + 2u * p.kv_heads) * p.head_dim;
    let queries = p.heads * half;
    let key_words = p.head_dim / KEY_VALUES;
    let value_words = p.head_dim / VALUE_VALUES;

    var i = id.x;
    if i < queries {
        let low = row + i / half * p.head_dim + i % half;
        let pair = token * half + i % half;
        let a = qkv[low];
        let b = qkv[low + half];
        qkv[low] = a * cosines[pair] - b * sines[pair];
        qkv[low + half] = b * cosines[pair] + a * sines[pair];
        return;
    }
    i -= queries;
    let position = spans[2u * token];
    let block = spans[spans[2u * token + 1u] + position / BLOCK];
    if i < p.kv_heads * key_words {
        let head = i / key_words;
        let word = i % key_words;
        let at = row + (p.heads + head) * p.head_dim;
        let e = word * KEY_VALUES;
        let pair = vec2(rotated(token, at, e), rotated(token, at, e + KEY_VALUES - 1u));
        keys[key_at(block * p.kv_heads + head, key_words, word, position)] = pack_key(pair);
        return;
    }
    i -= p.kv_heads * key_words;
    if i < p.kv_heads * value_words {
        let head = i / value_words;
        let word = i % value_words;
        let at = row + (p.heads + p.kv_heads + head) * p.head_dim + word * VALUE_VALUES;
        let pair = vec2(qkv[at], qkv[at + VALUE_VALUES - 1u]);
        values[value_at(block * p.kv_heads + head, value_words, word, position)] = pack_value(pair);
    }
}
