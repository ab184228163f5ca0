// Folds over the SIZE threads of a workgroup in the memory that they share: each step halves how many of them hold something. All threads
// call them together, each with its own value and number, and each of them once a workgroup: nobody waits until what it holds was read.

var<workgroup> numbers: array<f32, SIZE>;
var<workgroup> integers: array<i32, SIZE>;

fn largest_of(v: f32, i: u32) -> f32 {
    numbers[i] = v;
    workgroupBarrier();
    for (var width = SIZE / 2u; width > 0u; width /= 2u) {
        if i < width {
            numbers[i] = max(numbers[i], numbers[i + width]);
        }
        workgroupBarrier();
    }
    return numbers[0];
}

fn sum_of(v: i32, i: u32) -> i32 {
    integers[i] = v;
    workgroupBarrier();
    for (var width = SIZE / 2u; width > 0u; width /= 2u) {
        if i < width {
            integers[i] += integers[i + width];
        }
        workgroupBarrier();
    }
    return integers[0];
}
