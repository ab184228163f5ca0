// The way back through attention. Weights are computed again from what the way forward kept of each query; first those of 32 queries with all
// keys, for the queries' gradients, then those of 32 keys with all queries.

// [m, heads * head_dim]: gradients of what attention gave.
@group(0) @binding(2) var<storage, read> dout: array<f32>;
// [m, heads, 2]: the largest score of a query, and the sum of its weights.
@group(0) @binding(3) var<storage, read> sums: array<f32>;
// [m, heads]: what the scores of a query lose, the mean of its weights' gradients.
@group(0) @binding(4) var<storage, read> means: array<f32>;
// [m, (heads + 2 kv_heads) * head_dim]
@group(0) @binding(5) var<storage, read_write> result: array<f32>;

fn value(of_gradients: bool, at: u32) -> f32 {
    if of_gradients {
        return dout[at];
    }
    return qkv[at];
}

fn term(v: vec4<f32>) -> vec4<f32> {
    if BF16 {
        return vec4(rounded(v.x), rounded(v.y), rounded(v.z), rounded(v.w));
    }
    return v;
}

fn gradients(row: u32, end: u32, head: u32) -> Rows {
    let wide = p.heads * p.head_dim;
    return Rows(p.dout + row * wide + head * p.head_dim, wide, min(BLOCK, end - row), true);
}

// The largest score of a query, the sum of its weights, and the mean of their gradients.
fn of_query(row: u32, end: u32, head: u32) -> vec3<f32> {
    let at = min(row, end - 1u) * p.heads + head;
    return vec3(sums[p.sums + 2u * at], sums[p.sums + 2u * at + 1u], means[at]);
}

@compute @workgroup_size(64)
fn of_queries(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let block = blocks[group.x];
    let head = group.y;
    let kv_head = head / (p.heads / p.kv_heads);
    let column = group.z * CHUNK;
    let q = queries(block.z, block.y, head);
    let dq = gradients(block.z, block.y, head);
    let row = block.z + i / 8u * 4u;
    let query = vec4(row) + vec4(0u, 1u, 2u, 3u);
    let a = of_query(row, block.y, head);
    let b = of_query(row + 1u, block.y, head);
    let c = of_query(row + 2u, block.y, head);
    let d = of_query(row + 3u, block.y, head);
    let most = vec4(a.x, b.x, c.x, d.x);
    let total = vec4(a.y, b.y, c.y, d.y);
    let mean = vec4(a.z, b.z, c.z, d.z);
    var own_low = mat4x4<f32>();
    var own_high = mat4x4<f32>();
    for (var first = block.x; first <= block.z; first += BLOCK) {
        let k = keys(first, block.y, kv_head);
        multiply(q, k, i, false);
        let key = first + i % 8u * 4u;
        let wa = select(vec4(0.0), exponentials(dots[0] * p.scale - most) / total, vec4(key) <= query);
        let wb = select(vec4(0.0), exponentials(dots[1] * p.scale - most) / total, vec4(key + 1u) <= query);
        let wc = select(vec4(0.0), exponentials(dots[2] * p.scale - most) / total, vec4(key + 2u) <= query);
        let wd = select(vec4(0.0), exponentials(dots[3] * p.scale - most) / total, vec4(key + 3u) <= query);
        multiply(dq, values(first, block.y, kv_head), i, BF16);
        keep(
            i,
            term(wa * (dots[0] - mean) * p.scale),
            term(wb * (dots[1] - mean) * p.scale),
            term(wc * (dots[2] - mean) * p.scale),
            term(wd * (dots[3] - mean) * p.scale),
        );
        weigh(k, column, i, BF16);
        own_low += low;
        own_high += high;
    }
    let to = Rows(p.dqkv + block.z * row_width() + head * p.head_dim, row_width(), q.count, false);
    store(to, column, i, own_low, own_high);
}

@compute @workgroup_size(64)
fn of_keys(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let block = blocks[group.x];
    let kv_head = group.y;
    let share = p.heads / p.kv_heads;
    let column = group.z * CHUNK;
    let k = keys(block.z, block.y, kv_head);
    let v = values(block.z, block.y, kv_head);
    let key = vec4(block.z + i / 8u * 4u) + vec4(0u, 1u, 2u, 3u);
    var k_low = mat4x4<f32>();
    var k_high = mat4x4<f32>();
    var v_low = mat4x4<f32>();
    var v_high = mat4x4<f32>();
    for (var head = kv_head * share; head < (kv_head + 1u) * share; head++) {
        for (var first = block.z; first < block.y; first += BLOCK) {
            let q = queries(first, block.y, head);
            let dq = gradients(first, block.y, head);
            let row = first + i % 8u * 4u;
            let a = of_query(row, block.y, head);
            let b = of_query(row + 1u, block.y, head);
            let c = of_query(row + 2u, block.y, head);
            let d = of_query(row + 3u, block.y, head);
            multiply(k, q, i, false);
            // Rows behind the sequence see every key, but what they would give is zeros times these.
            let wa = select(vec4(0.0), exponentials(dots[0] * p.scale - a.x) / a.y, key <= vec4(row));
            let wb = select(vec4(0.0), exponentials(dots[1] * p.scale - b.x) / b.y, key <= vec4(row + 1u));
            let wc = select(vec4(0.0), exponentials(dots[2] * p.scale - c.x) / c.y, key <= vec4(row + 2u));
            let wd = select(vec4(0.0), exponentials(dots[3] * p.scale - d.x) / d.y, key <= vec4(row + 3u));
            keep(i, term(wa), term(wb), term(wc), term(wd));
            weigh(dq, column, i, BF16);
            v_low += low;
            v_high += high;
            multiply(v, dq, i, BF16);
            keep(
                i,
                term(wa * (dots[0] - a.z) * p.scale),
                term(wb * (dots[1] - b.z) * p.scale),
                term(wc * (dots[2] - c.z) * p.scale),
                term(wd * (dots[3] - d.z) * p.scale),
            );
            weigh(q, column, i, BF16);
            k_low += low;
            k_high += high;
        }
    }
    let width = row_width();
    let at = p.dqkv + block.z * width + (p.heads + kv_head) * p.head_dim;
    store(Rows(at, width, k.count, false), column, i, k_low, k_high);
    store(Rows(at + p.kv_heads * p.head_dim, width, k.count, false), column, i, v_low, v_high);
}
