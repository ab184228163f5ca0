// Rules 10 and 11 of docs/numerics.md: causal attention over the cache, by segments of 256 positions.

struct Params {
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    // The first token of this dispatch, and segments that the longest sequence has.
    token: u32,
    segments: u32,
    // Positions that a query sees, its own among them.
    window: u32,
    // 1 / sqrt(head_dim)
    scale: f32,
}
var<immediate> p: Params;

// [m, (heads + 2 kv_heads) * head_dim]
@group(0) @binding(0) var<storage, read> qkv: array<f32>;
// For each token its position and where the blocks of its sequence begin; behind that, the blocks.
@group(0) @binding(1) var<storage, read> spans: array<u32>;
@group(0) @binding(2) var<storage, read> keys: array<u32>;
@group(0) @binding(3) var<storage, read> values: array<u32>;
// Of each token of the dispatch, head and segment: the largest score, the sum of weights, and the output, [head_dim].
@group(0) @binding(4) var<storage, read_write> parts: array<f32>;

const SEGMENT = 256u;
// The score of a position that is not seen; less than any that is.
const UNSEEN = -3.4028234e38;

var<workgroup> query: array<f32, MAX_HEAD_DIM>;
var<workgroup> weights: array<f32, SEGMENT>;
var<workgroup> lanes: array<f32, 16>;

// A workgroup a segment, head and token.
@compute @workgroup_size(SIZE)
fn segment(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let token = p.token + group.z;
    let head = group.y;
    let kv_head = head / (p.heads / p.kv_heads);
    let key_elements = p.head_dim / KEY_VALUES;
    let value_elements = p.head_dim / VALUE_VALUES;
    let key_row = key_words();
    let value_row = value_words();

    let position = spans[2u * token];
    let table = spans[2u * token + 1u];
    let begin = group.x * SEGMENT;
    let seen = select(0u, position + 1u - p.window, position + 1u > p.window);
    let first = max(begin, seen);
    let end = min(begin + SEGMENT, position + 1u);

    let row = token * (p.heads + 2u * p.kv_heads) * p.head_dim + head * p.head_dim;
    for (var e = i; e < p.head_dim; e += SIZE) {
        query[e] = qkv[row + e];
    }
    workgroupBarrier();

    var most = UNSEEN;
    for (var j = i; j < SEGMENT; j += SIZE) {
        let at = begin + j;
        var score = UNSEEN;
        if at >= first && at < end {
            let block = spans[table + at / BLOCK] * p.kv_heads + kv_head;
            var sum = 0.0;
            var scale = 1.0;
            for (var word = 0u; word < key_elements; word++) {
                var key = unpack_key(keys[key_at(block, key_row, word, at)]);
                if KEY_SCALED {
                    if word * KEY_VALUES % SCALE_BLOCK == 0u {
                        let of_scale = key_elements + word * KEY_VALUES / SCALE_BLOCK;
                        scale = bitcast<f32>(keys[key_at(block, key_row, of_scale, at)]);
                    }
                    key *= scale;
                }
                let e = word * KEY_VALUES;
                sum = fma(query[e], key.x, sum);
                if KEY_VALUES > 1u {
                    sum = fma(query[e + 1u], key.y, sum);
                }
                if KEY_VALUES > 2u {
                    sum = fma(query[e + 2u], key.z, sum);
                    sum = fma(query[e + 3u], key.w, sum);
                }
            }
            score = sum * p.scale;
        }
        weights[j] = score;
        most = max(most, score);
    }
    let largest = largest_of(most, i);
    for (var j = i; j < SEGMENT; j += SIZE) {
        weights[j] = select(0.0, exponential(weights[j] - largest), begin + j >= first && begin + j < end);
    }
    workgroupBarrier();

    // L16 of the weights.
    if i < 16u {
        var sum = 0.0;
        for (var j = i; j < SEGMENT; j += 16u) {
            sum += weights[j];
        }
        lanes[i] = sum;
    }
    workgroupBarrier();
    for (var width = 8u; width > 0u; width /= 2u) {
        if i < width {
            lanes[i] += lanes[i + width];
        }
        workgroupBarrier();
    }

    let part = ((group.z * p.heads + head) * p.segments + group.x) * (p.head_dim + 2u);
    if i == 0u {
        parts[part] = largest;
        parts[part + 1u] = lanes[0];
    }
    for (var word = i; word < value_elements; word += SIZE) {
        var sum = vec4<f32>();
        for (var at = first; at < end; at++) {
            let block = spans[table + at / BLOCK] * p.kv_heads + kv_head;
            var value = unpack_value(values[value_at(block, value_row, word, at)]);
            if VALUE_SCALED {
                let of_scale = value_elements + word * VALUE_VALUES / SCALE_BLOCK;
                value *= bitcast<f32>(values[value_at(block, value_row, of_scale, at)]);
            }
            sum = fma(vec4(weights[at - begin]), value, sum);
        }
        let e = part + 2u + word * VALUE_VALUES;
        parts[e] = sum.x;
        if VALUE_VALUES > 1u {
            parts[e + 1u] = sum.y;
        }
        if VALUE_VALUES > 2u {
            parts[e + 2u] = sum.z;
            parts[e + 3u] = sum.w;
        }
    }
}
