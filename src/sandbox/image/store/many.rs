//! Several images at a time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::{ImageStore, ImportStep, StoredImage};
use crate::interrupt::Interrupt;
use crate::sandbox::image::{ImageError, ImageSource};
use crate::workers::Workers;

/// Is told of what is done with the source of this number.
type OnStep = Arc<dyn Fn(usize, &ImportStep) + Send + Sync>;

/// How long the threads may take to end when all is done.
const END_LIMIT: Duration = Duration::from_secs(10);

impl ImageStore {
    /// As [`import`](Self::import) for each of several sources, as many at a time as
    /// [`ImagesConfig::parallel`](crate::config::ImagesConfig::parallel) says: what became of each,
    /// in their order. `on_step` is called from several threads. Blocks until all are done.
    ///
    /// # Errors
    /// [`ImageError::Io`] where no threads can be started.
    pub fn import_all(
        &self,
        sources: Vec<ImageSource>,
        interrupt: &Interrupt,
        on_step: OnStep,
    ) -> Result<Vec<Result<StoredImage, ImageError>>, ImageError> {
        let count = sources.len();
        let threads = self.1.parallel.clamp(1, count.max(1));
        let workers = Workers::start("tool-pull", threads)
            .map_err(|error| ImageError::io("start threads for", self.path(), error))?;
        // There is room for all.
        let (done, results) = bounded(count);
        for (number, source) in sources.into_iter().enumerate() {
            let (store, interrupt) = (self.clone(), interrupt.clone());
            let (done, on_step) = (done.clone(), on_step.clone());
            workers.spawn(move || {
                let imported = match interrupt.is_interrupted() {
                    true => Err(ImageError::Interrupted),
                    false => {
                        store.import(&source, &[], &interrupt, &mut |step| on_step(number, step))
                    }
                };
                let _ = done.send((number, imported));
            });
        }
        drop(done);
        // Each import ends soon after the interrupt, and the channel with the last of them.
        let mut all: Vec<_> = (0..count).map(|_| None).collect();
        for (number, imported) in results {
            all[number] = Some(imported);
        }
        workers.close(Instant::now() + END_LIMIT);
        let lost = || {
            let error = io::Error::other("the thread that did it has panicked");
            Err(ImageError::io("use", self.path(), error))
        };
        Ok(all.into_iter().map(|imported| imported.unwrap_or_else(lost)).collect())
    }
}
