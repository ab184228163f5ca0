//! Steps of optimizers.

use super::Ops;
use super::array::{Array, View, ViewMut};
use bitnet_core::{AdamStep, At, SgdStep};

impl Ops {
    /// The length of a vector; no number where the device failed.
    pub(crate) fn length(&self, x: &Array) -> f64 {
        let Some(device) = &self.device else { return crate::norm(&self.cpu, x) };
        let length = x.on(device).and_then(|at| device.operations().length(At::start(at), x.len()));
        device.note(length).unwrap_or(f64::NAN)
    }

    /// A step of Adam; `false` where the caller has to take it.
    pub(crate) fn adam(
        &self,
        step: &Adam,
        p: ViewMut<'_>,
        gradient: View<'_>,
        m: ViewMut<'_>,
        v: ViewMut<'_>,
    ) -> bool {
        let (mut p, mut m, mut v) = (p, m, v);
        self.try_on(|device, on| {
            let gradient = gradient.on(device)?;
            let len = p.len();
            let (p, m, v) = (p.changed_on(device)?, m.changed_on(device)?, v.changed_on(device)?);
            let Adam { scale, pull, keep, step, root, first, second, eps } = *step;
            on.adam(&AdamStep { p, gradient, m, v, len, scale, pull, keep, step, root, first, second, eps });
            Ok(())
        })
    }

    /// A step of SGD; `false` where the caller has to take it.
    pub(crate) fn sgd(&self, step: &Sgd, p: ViewMut<'_>, gradient: View<'_>, buffer: ViewMut<'_>) -> bool {
        let (mut p, mut buffer) = (p, buffer);
        self.try_on(|device, on| {
            let gradient = gradient.on(device)?;
            let len = p.len();
            let (p, buffer) = (p.changed_on(device)?, buffer.changed_on(device)?);
            let Sgd { scale, momentum, keep, rate, nesterov } = *step;
            on.sgd(&SgdStep { p, gradient, buffer, len, scale, momentum, keep, rate, nesterov });
            Ok(())
        })
    }
}

/// Numbers of a step of Adam; see [`AdamStep`].
#[derive(Clone, Copy)]
pub(crate) struct Adam {
    pub(crate) scale: f32,
    pub(crate) pull: f32,
    pub(crate) keep: f32,
    pub(crate) step: f32,
    pub(crate) root: f32,
    pub(crate) first: (f32, f32),
    pub(crate) second: (f32, f32),
    pub(crate) eps: f32,
}

/// Numbers of a step of SGD; see [`SgdStep`].
#[derive(Clone, Copy)]
pub(crate) struct Sgd {
    pub(crate) scale: f32,
    pub(crate) momentum: f32,
    pub(crate) keep: f32,
    pub(crate) rate: f32,
    pub(crate) nesterov: bool,
}
