use super::*;

/// Blocks of any size are aligned, zero, and hold what is written.
fn check<S: Source<Block: HostBlock>>(source: &S) {
    for bytes in [1, 63, 64, 65, 4096, 4097, 100_000, 3 << 20] {
        let mut block = source.allocate(bytes).unwrap();
        assert!(block.len_bytes() >= bytes && block.len_bytes().is_multiple_of(source.granule()));
        assert_eq!(block.start().as_ptr().align_offset(ALIGN), 0);
        assert!(block.bytes().iter().all(|b| *b == 0));
        block.bytes_mut().fill(7);
        assert!(block.bytes().iter().all(|b| *b == 7));
    }
    assert!(source.allocate(usize::MAX).is_none() && source.allocate(1 << 60).is_none());
}

#[test]
fn blocks_are_what_the_trait_says() {
    check(&Heap);
    check(&Pages::default());
    check(&Pages { huge_from_bytes: usize::MAX });
    check(&Pages { huge_from_bytes: 0 });
    check(&Failing::nth(Heap, 1000));
    check(&Resident(Pages::default()));
    check(&Host::new(Heap));
    check(&Host::new(Pages::default()));
}

#[test]
fn pages_inside_a_range_go_back_and_are_zero() {
    let page = Pages::default().granule();
    let mut block = Pages::default().allocate(5 * page).unwrap();
    block.bytes_mut().fill(7);
    // SAFETY: nobody uses the block but this test.
    let bytes = unsafe { block.discard(100..3 * page + 100) };
    assert!(bytes == if cfg!(target_os = "linux") { 2 * page } else { 0 });
    let (first, rest) = block.bytes().split_at(page);
    assert!(first.iter().chain(&rest[bytes..]).all(|b| *b == 7) && rest[..bytes].iter().all(|b| *b == 0));
}

/// Blocks of huge pages are parts of larger maps: what one holds, and that it goes back, is nothing to its neighbours.
#[test]
#[cfg(target_os = "linux")]
fn blocks_of_huge_pages_are_nobody_else_s() {
    let source = Pages { huge_from_bytes: 0 };
    let sizes = [1 << 12, 5 << 20, 3 << 12, 40 << 20, 30 << 20, 1 << 12, 9 << 20];
    let mut blocks: Vec<_> = sizes.iter().map(|bytes| source.allocate(*bytes)).collect();
    for (number, block) in blocks.iter_mut().flatten().enumerate() {
        assert!(block.bytes().iter().step_by(1000).all(|b| *b == 0));
        block.bytes_mut().fill(number as u8);
    }
    blocks.iter_mut().step_by(2).for_each(|block| *block = None);
    let (large, next) = (source.allocate(65 << 20).unwrap(), source.allocate(2 << 20).unwrap());
    assert!(large.start().as_ptr().align_offset(2 << 20) == 0 && large.bytes()[large.len_bytes() - 1] == 0);
    assert!(next.bytes().iter().all(|b| *b == 0));
    for (number, block) in blocks.iter().enumerate().skip(1).step_by(2) {
        let block = block.as_ref().unwrap();
        assert_eq!(block.len_bytes(), sizes[number].next_multiple_of(source.granule()));
        assert!(block.bytes().iter().all(|b| *b == number as u8), "block {number}");
    }
}

#[test]
fn requests_fail_where_they_are_told_to() {
    let source = Failing::nth(Heap, 1);
    let first = source.allocate(64);
    assert!(first.is_some() && source.allocate(64).is_none() && source.allocate(64).is_some());
    assert_eq!(source.requests(), 3);
    drop(first);
    assert_eq!(source.held_bytes(), 0);

    let source = Failing::from(Heap, 1);
    assert!(source.allocate(64).is_some() && source.allocate(64).is_none() && source.allocate(64).is_none());
    source.heal();
    assert!(source.allocate(64).is_some());

    let source = Failing::above(Heap, 128);
    let first = source.allocate(128);
    assert!(first.is_some() && source.allocate(64).is_none());
    assert_eq!(source.held_bytes(), 128);
    drop(first);
    assert!(source.allocate(64).is_some());
}

#[test]
#[cfg(target_os = "linux")]
fn resident_blocks_are_so_before_they_are_written() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kibibytes = status.split("VmRSS:").nth(1).and_then(|rest| rest.split_whitespace().next());
        kibibytes.and_then(|n| n.parse::<usize>().ok()).unwrap() << 10
    };
    // Other tests come and go meanwhile; none of them has so much.
    let before = resident();
    let block = Resident(Pages::default()).allocate(256 << 20).unwrap();
    assert!(resident() > before + (128 << 20));
    drop(block);
    assert!(resident() < before + (128 << 20));
}
