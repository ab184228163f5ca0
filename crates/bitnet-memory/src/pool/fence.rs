//! A fence whose one half costs nothing, because the other half does its work.
//!
//! Two threads that each write one flag and then read the other's both need a fence between the two, or neither may see what the other
//! wrote. Where one of them comes often and the other seldom, Linux lets the seldom one run a fence on every processor that runs the
//! process (`membarrier`): the other need only keep its compiler from exchanging the two.

use std::sync::atomic::{Ordering::SeqCst, compiler_fence, fence};

/// Both halves. After a light one on one thread and a heavy one on another, at least one of them sees what the other wrote before.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fence {
    /// Whether the heavy half does the work of both.
    is_asymmetric: bool,
}

impl Fence {
    pub(super) fn new() -> Self {
        Self { is_asymmetric: registered() }
    }

    /// For who comes often.
    #[inline(always)]
    pub(super) fn light(self) {
        if self.is_asymmetric {
            compiler_fence(SeqCst);
        } else {
            fence(SeqCst);
        }
    }

    /// For who comes seldom.
    pub(super) fn heavy(self) {
        fence(SeqCst);
        #[cfg(target_os = "linux")]
        if self.is_asymmetric {
            use rustix::thread::{MembarrierCommand, membarrier};
            membarrier(MembarrierCommand::PrivateExpedited)
                .expect("a process that has registered may ask for fences");
            fence(SeqCst);
        }
    }
}

/// Whether the system runs fences for this process. Kernels without that call and filters that forbid it say no.
#[cfg(target_os = "linux")]
fn registered() -> bool {
    use rustix::thread::{MembarrierCommand, membarrier};
    use std::sync::OnceLock;
    static REGISTERED: OnceLock<bool> = OnceLock::new();
    let call = |command| membarrier(command).is_ok();
    *REGISTERED.get_or_init(|| {
        call(MembarrierCommand::RegisterPrivateExpedited) && call(MembarrierCommand::PrivateExpedited)
    })
}

#[cfg(not(target_os = "linux"))]
fn registered() -> bool {
    false
}
