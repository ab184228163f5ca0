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
