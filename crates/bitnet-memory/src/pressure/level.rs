//! How short memory is, as one word that does not flutter.

use super::system::{Limit, LimitKind, Readings};

/// How short memory is, and what is done about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Caches give back what nobody uses ([`Stage::Trim`](super::Stage::Trim)).
    Moderate,
    /// And what could be of use later ([`Stage::Shrink`](super::Stage::Shrink)).
    High,
    /// And new work is refused.
    Critical,
}

impl Level {
    /// As metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Moderate => "moderate",
            Self::High => "high",
            Self::Critical => "critical",
        }
    }

    fn lower(self) -> Self {
        match self {
            Self::None | Self::Moderate => Self::None,
            Self::High => Self::Moderate,
            Self::Critical => Self::High,
        }
    }
}

/// When a level is reached: as less than a share of a limit is left, and less than so many bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Of the limit, 0 to 1.
    pub share: f64,
    /// Above this, a share is plenty.
    pub bytes: u64,
}

impl Threshold {
    /// What has to be left of a limit.
    fn of(self, limit_bytes: u64) -> u64 {
        ((limit_bytes as f64 * self.share) as u64).min(self.bytes)
    }
}

/// When levels are reached.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Thresholds {
    /// For [`Level::Moderate`].
    pub moderate: Threshold,
    /// For [`Level::High`].
    pub high: Threshold,
    /// For [`Level::Critical`].
    pub critical: Threshold,
    /// For [`Level::Moderate`], of a device's memory: the only level that it can be the cause of.
    pub device: Threshold,
    /// Tasks that wait for memory for a larger share of the time than this make it [`Level::Moderate`]; all at once, [`Level::High`].
    pub stalled: f64,
}

/// 20 % (2 GiB), 10 % (1 GiB), 3 % (128 MiB) left; of a device 10 % (512 MiB); a tenth of the time waited for memory.
impl Default for Thresholds {
    fn default() -> Self {
        Self {
            moderate: Threshold { share: 0.2, bytes: 2 << 30 },
            high: Threshold { share: 0.1, bytes: 1 << 30 },
            critical: Threshold { share: 0.03, bytes: 128 << 20 },
            device: Threshold { share: 0.1, bytes: 512 << 20 },
            stalled: 0.1,
        }
    }
}

impl Thresholds {
    /// What has to be left of a limit for a level not to be reached.
    ///
    /// A device's memory is taken by weights and cache before the first answer, and they give nothing back: that little is left of it is
    /// no reason to refuse work that fits. So there is one threshold for it, from which on pools do not keep what they do not use.
    pub(super) fn of(&self, limit: &Limit, level: Level) -> u64 {
        let threshold = match (&limit.kind, level) {
            (LimitKind::Device(_), Level::None | Level::Moderate) => self.device,
            (LimitKind::Device(_), Level::High | Level::Critical) => return 0,
            (_, Level::None | Level::Moderate) => self.moderate,
            (_, Level::High) => self.high,
            (_, Level::Critical) => self.critical,
        };
        threshold.of(limit.limit_bytes)
    }

    /// The level of one limit when so many bytes are left.
    fn level(&self, limit: &Limit, left_bytes: u64) -> Level {
        let reached = |level: &Level| left_bytes < self.of(limit, *level);
        [Level::Critical, Level::High, Level::Moderate].into_iter().find(reached).unwrap_or_default()
    }

    /// Bytes that would have to be freed for the limit to be below a level.
    pub(super) fn missing_bytes(&self, limit: &Limit, level: Level) -> u64 {
        self.of(limit, level).saturating_sub(limit.left_bytes())
    }
}

/// Readings in a row that must be better before a level is left, so that what is freed at a level does not end it at once.
const CALM: u32 = 3;

/// A level that rises at once and falls step by step.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    level: Level,
    calm: u32,
}

impl Gauge {
    /// The level after some readings, and the limit that is nearest.
    pub fn read(&mut self, thresholds: &Thresholds, readings: &Readings) -> (Level, Option<Limit>) {
        let stalled = readings.stalls.map_or(Level::None, |stalls| match stalls {
            s if s.full > thresholds.stalled => Level::High,
            s if s.some > thresholds.stalled => Level::Moderate,
            _ => Level::None,
        });
        let tightest = readings.limits.iter().max_by(|a, b| {
            let of = |limit: &Limit| thresholds.level(limit, limit.left_bytes());
            // Of the same level, the one with less left.
            of(a).cmp(&of(b)).then(b.left_bytes().cmp(&a.left_bytes()))
        });
        let level = |left: fn(&Limit) -> u64| {
            tightest.map_or(Level::None, |limit| thresholds.level(limit, left(limit))).max(stalled)
        };
        // To fall, a quarter more than the threshold must be left.
        let (now, with_margin) = (level(Limit::left_bytes), level(|limit| limit.left_bytes() / 5 * 4));
        if now >= self.level {
            (self.level, self.calm) = (now, 0);
        } else if with_margin >= self.level {
            self.calm = 0;
        } else {
            self.calm += 1;
            if self.calm == CALM {
                (self.level, self.calm) = (self.level.lower(), 0);
            }
        }
        (self.level, tightest.cloned())
    }
}

/// Why new work is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "memory is short: {} of {} MiB {kind} are left, {} MiB are needed; {}",
    .left_bytes >> 20, .limit_bytes >> 20, .need_bytes.div_ceil(1 << 20), kind.remedy()
)]
pub struct Shortage {
    /// Whose limit it is.
    pub kind: LimitKind,
    /// All there is.
    pub limit_bytes: u64,
    /// What is left.
    pub left_bytes: u64,
    /// What has to be left for new work to be taken.
    pub need_bytes: u64,
}
