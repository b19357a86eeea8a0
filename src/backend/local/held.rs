//! What this machine has of images, for who asks: a sandbox server tells it to its executors.
//!
//! The thread `tool-images` looks at the store, since other programs use it too, and the disk may
//! be slow: whoever asks is answered with what it saw last.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded, select};
use parking_lot::Mutex;

use crate::backend::{HeldImages, ImageKey, MOST_IMAGE_NAMES};
use crate::interrupt::Interrupt;
use crate::sandbox::image::{ContentsReader, ImageError, ImageStore};

/// How often the thread looks.
const PAUSE: Duration = Duration::from_secs(2);
/// With fewer bytes free the disk is too full for an image that is lacking: the slots are on it,
/// too.
const RESERVE: u64 = 1 << 30;
/// The room is worth telling when it has changed by one part in so many.
const PARTS: u64 = 16;

/// What was seen last, and what is under way.
pub(super) struct Held {
    told: Mutex<Arc<HeldImages>>,
    /// How many begins wait for each image that is being pulled or unpacked.
    pulling: Mutex<BTreeMap<String, usize>>,
    wake: Sender<()>,
    woken: Receiver<()>,
}

/// A begin that waits for an image; dropped, it does so no more.
pub(super) struct Pulling<'a> {
    held: &'a Held,
    name: String,
}

impl Held {
    /// Nothing was seen yet.
    pub(super) fn new() -> Self {
        let (wake, woken) = bounded(1);
        let told = HeldImages { reserve_bytes: RESERVE, ..HeldImages::default() };
        Self { told: Mutex::new(Arc::new(told)), pulling: Mutex::default(), wake, woken }
    }

    /// What was seen last.
    pub(super) fn told(&self) -> Arc<HeldImages> {
        self.told.lock().clone()
    }

    /// An image is wanted. Gives what is to be kept while it is made, if it is not there.
    pub(super) fn pulling(&self, name: &str) -> Option<Pulling<'_>> {
        let image = ImageKey::of(name);
        let is_there = |known: &String| ImageKey::of(known) == image;
        if image.is_none() || self.told().names.iter().any(is_there) {
            return None;
        }
        *self.pulling.lock().entry(name.to_owned()).or_default() += 1;
        self.tell(None);
        Some(Pulling { held: self, name: name.to_owned() })
    }

    /// The thread: until the interrupt. `find` gives the store, once there is one, and `room` how
    /// many bytes there are for one.
    pub(super) fn keep_looking(
        &self,
        find: impl Fn() -> Result<Option<ImageStore>, ImageError>,
        room: impl Fn() -> Option<u64>,
        interrupt: &Interrupt,
    ) {
        let mut reader = ContentsReader::default();
        let mut last_error = String::new();
        while !interrupt.is_interrupted() {
            let seen = find().and_then(|store| match store {
                Some(store) => Ok((store.contents(&mut reader)?, store.free_bytes().ok())),
                None => Ok((None, room())),
            });
            match seen {
                Ok((names, free_bytes)) => {
                    last_error.clear();
                    self.tell(Some((names, free_bytes)));
                }
                Err(error) => {
                    let error = error.to_string();
                    if error != last_error {
                        log::warn!("what the store of images has cannot be seen: {error}");
                        last_error = error;
                    }
                }
            }
            select! {
                recv(self.woken) -> _ => {}
                recv(interrupt.fired()) -> _ => {}
                default(PAUSE) => {}
            }
        }
    }

    /// Brings what is told up to date, with what was seen: names, if they have changed, and room.
    fn tell(&self, seen: Option<(Option<Vec<String>>, Option<u64>)>) {
        let mut told = self.told.lock();
        let mut new = HeldImages::clone(&told);
        new.pulling = self.pulling.lock().keys().cloned().collect();
        if let Some((names, free_bytes)) = seen {
            if let Some(mut names) = names {
                names.sort_unstable();
                names.dedup();
                new.more = names.len().saturating_sub(MOST_IMAGE_NAMES);
                names.truncate(MOST_IMAGE_NAMES);
                new.names = names;
            }
            let before = (new.free_bytes, new.is_full());
            new.free_bytes = free_bytes;
            if new.is_full() == before.1 && !is_other_room(before.0, free_bytes) {
                new.free_bytes = before.0;
            }
        }
        if new != **told {
            new.version += 1;
            *told = Arc::new(new);
        }
    }
}

/// Whether so much room is worth telling.
fn is_other_room(before: Option<u64>, now: Option<u64>) -> bool {
    match (before, now) {
        (Some(before), Some(now)) => before.abs_diff(now) > before / PARTS,
        (before, now) => before.is_some() != now.is_some(),
    }
}

impl Drop for Pulling<'_> {
    fn drop(&mut self) {
        let mut pulling = self.held.pulling.lock();
        if let Some(waiting) = pulling.get_mut(&self.name) {
            *waiting -= 1;
            if *waiting == 0 {
                pulling.remove(&self.name);
            }
        }
        drop(pulling);
        self.held.tell(None);
        // Full: the thread is about to look.
        let _ = self.held.wake.try_send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_worth_telling_is_another_version_and_nothing_else_is() {
        let held = Held::new();
        let names = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        assert_eq!(held.told().version, 0);
        held.tell(Some((names(&["python:latest"]), Some(RESERVE * 16))));
        held.tell(Some((None, Some(RESERVE * 16 - 1))));
        let told = held.told();
        assert_eq!((told.version, told.free_bytes, told.is_full()), (1, Some(RESERVE * 16), false));
        held.tell(Some((None, Some(RESERVE - 1))));
        assert!(held.told().is_full() && held.told().version == 2);
        assert!(held.pulling("docker://python").is_none(), "it is there");
        assert!(held.pulling("dir:/x").is_none(), "it is used in place");
        let first = held.pulling("/images/a");
        let second = held.pulling("/images/a");
        assert_eq!(
            (&*held.told().pulling, held.told().version),
            (&["/images/a".to_owned()][..], 3)
        );
        drop(first);
        assert_eq!(held.told().version, 3);
        drop(second);
        assert_eq!((held.told().pulling.len(), held.told().version), (0, 4));
        assert!(held.woken.try_recv().is_ok(), "it is to be looked for");
        let many = (0..MOST_IMAGE_NAMES + 2).map(|number| number.to_string()).collect();
        held.tell(Some((Some(many), None)));
        assert_eq!((held.told().names.len(), held.told().more), (MOST_IMAGE_NAMES, 2));
    }
}
