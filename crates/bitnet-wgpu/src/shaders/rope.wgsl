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

// What a thread rounds.
var<private> run: array<f32, SCALE_BLOCK>;

// The scale of the first `n` elements of the run, and what they are multiplied by.
fn scale_of_run(n: u32) -> vec2<f32> {
    var most = 0.0;
    for (var e = 0u; e < n; e++) {
        most = max(most, abs(run[e]));
    }
    return q8_scale(most);
}

// The elements of the word that begins with `e`, multiplied; what a word of fewer has no place for is any.
fn of_run(e: u32, count: u32, factor: f32) -> vec4<f32> {
    let second = select(e, e + 1u, count > 1u);
    let third = select(e, e + 2u, count > 2u);
    let fourth = select(e, e + 3u, count > 2u);
    return vec4(run[e], run[second], run[third], run[fourth]) * factor;
}

@compute @workgroup_size(64)
fn append(@builtin(global_invocation_id) id: vec3<u32>) {
    let token = id.y;
    let half = p.head_dim / 2u;
    let row = token * (p.heads + 2u * p.kv_heads) * p.head_dim;
    let queries = p.heads * half;

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
    let key_runs = (p.head_dim + KEY_RUN - 1u) / KEY_RUN;
    if i < p.kv_heads * key_runs {
        let head = i / key_runs;
        let first = i % key_runs * KEY_RUN;
        let n = min(KEY_RUN, p.head_dim - first);
        for (var e = 0u; e < n; e++) {
            run[e] = rotated(token, row + (p.heads + head) * p.head_dim, first + e);
        }
        let place = block * p.kv_heads + head;
        var factor = 1.0;
        if KEY_SCALED {
            let scale = scale_of_run(n);
            factor = scale.y;
            let word = p.head_dim / KEY_VALUES + first / SCALE_BLOCK;
            keys[key_at(place, key_words(), word, position)] = bitcast<u32>(scale.x);
        }
        for (var e = 0u; e < n; e += KEY_VALUES) {
            let word = (first + e) / KEY_VALUES;
            keys[key_at(place, key_words(), word, position)] = pack_key(of_run(e, KEY_VALUES, factor));
        }
        return;
    }
    i -= p.kv_heads * key_runs;
    let value_runs = (p.head_dim + VALUE_RUN - 1u) / VALUE_RUN;
    if i < p.kv_heads * value_runs {
        let head = i / value_runs;
        let first = i % value_runs * VALUE_RUN;
        let n = min(VALUE_RUN, p.head_dim - first);
        for (var e = 0u; e < n; e++) {
            run[e] = qkv[row + (p.heads + p.kv_heads + head) * p.head_dim + first + e];
        }
        let place = block * p.kv_heads + head;
        var factor = 1.0;
        if VALUE_SCALED {
            let scale = scale_of_run(n);
            factor = scale.y;
            let word = p.head_dim / VALUE_VALUES + first / SCALE_BLOCK;
            values[value_at(place, value_words(), word, position)] = bitcast<u32>(scale.x);
        }
        for (var e = 0u; e < n; e += VALUE_VALUES) {
            let word = (first + e) / VALUE_VALUES;
            values[value_at(place, value_words(), word, position)] = pack_value(of_run(e, VALUE_VALUES, factor));
        }
    }
}
