//! How short memory is: what the system and devices say, how bad that is, and who gives memory back.
//!
//! Nothing runs in the background: whoever is between two steps asks, and the system is asked again only when the last reading is old.
//!
//! | level | from, of the limit that is nearest | what is done |
//! |---|---|---|
//! | moderate | less than 20 % left, and less than 2 GiB; of a device 10 %, 512 MiB; or tasks wait for memory for a tenth of the time | [`Stage::Trim`] |
//! | high | 10 %, 1 GiB; or all of them wait | [`Stage::Shrink`] |
//! | critical | 3 %, 128 MiB | new work is refused ([`Pressure::admit`]) |
//!
//! Work that needs more of a device than is left, or kept there without use, is refused at any level.
//!
//! ```
//! use bitnet_memory::{Monitor, Responses, Stage};
//! let monitor = Monitor::default();
//! let mut cache = vec![0u8; 1 << 20];
//! let mut responses = Responses::<Vec<u8>>::default();
//! responses.register(Stage::Trim, 0, "cache", |cache, _missing| std::mem::take(cache).capacity() as u64);
//! let pressure = monitor.pressure();
//! for freed in responses.run(&mut cache, &pressure) {
//!     println!("{} gave {} bytes back", freed.name, freed.bytes);
//! }
//! ```

mod level;
#[cfg(any(not(target_os = "linux"), test))]
mod other;
mod parse;
mod responses;
mod system;
#[cfg(test)]
mod tests;

pub use level::{Level, Shortage, Threshold, Thresholds};
pub use parse::Stalls;
pub use responses::{Freed, Responses, Stage};
pub use system::{DeviceMemory, DeviceUsage, Limit, LimitKind, Readings, System};

use level::Gauge;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How memory is watched.
#[derive(Clone)]
pub struct MonitorOptions {
    /// What the system says.
    pub system: System,
    /// When levels are reached.
    pub thresholds: Thresholds,
    /// How old a reading may be. One takes about 0.1 ms.
    pub interval: Duration,
}

impl Default for MonitorOptions {
    fn default() -> Self {
        Self {
            system: System::default(),
            thresholds: Thresholds::default(),
            interval: Duration::from_millis(100),
        }
    }
}

/// How short memory is at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pressure {
    /// How bad it is.
    pub level: Level,
    /// The limit that is nearest.
    pub tightest: Option<Limit>,
    /// All limits.
    pub limits: Vec<Limit>,
    /// Tells readings apart.
    pub reading: u64,
    thresholds: Thresholds,
}

/// What new work takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Addresses, which limits of the process count.
    pub mapped_bytes: u64,
    /// Memory, which the machine and control groups have.
    pub resident_bytes: u64,
    /// Memory of each device that computes.
    pub device_bytes: u64,
}

impl Need {
    fn of(&self, kind: &LimitKind) -> u64 {
        match kind {
            LimitKind::AddressSpace | LimitKind::Data => self.mapped_bytes,
            LimitKind::Machine | LimitKind::ControlGroup => self.resident_bytes,
            LimitKind::Device(_) => self.device_bytes,
        }
    }
}

impl Pressure {
    /// Bytes that have to be freed for a level to end; where it is not the limit that makes it but waiting, all that can be had.
    pub fn missing_bytes(&self, level: Level) -> u64 {
        let missing = self.tightest.as_ref().map_or(0, |limit| self.thresholds.missing_bytes(limit, level));
        match missing {
            0 if self.level >= level && level > Level::None => u64::MAX,
            missing => missing,
        }
    }

    /// Whether there is memory for new work, with as much to spare as [`Level::Critical`] asks for.
    ///
    /// # Errors
    /// There is not, or the level is critical and has not ended yet.
    pub fn admit(&self, need: &Need) -> Result<(), Shortage> {
        let shortage = |limit: &Limit| Shortage {
            kind: limit.kind.clone(),
            limit_bytes: limit.limit_bytes,
            left_bytes: limit.usable_bytes(),
            need_bytes: self.thresholds.of(limit, Level::Critical).saturating_add(need.of(&limit.kind)),
        };
        let short = self.limits.iter().map(shortage).find(|s| s.left_bytes < s.need_bytes);
        let critical = self.tightest.as_ref().filter(|_| self.level == Level::Critical).map(shortage);
        critical.or(short).map_or(Ok(()), Err)
    }
}

/// Watches memory. Cheap to ask; any thread may.
pub struct Monitor {
    options: MonitorOptions,
    devices: Mutex<Vec<Weak<dyn DeviceMemory>>>,
    state: Mutex<Watched>,
}

#[derive(Default)]
struct Watched {
    gauge: Gauge,
    last: Pressure,
    read: Option<Instant>,
}

impl Default for Monitor {
    fn default() -> Self {
        Self::new(MonitorOptions::default())
    }
}

impl Monitor {
    /// With options.
    pub fn new(options: MonitorOptions) -> Self {
        Self { options, devices: Mutex::default(), state: Mutex::default() }
    }

    /// Watches a device's memory, too, for as long as somebody has it.
    pub fn watch(&self, device: &Arc<dyn DeviceMemory>) {
        let mut devices = locked(&self.devices);
        devices.retain(|known| {
            known.strong_count() > 0 && !std::ptr::addr_eq(known.as_ptr(), Arc::as_ptr(device))
        });
        devices.push(Arc::downgrade(device));
    }

    /// What the system and devices say now.
    pub fn read(&self) -> Readings {
        let mut readings = self.options.system.read();
        let mut devices: Vec<Limit> = Vec::new();
        for device in locked(&self.devices).iter().filter_map(Weak::upgrade) {
            let Some(usage) = device.usage() else { continue };
            let kind = LimitKind::Device(device.name().to_owned());
            // Of several backends on one device, each keeps something.
            match devices.iter_mut().find(|known| known.kind == kind) {
                Some(known) => known.idle_bytes += usage.idle_bytes,
                None => devices.push(Limit {
                    kind,
                    limit_bytes: usage.total_bytes,
                    used_bytes: usage.total_bytes.saturating_sub(usage.free_bytes),
                    idle_bytes: usage.idle_bytes,
                }),
            }
        }
        readings.limits.extend(devices);
        readings
    }

    /// How short memory is, by a reading that is not older than the interval.
    pub fn pressure(&self) -> Pressure {
        self.pressure_at(Instant::now())
    }

    fn pressure_at(&self, now: Instant) -> Pressure {
        let mut state = locked(&self.state);
        let is_old = |read: Instant| now.saturating_duration_since(read) >= self.options.interval;
        if state.read.is_none_or(is_old) {
            let thresholds = self.options.thresholds;
            let readings = self.read();
            let (level, tightest) = state.gauge.read(&thresholds, &readings);
            let reading = state.last.reading + 1;
            state.last = Pressure { level, tightest, limits: readings.limits, reading, thresholds };
            state.read = Some(now);
        }
        state.last.clone()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
