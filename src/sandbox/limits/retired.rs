//! Jails that were killed and have not ended in time: how many there are, and may be.
//!
//! What was killed runs nothing of its own any more; only the kernel is still busy with it – with
//! the locks of a process, say, or a device that does not answer. Its slot gets another jail, and
//! the old one is watched until it is gone. So a model that makes a kill slow costs no slot; but
//! what it holds of the machine is not free yet, so there is a bound: while there are more of them
//! than slots, no other jail is made. So there are never more than twice as many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sandbox::spawn::{Child, Reaped};

/// How many jails are retired, in a whole engine. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct Retired(Arc<Counts>);

#[derive(Debug)]
struct Counts {
    now: AtomicUsize,
    most: usize,
}

impl Retired {
    /// None, where others may be made beside so many.
    pub(in crate::sandbox) fn new(most: usize) -> Self {
        Self(Arc::new(Counts { now: AtomicUsize::new(0), most }))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.now.load(Ordering::Acquire)
    }

    /// Whether no other jail may be made until one of them is gone.
    pub(in crate::sandbox) fn is_full(&self) -> bool {
        self.count() > self.0.most
    }
}

/// A process that was killed, or given up on, and is still to be reaped.
pub(in crate::sandbox) struct Leftover {
    child: Child,
    retired: Option<Retired>,
}

impl Leftover {
    /// A process that nothing waits for.
    pub(in crate::sandbox) fn of(child: Child) -> Self {
        Self { child, retired: None }
    }

    /// The first process of a jail that retires.
    pub(in crate::sandbox) fn retire(child: Child, retired: &Retired) -> Self {
        retired.0.now.fetch_add(1, Ordering::AcqRel);
        Self { child, retired: Some(retired.clone()) }
    }

    /// Whether it is gone.
    pub(in crate::sandbox) fn is_gone(&self) -> bool {
        self.child.reap() != Reaped::Running
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        if let Some(retired) = &self.retired {
            retired.0.now.fetch_sub(1, Ordering::AcqRel);
            log::info!("a sandbox that did not end in time is gone now");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_there_are_more_than_slots_no_other_jail_is_made() {
        let retired = Retired::new(1);
        let start = || {
            let arguments = crate::sandbox::spawn::CStringArray::new(["true".into()]).unwrap();
            let none = crate::sandbox::spawn::CStringArray::new([]).unwrap();
            crate::sandbox::spawn::spawn(c"/bin/true", &arguments, &none, &[], None).unwrap()
        };
        let first = Leftover::retire(start(), &retired);
        assert!((retired.count(), retired.is_full()) == (1, false));
        let second = Leftover::retire(start(), &retired);
        assert!(retired.is_full());
        while !(first.is_gone() && second.is_gone()) {
            std::thread::yield_now();
        }
        drop(first);
        assert!((retired.count(), retired.is_full()) == (1, false));
    }
}
