// Where the cache of a layer holds what, in words of KEY_VALUES or VALUE_VALUES neighbouring elements of a head. Behind these, a head has
// the scales, f32, of 32 elements each, where its type has such.
//
// Keys: [block][head][word][position in the block], values: [block][head][position in the block][word]. Scores are computed by
// a thread a position, outputs by a thread a word: in both, neighbouring threads read neighbouring words.

const BLOCK = 64u;
// Elements that share a scale.
const SCALE_BLOCK = 32u;

// Words of a head.
fn key_words() -> u32 {
    return p.head_dim / KEY_VALUES + select(0u, (p.head_dim + SCALE_BLOCK - 1u) / SCALE_BLOCK, KEY_SCALED);
}

fn value_words() -> u32 {
    return p.head_dim / VALUE_VALUES + select(0u, (p.head_dim + SCALE_BLOCK - 1u) / SCALE_BLOCK, VALUE_SCALED);
}

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

fn pack_f16(four: vec4<f32>) -> u32 {
    return to_f16(four.x) | (to_f16(four.y) << 16u);
}

fn unpack_f16(word: u32) -> vec4<f32> {
    return vec4(unpack2x16float(word), 0.0, 0.0);
}

// The upper half of a single, rounded, ties to even.
fn to_bf16(x: f32) -> u32 {
    let bits = bitcast<u32>(x);
    return (bits + 0x7fffu + ((bits >> 16u) & 1u)) >> 16u;
}

fn pack_bf16(four: vec4<f32>) -> u32 {
    return to_bf16(four.x) | (to_bf16(four.y) << 16u);
}

fn unpack_bf16(word: u32) -> vec4<f32> {
    return vec4(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u), 0.0, 0.0);
}

// One value a word.
fn pack_f32(four: vec4<f32>) -> u32 {
    return bitcast<u32>(four.x);
}

fn unpack_f32(word: u32) -> vec4<f32> {
    return vec4(bitcast<f32>(word), 0.0, 0.0, 0.0);
}

// Four integers, of numbers that were divided by their scale.
fn pack_q8(four: vec4<f32>) -> u32 {
    return pack4xI8(vec4<i32>(clamp(round(four), vec4(-127.0), vec4(127.0))));
}

fn unpack_q8(word: u32) -> vec4<f32> {
    return vec4<f32>(unpack4xI8(word));
}

// The scale of numbers of which this is the largest magnitude, and what they are multiplied by: 0 where it is too small for a scale.
fn q8_scale(most: f32) -> vec2<f32> {
    let scale = unpack2x16float(to_f16(most / 127.0)).x;
    return vec2(scale, select(1.0 / scale, 0.0, scale == 0.0));
}
