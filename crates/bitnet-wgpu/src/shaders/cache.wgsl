// Where the cache of a layer holds what, in words of KEY_VALUES or VALUE_VALUES neighbouring elements of a head.
//
// Keys: [block][head][word][position in the block], values: [block][head][position in the block][word]. Scores are computed by
// a thread a position, outputs by a thread a word: in both, neighbouring threads read neighbouring words.

const BLOCK = 64u;

fn key_at(head: u32, words: u32, word: u32, position: u32) -> u32 {
    return (head * words + word) * BLOCK + position % BLOCK;
}

fn value_at(head: u32, words: u32, word: u32, position: u32) -> u32 {
    return (head * BLOCK + position % BLOCK) * words + word;
}

// Rounds to half precision, ties to even; what is beyond its range saturates. WGSL leaves the direction of its own open.
fn to_f16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = min(bits & 0x7fffffffu, 0x477fe000u);
    if magnitude < 0x38800000u {
        // Below the smallest normal number: so many of 2^-24, as the sum with 0.5 rounds them.
        return sign | (bitcast<u32>(bitcast<f32>(magnitude) + 0.5) - 0x3f000000u);
    }
    return sign | ((magnitude + 0xfffu + ((magnitude >> 13u) & 1u) - 0x38000000u) >> 13u);
}

fn pack_f16(pair: vec2<f32>) -> u32 {
    return to_f16(pair.x) | (to_f16(pair.y) << 16u);
}

fn unpack_f16(word: u32) -> vec2<f32> {
    return unpack2x16float(word);
}

// The upper half of a single, rounded, ties to even.
fn to_bf16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

fn pack_bf16(pair: vec2<f32>) -> u32 {
    return to_bf16(pair.x) | (to_bf16(pair.y) << 16u);
}

fn unpack_bf16(word: u32) -> vec2<f32> {
    return vec2(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

// One value a word.
fn pack_f32(pair: vec2<f32>) -> u32 {
    return bitcast<u32>(pair.x);
}

fn unpack_f32(word: u32) -> vec2<f32> {
    return vec2(bitcast<f32>(word), 0.0);
}
