//! How much of the disk images have: beyond a cap those go that were not used for longest.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{Mode, OFlags};

use super::shelf::Claimed;
use super::{ImageStore, Pruned};
use crate::interrupt::Interrupt;
use crate::sandbox::image::{Digest, ImageError};

/// Held by the program that makes room: two at once would remove twice of what one has to.
const LOCK: &str = "cap.lock";
/// How long the other one is waited for.
const LOCK_LIMIT: Duration = Duration::from_secs(60);
const BEAT: Duration = Duration::from_millis(20);

impl ImageStore {
    /// Removes images, those first that were not used for longest, until the files of all that are
    /// left have at most so many bytes; and the layers that none has. What a program or a snapshot
    /// uses stays, also if there is more of it.
    ///
    /// # Errors
    /// [`ImageError::Io`], [`ImageError::Interrupted`].
    pub fn shrink(&self, most: u64, interrupt: &Interrupt) -> Result<Pruned, ImageError> {
        let _lock = self.lock_cap(interrupt)?;
        let (mut removed, mut ledger) = (Pruned::default(), Ledger::default());
        let mut images = Vec::new();
        let now = SystemTime::now();
        for name in self.0.images.names()? {
            let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else { continue };
            let Some(pin) = self.0.images.pin(&name, interrupt)? else { continue };
            let Some(record) = self.record(&digest)? else { continue };
            let layers = record.layers.into_iter().map(|layer| (layer.entry, layer.layer.bytes));
            let layers: Vec<_> = layers.collect();
            ledger.add(&layers);
            images.push((last_use(pin.used().ok(), now), digest, layers));
        }
        images.sort_unstable_by_key(|(used, digest, _)| (*used, *digest));
        for (_, digest, layers) in images {
            if ledger.bytes <= most {
                break;
            }
            match self.0.images.claim(&digest.hex(), interrupt)? {
                Claimed::Ours(claim) => {
                    self.remove_claimed(claim, digest, &mut removed, interrupt)?;
                    ledger.remove(&layers);
                }
                Claimed::Missing => ledger.remove(&layers),
                Claimed::InUse => removed.in_use += 1,
            }
        }
        self.remove_unneeded(removed, interrupt)
    }

    /// Removes what is more than the store may have when so many bytes come in beside what it has.
    /// What cannot be done is logged: the image is added all the same.
    pub(super) fn keep_within_cap(&self, coming: u64, interrupt: &Interrupt) {
        let Some(most) = self.1.store_bytes else { return };
        match self.shrink(most.saturating_sub(coming), interrupt) {
            Ok(removed) if removed.images.is_empty() && removed.in_use == 0 => {}
            Ok(removed) => {
                let (images, bytes, in_use) = (removed.images.len(), removed.bytes, removed.in_use);
                log::info!(
                    "the image store may have {most} bytes: {images} images that were not used \
                     for longest were removed, {bytes} bytes; {in_use} are in use, and stay"
                );
            }
            Err(ImageError::Interrupted) => {}
            Err(error) => log::warn!("the image store cannot be kept small: {error}"),
        }
    }

    fn lock_cap(&self, interrupt: &Interrupt) -> Result<File, ImageError> {
        let path = self.0.path.join(LOCK);
        let failed = |error: std::io::Error| ImageError::io("lock", &path, error);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock: File = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|errno| failed(errno.into()))?
            .into();
        let deadline = Instant::now() + LOCK_LIMIT;
        loop {
            match lock.try_lock() {
                Ok(()) => return Ok(lock),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(failed(rustix::io::Errno::TIMEDOUT.into()));
                }
            }
            if interrupt.wait_timeout(BEAT) {
                return Err(ImageError::Interrupted);
            }
        }
    }
}

/// When an image was used last. A clock that was set back since makes it no younger than those that
/// are used now, and one that is not known is the oldest.
fn last_use(noted: Option<SystemTime>, now: SystemTime) -> SystemTime {
    noted.map_or(SystemTime::UNIX_EPOCH, |noted| noted.min(now))
}

/// The bytes of layers, of which several images may have the same. Pure.
#[derive(Debug, Default)]
struct Ledger {
    /// Of each layer its bytes, and how many images have it.
    layers: HashMap<String, (u64, usize)>,
    bytes: u64,
}

impl Ledger {
    fn add(&mut self, layers: &[(String, u64)]) {
        for (name, bytes) in layers {
            let (_, images) = self.layers.entry(name.clone()).or_insert((*bytes, 0));
            *images += 1;
            if *images == 1 {
                self.bytes = self.bytes.saturating_add(*bytes);
            }
        }
    }

    fn remove(&mut self, layers: &[(String, u64)]) {
        for (name, _) in layers {
            let Some((bytes, images)) = self.layers.get_mut(name) else { continue };
            *images -= 1;
            if *images == 0 {
                self.bytes = self.bytes.saturating_sub(*bytes);
                self.layers.remove(name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn layers_that_images_share_count_once(
            images in prop::collection::vec(prop::collection::vec(0_u64..12, 1..6), 0..12),
            removed in prop::collection::vec(any::<bool>(), 12),
        ) {
            // The same layer may be in an image twice.
            let layers = |image: &Vec<u64>| -> Vec<_> {
                image.iter().map(|n| (n.to_string(), n * 100 + 1)).collect()
            };
            let mut ledger = Ledger::default();
            images.iter().for_each(|image| ledger.add(&layers(image)));
            let mut left = BTreeMap::new();
            for (image, removed) in images.iter().zip(&removed) {
                match removed {
                    true => ledger.remove(&layers(image)),
                    false => left.extend(image.iter().map(|n| (*n, n * 100 + 1))),
                }
            }
            prop_assert_eq!(ledger.bytes, left.values().sum::<u64>());
        }
    }

    #[test]
    fn a_clock_that_jumps_makes_no_image_the_last_for_ever() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let second = Duration::from_secs(1);
        assert_eq!(last_use(Some(now + second * 500), now), now);
        assert_eq!(last_use(Some(now - second), now), now - second);
        assert_eq!(last_use(None, now), SystemTime::UNIX_EPOCH);
    }
}
