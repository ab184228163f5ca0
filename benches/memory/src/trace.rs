//! Traces: what was allocated and given back, in order.
//!
//! A file has one number for each event, seven bits a byte, lowest first: `2 * bytes` for an allocation; `2 * n + 1` for giving back the
//! one that was `n` allocations before the last.

/// One event; allocations are numbered from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// So many bytes are allocated.
    Take(usize),
    /// The allocation of this number is given back.
    Put(usize),
}

/// Reads a file's bytes.
pub fn decode(mut bytes: &[u8]) -> Vec<Event> {
    let (mut events, mut taken) = (Vec::new(), 0);
    while !bytes.is_empty() {
        let (mut n, mut shift) = (0, 0);
        while let Some((byte, rest)) = bytes.split_first() {
            bytes = rest;
            n |= usize::from(byte & 127) << shift;
            shift += 7;
            if byte & 128 == 0 {
                break;
            }
        }
        if n % 2 == 0 {
            taken += 1;
            events.push(Event::Take(n / 2));
        } else {
            events.push(Event::Put(taken - 1 - n / 2));
        }
    }
    events
}

/// Makes a file's bytes.
pub fn encode(events: &[Event]) -> Vec<u8> {
    let (mut bytes, mut taken) = (Vec::new(), 0);
    for event in events {
        let mut n = match event {
            Event::Take(size) => {
                taken += 1;
                2 * size
            }
            Event::Put(number) => 2 * (taken - 1 - number) + 1,
        };
        while n > 127 {
            bytes.push(n as u8 | 128);
            n >>= 7;
        }
        bytes.push(n as u8);
    }
    bytes
}

/// The events of allocations of these sizes alone, renumbered; what is left in the end is given back.
pub fn of_sizes(events: &[Event], sizes: std::ops::RangeInclusive<usize>) -> Vec<Event> {
    let (mut numbers, mut taken, mut live) = (Vec::new(), 0, Vec::new());
    let mut out = Vec::new();
    for event in events {
        match *event {
            Event::Take(bytes) if sizes.contains(&bytes) => {
                numbers.push(Some(taken));
                live.push(true);
                taken += 1;
                out.push(Event::Take(bytes));
            }
            Event::Take(_) => numbers.push(None),
            Event::Put(number) => {
                if let Some(number) = numbers[number] {
                    live[number] = false;
                    out.push(Event::Put(number));
                }
            }
        }
    }
    out.extend((0..taken).filter(|number| live[*number]).map(Event::Put));
    out
}

/// Made up: tensors of the layers of a 2B-4T step of eight tokens, four of them in use at a time.
pub fn layers() -> Vec<Event> {
    const FEATURES: [usize; 8] = [20_480, 20_480, 61_440, 20_480, 40_960, 112_640, 56_320, 20_480];
    let (mut events, mut taken) = (Vec::new(), 0);
    for _layer in 0..4 * 24 {
        let first = taken;
        for (i, features) in FEATURES.iter().enumerate() {
            events.push(Event::Take(4 * features));
            taken += 1;
            if i >= 3 {
                events.push(Event::Put(taken - 4));
            }
        }
        events.extend((first + FEATURES.len() - 3..taken).map(Event::Put));
    }
    events
}

/// Made up: sizes of 16 KiB to 4 MiB, by their logarithm, given back in no order, thirty in use at most.
pub fn churn(random: &mut crate::Random) -> Vec<Event> {
    let (mut events, mut live, mut taken) = (Vec::new(), Vec::new(), 0);
    for _ in 0..20_000 {
        if live.is_empty() || live.len() < 30 && random.unit() < 0.55 {
            events.push(Event::Take(f64::exp2(14.0 + 8.0 * random.unit()) as usize));
            live.push(taken);
            taken += 1;
        } else {
            events.push(Event::Put(live.swap_remove(random.below(live.len()))));
        }
    }
    events.extend(live.into_iter().map(Event::Put));
    events
}
