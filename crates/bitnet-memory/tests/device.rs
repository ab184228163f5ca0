//! A source as a device's would be: what it gives are addresses that the processor cannot even touch, and the pool serves them by the
//! same traits. Whatever looked into a block, or kept something there, would end the test by a fault.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use bitnet_memory::{
    Block, Config, DeviceMemory, DevicePool, DeviceSource, DeviceUsage, Piece, Pool, Profile, Release,
    Source, Tag, Tracking,
};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Where the device's memory begins: no processor of ours has such addresses.
const BASE: usize = 0xdead_0000_0000_0000;
const ALIGN: usize = 256;

/// Ranges that are in use, by where they begin.
type Ranges = Arc<Mutex<BTreeMap<usize, usize>>>;

#[derive(Clone, Default)]
struct Device {
    ranges: Ranges,
    capacity: usize,
    /// Whether what it gives are objects that are used whole.
    whole: bool,
}

struct Range {
    address: usize,
    bytes: usize,
    ranges: Ranges,
}

impl Source for Device {
    type Block = Range;

    fn granule(&self) -> usize {
        64 << 10
    }

    fn align(&self) -> usize {
        ALIGN
    }

    fn shares_blocks(&self) -> bool {
        !self.whole
    }

    fn allocate(&self, bytes: usize) -> Option<Range> {
        let bytes = bytes.checked_next_multiple_of(self.granule())?;
        let mut ranges = self.ranges.lock().unwrap();
        let mut address = BASE;
        for (start, end) in ranges.iter() {
            if *start - address >= bytes {
                break;
            }
            address = *end;
        }
        if address - BASE > self.capacity.checked_sub(bytes)? {
            return None;
        }
        ranges.insert(address, address + bytes);
        Some(Range { address, bytes, ranges: Arc::clone(&self.ranges) })
    }
}

impl DeviceSource for Device {
    fn free_and_total_bytes(&self) -> Option<(u64, u64)> {
        let used: usize = self.ranges.lock().unwrap().iter().map(|(start, end)| end - start).sum();
        Some(((self.capacity - used) as u64, self.capacity as u64))
    }
}

impl Block for Range {
    fn len_bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        assert_eq!(self.ranges.lock().unwrap().remove(&self.address), Some(self.address + self.bytes));
    }
}

fn address(piece: &Piece<Device>) -> usize {
    piece.block().address + piece.offset()
}

#[test]
fn a_devices_memory_is_pooled_without_being_touched() {
    for profile in [Profile::Inference, Profile::Training, Profile::Balanced, Profile::Adaptive] {
        for tracking in [Tracking::Off, Tracking::Standard, Tracking::Debug] {
            // Each profile meets both kinds of device.
            let whole = (tracking as usize + profile as usize).is_multiple_of(2);
            let device = Device { capacity: 256 << 20, whole, ..Device::default() };
            let pool = Pool::with(device.clone(), Config { tracking, ..profile.into() });
            let mut held: Vec<Piece<Device>> = Vec::new();
            let mut taken: BTreeMap<usize, usize> = BTreeMap::new();
            for i in 0..2000usize {
                let bytes = [100, 5000, 70_000, 300_000, 2 << 20, 40 << 20][i * 7919 % 31 % 6] + i % 300;
                if held.len() > 12 || bytes > 2 << 20 && held.len() > 4 {
                    let piece = held.swap_remove(i * 31 % held.len());
                    taken.remove(&address(&piece));
                }
                let tag = Tag::ALL[i % 7];
                // Where it is full it says so; what is given up makes room again.
                let Ok(mut piece) = pool.piece(bytes, tag) else { continue };
                let (start, end) = (address(&piece), address(&piece) + piece.capacity_bytes());
                assert!(start.is_multiple_of(ALIGN) && piece.capacity_bytes() >= bytes);
                assert!(end <= piece.block().address + piece.block().len_bytes());
                assert!(!whole || piece.offset() == 0);
                let below = taken.range(..end).next_back();
                assert!(below.is_none_or(|(_, end)| *end <= start));
                taken.insert(start, end);
                piece.release([Release::Normal, Release::Immediate, Release::Low][i % 3]);
                held.push(piece);
                if i % 100 == 99 {
                    pool.collect();
                    pool.trim(if i % 400 == 399 { 0 } else { 8 << 20 });
                }
            }
            let learned = pool.learned();
            held.clear();
            pool.trim(0);
            assert!(device.ranges.lock().unwrap().is_empty());
            pool.prewarm(&learned).unwrap();
            assert_eq!(pool.piece(1 << 40, Tag::Kv).err().map(|e| e.bytes), Some(1 << 40));
            drop(pool);
            assert!(device.ranges.lock().unwrap().is_empty(), "all of it is the device's again");
        }
    }
}

#[test]
fn what_a_pool_says_of_its_device_adds_up() {
    let device = Device { capacity: 256 << 20, ..Device::default() };
    let pool = DevicePool::new("test:0".to_owned(), device, Profile::Inference.into());
    let usage = || {
        let DeviceUsage { total_bytes, free_bytes, idle_bytes } = pool.usage().unwrap();
        assert_eq!(total_bytes, 256 << 20);
        (free_bytes, idle_bytes)
    };
    assert_eq!((pool.name(), usage()), ("test:0", (256 << 20, 0)));
    let piece = pool.piece(300_000, Tag::Activations).unwrap();
    let (own, (free, idle)) = (piece.capacity_bytes() as u64, usage());
    assert!(own >= 300_000 && free + idle + own <= 256 << 20, "{free} {idle} {own}");
    drop(piece);
    let (free, idle) = usage();
    assert!(idle >= own && free + idle == 256 << 20, "{free} {idle} {own}");
    assert_eq!(pool.release(), idle);
    assert_eq!(usage(), (256 << 20, 0));
}
