//! A fence whose one half costs nothing, because the other half does its work.
//!
//! Two threads that each write one flag and then read the other's both need a fence between the two, or neither may see what the other
//! wrote. Where one of them comes often and the other seldom, Linux lets the seldom one run a fence on every processor that runs the
//! process (`membarrier`): the other need only keep its compiler from exchanging the two. Other systems have two fences.

pub(super) use halves::Fence;

#[cfg(all(target_os = "linux", not(miri)))]
mod halves {
    use rustix::thread::{MembarrierCommand, membarrier};
    use std::sync::OnceLock;
    use std::sync::atomic::{Ordering::SeqCst, compiler_fence};

    /// Both halves. After a light one on one thread and a heavy one on another, at least one of them sees what the other wrote before.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Fence(());

    impl Fence {
        /// Not on kernels without that call, and not where a filter forbids it.
        pub(in super::super) fn new() -> Option<Self> {
            static REGISTERED: OnceLock<bool> = OnceLock::new();
            let call = |command| membarrier(command).is_ok();
            let register = || {
                call(MembarrierCommand::RegisterPrivateExpedited) && call(MembarrierCommand::PrivateExpedited)
            };
            REGISTERED.get_or_init(register).then_some(Self(()))
        }

        /// For who comes often.
        #[inline(always)]
        pub(in super::super) fn light() {
            compiler_fence(SeqCst);
        }

        /// For who comes seldom.
        pub(in super::super) fn heavy(self) {
            compiler_fence(SeqCst);
            membarrier(MembarrierCommand::PrivateExpedited).expect("who has registered may ask for fences");
            compiler_fence(SeqCst);
        }
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod halves {
    use std::sync::atomic::{Ordering::SeqCst, fence};

    /// Both halves, which are the same.
    #[derive(Clone, Copy, Debug)]
    pub(in super::super) struct Fence;

    impl Fence {
        pub(in super::super) fn new() -> Option<Self> {
            Some(Self)
        }

        #[inline(always)]
        pub(in super::super) fn light() {
            fence(SeqCst);
        }

        pub(in super::super) fn heavy(self) {
            fence(SeqCst);
        }
    }
}
