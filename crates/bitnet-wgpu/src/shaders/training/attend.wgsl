// Rules 10 and 11 of docs/numerics.md: causal attention of whole sequences, queries on the left and keys on the right. What goes before is
// rescaled whenever a larger score is met.

// [m, heads * head_dim]
@group(0) @binding(2) var<storage, read_write> result: array<f32>;
// [m, heads, 2]: the largest score of a query, and the sum of its weights.
@group(0) @binding(3) var<storage, read_write> sums: array<f32>;

// The score of a position that is not seen; less than any that is.
const UNSEEN = -3.4028234e38;
var<workgroup> lanes: array<vec4<f32>, 64>;

fn value(of_gradients: bool, at: u32) -> f32 {
    return qkv[at];
}

@compute @workgroup_size(64)
fn attend(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let block = blocks[group.x];
    let head = group.y;
    let kv_head = head / (p.heads / p.kv_heads);
    let column = group.z * CHUNK;
    let q = queries(block.z, block.y, head);
    let query = vec4(block.z + i / 8u * 4u) + vec4(0u, 1u, 2u, 3u);
    var most = vec4(UNSEEN);
    var total = vec4(0.0);
    var own_low = mat4x4<f32>();
    var own_high = mat4x4<f32>();
    for (var first = block.x; first <= block.z; first += BLOCK) {
        multiply(q, keys(first, block.y, kv_head), i, false);
        let key = first + i % 8u * 4u;
        let a = select(vec4(UNSEEN), dots[0] * p.scale, vec4(key) <= query);
        let b = select(vec4(UNSEEN), dots[1] * p.scale, vec4(key + 1u) <= query);
        let c = select(vec4(UNSEEN), dots[2] * p.scale, vec4(key + 2u) <= query);
        let d = select(vec4(UNSEEN), dots[3] * p.scale, vec4(key + 3u) <= query);
        lanes[i] = max(max(a, b), max(c, d));
        workgroupBarrier();
        var larger = most;
        for (var j = 0u; j < 8u; j++) {
            larger = max(larger, lanes[i / 8u * 8u + j]);
        }
        let shrink = exponentials(most - larger);
        most = larger;
        let wa = select(vec4(0.0), exponentials(a - most), vec4(key) <= query);
        let wb = select(vec4(0.0), exponentials(b - most), vec4(key + 1u) <= query);
        let wc = select(vec4(0.0), exponentials(c - most), vec4(key + 2u) <= query);
        let wd = select(vec4(0.0), exponentials(d - most), vec4(key + 3u) <= query);
        total = total * shrink + ((wa + wb) + (wc + wd));
        keep(i, wa, wb, wc, wd);
        weigh(values(first, block.y, kv_head), column, i, false);
        own_low = mat4x4(
            own_low[0] * shrink.x + low[0],
            own_low[1] * shrink.y + low[1],
            own_low[2] * shrink.z + low[2],
            own_low[3] * shrink.w + low[3],
        );
        own_high = mat4x4(
            own_high[0] * shrink.x + high[0],
            own_high[1] * shrink.y + high[1],
            own_high[2] * shrink.z + high[2],
            own_high[3] * shrink.w + high[3],
        );
    }
    lanes[i] = total;
    workgroupBarrier();
    total = vec4(0.0);
    for (var j = 0u; j < 8u; j++) {
        total += lanes[i / 8u * 8u + j];
    }
    let wide = p.heads * p.head_dim;
    let to = Rows(p.out + block.z * wide + head * p.head_dim, wide, q.count, false);
    own_low = mat4x4(own_low[0] / total.x, own_low[1] / total.y, own_low[2] / total.z, own_low[3] / total.w);
    own_high = mat4x4(own_high[0] / total.x, own_high[1] / total.y, own_high[2] / total.z, own_high[3] / total.w);
    store(to, column, i, own_low, own_high);
    if group.z == 0u && i % 8u == 0u {
        keep_sums(head, block.y, query.x, most.x, total.x);
        keep_sums(head, block.y, query.y, most.y, total.y);
        keep_sums(head, block.y, query.z, most.z, total.z);
        keep_sums(head, block.y, query.w, most.w, total.w);
    }
}

fn keep_sums(head: u32, end: u32, row: u32, most: f32, total: f32) {
    if row < end {
        let at = p.sums + 2u * (row * p.heads + head);
        sums[at] = most;
        sums[at + 1u] = total;
    }
}
