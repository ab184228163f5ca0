// The same folds as fold/tree.wgsl, once a workgroup each: a subgroup folds what its threads have in one instruction, whatever its size, and one
// of them takes it to the others. The largest number and the sum of integers are the same in any order.

// A number's bits, in an order in which larger numbers have larger ones.
var<workgroup> largest_bits: atomic<u32>;
var<workgroup> sum: atomic<i32>;

fn largest_of(v: f32, i: u32) -> f32 {
    let bits = bitcast<u32>(subgroupMax(v));
    if subgroupBroadcastFirst(i) == i {
        atomicMax(&largest_bits, select(bits | 0x80000000u, ~bits, bits >= 0x80000000u));
    }
    workgroupBarrier();
    let most = atomicLoad(&largest_bits);
    return bitcast<f32>(select(~most, most & 0x7fffffffu, most >= 0x80000000u));
}

fn sum_of(v: i32, i: u32) -> i32 {
    let own = subgroupAdd(v);
    if subgroupBroadcastFirst(i) == i {
        atomicAdd(&sum, own);
    }
    workgroupBarrier();
    return atomicLoad(&sum);
}
