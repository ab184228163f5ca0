// The k largest of a token's numbers, of equal ones those of the lower ids, in no order: a workgroup finds those of RUN numbers, and what all
// have found are the numbers of the next dispatch, until one workgroup is enough. `pair(token, at)`, an id and the bits of its number, comes
// with the source.
//
// Numbers have one order, of 64 bits, in which no two are alike. Digits of eight bits are decided one after the other: the digit of the k-th is
// where the count of those with a larger one, and with the same digits before it, passes k. Integers are counted, so nothing depends
// on who comes first.

struct Params {
    // Numbers of a token, and from where one token's begin to where the next one's do.
    n: u32,
    stride: u32,
    // How many are looked for, and pairs that a token has room for in `found`.
    k: u32,
    room: u32,
    // Ids that are wanted besides.
    besides: u32,
}
var<immediate> p: Params;

// [m, stride]
@group(0) @binding(0) var<storage, read> logits: array<f32>;
// [m, stride], in the place of logits.
@group(0) @binding(0) var<storage, read> pairs: array<vec2<u32>>;
// [m, room]
@group(0) @binding(1) var<storage, read_write> found: array<vec2<u32>>;
// [m, besides]
@group(0) @binding(2) var<storage, read> ids: array<u32>;

const SIZE = 256u;

// How many numbers have a digit.
var<workgroup> counts: array<atomic<u32>, SIZE>;
var<workgroup> sums: array<u32, SIZE>;
// The digits of the k-th that are decided.
var<workgroup> least: vec2<u32>;
// How many are wanted of those that have these digits, and whether that is all of them.
var<workgroup> wanted: u32;
var<workgroup> decided: u32;
var<workgroup> places: atomic<u32>;

// Larger numbers first, both zeros alike, then lower ids.
fn order(pair: vec2<u32>) -> vec2<u32> {
    let bits = select(pair.y, 0u, pair.y == 0x80000000u);
    return vec2(select(bits | 0x80000000u, ~bits, bits >= 0x80000000u), ~pair.x);
}

// A digit of the upper or of the lower word where it belongs.
fn placed(digit: u32, at: u32) -> vec2<u32> {
    let word = digit << (24u - 8u * (at % 4u));
    return select(vec2(0u, word), vec2(word, 0u), at < 4u);
}

@compute @workgroup_size(SIZE)
fn largest(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) i: u32) {
    let token = group.y;
    let begin = group.x * RUN;
    let end = min(begin + RUN, p.n);
    if i == 0u {
        wanted = min(p.k, end - begin);
    }
    var mask = vec2<u32>();
    for (var digit = 0u; digit < 8u; digit++) {
        atomicStore(&counts[i], 0u);
        workgroupBarrier();
        for (var at = begin + i; at < end; at += SIZE) {
            let own = order(pair(token, at));
            if all((own & mask) == least) {
                let word = select(own.y, own.x, digit < 4u);
                atomicAdd(&counts[(word >> (24u - 8u * (digit % 4u))) & 0xffu], 1u);
            }
        }
        workgroupBarrier();
        // Thread i has the i-th digit from above, and counts those down to it.
        let count = atomicLoad(&counts[SIZE - 1u - i]);
        sums[i] = count;
        workgroupBarrier();
        for (var width = 1u; width < SIZE; width *= 2u) {
            var before = 0u;
            if i >= width {
                before = sums[i - width];
            }
            workgroupBarrier();
            sums[i] += before;
            workgroupBarrier();
        }
        let rest = wanted;
        workgroupBarrier();
        if sums[i] >= rest && sums[i] - count < rest {
            least |= placed(SIZE - 1u - i, digit);
            wanted = rest - (sums[i] - count);
            decided = select(0u, 1u, sums[i] == rest);
        }
        mask |= placed(0xffu, digit);
        if workgroupUniformLoad(&decided) == 1u {
            break;
        }
    }
    let first = token * p.room + group.x * p.k;
    for (var at = begin + i; at < end; at += SIZE) {
        let own = pair(token, at);
        let digits = order(own) & mask;
        if digits.x > least.x || (digits.x == least.x && digits.y >= least.y) {
            found[first + atomicAdd(&places, 1u)] = own;
        }
    }
}

// Those that are wanted besides, behind the k largest.
@compute @workgroup_size(64)
fn besides(@builtin(global_invocation_id) at: vec3<u32>) {
    if at.x < p.besides {
        let id = ids[at.y * p.besides + at.x];
        found[at.y * p.room + p.k + at.x] = vec2(id, bitcast<u32>(logits[at.y * p.stride + id]));
    }
}
