// Cross-entropy of rows of logits and its gradient in their place, a workgroup a row.

struct Params {
    m: u32,
    vocab: u32,
    // Where operands begin.
    logits: u32,
    parts: u32,
}
var<immediate> p: Params;

// [m, vocab]
@group(0) @binding(0) var<storage, read_write> logits: array<f32>;
// [m, 3]: the largest logit, the sum of exp(logit - largest), the target's logit.
@group(0) @binding(1) var<storage, read_write> parts: array<f32>;
// [m]: targets, and the bits of weights.
@group(0) @binding(2) var<storage, read> targets: array<vec2<u32>>;

@compute @workgroup_size(SIZE)
fn cross_entropy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) i: u32,
) {
    let row = number(group, groups);
    if row >= p.m {
        return;
    }
    let at = p.logits + row * p.vocab;
    let wanted = targets[row].x;
    let weight = bitcast<f32>(targets[row].y);
    let logit = logits[at + wanted];
    var most = -3.4028234e38;
    for (var c = i; c < p.vocab; c += SIZE) {
        most = max(most, logits[at + c]);
    }
    most = largest(i, most);
    var sum = 0.0;
    for (var c = i; c < p.vocab; c += SIZE) {
        sum += exponential(logits[at + c] - most);
    }
    sum = total(i, sum);
    let factor = weight / sum;
    for (var c = i; c < p.vocab; c += SIZE) {
        let share = exponential(logits[at + c] - most) * factor;
        logits[at + c] = select(share, share - weight, c == wanted);
    }
    if i == 0u {
        parts[p.parts + 3u * row] = most;
        parts[p.parts + 3u * row + 1u] = sum;
        parts[p.parts + 3u * row + 2u] = logit;
    }
}
