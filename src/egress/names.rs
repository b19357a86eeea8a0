//! Looks names up, each on a thread of its own, `tool-egress-dns`.
//!
//! The system's look-up has no deadline and cannot be stopped, so nothing waits for one: who asked
//! has a deadline of its own, and a thread that hangs is left behind at the end. How many there are
//! is decided by `turns`.

use std::io;
use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Instant;

use crate::thread::OwnedThread;
use crate::workers::guarded;

/// Looks a name up. Blocks, for as long as it likes.
pub(super) type Resolver = dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync;

/// How many addresses of a name are tried.
const MOST_ADDRESSES: usize = 6;

/// As the system does it.
pub(super) fn of_system() -> Arc<Resolver> {
    Arc::new(|name: &str| Ok((name, 0).to_socket_addrs()?.map(|found| found.ip()).collect()))
}

/// The threads that look up, among them some that have ended.
#[derive(Default)]
pub(super) struct LookUps(Vec<OwnedThread>);

impl LookUps {
    /// Looks a name up, and tells on a thread of its own what was found: each address once, or why
    /// there is none.
    ///
    /// # Errors
    /// There is no thread to be had; then nothing is told.
    pub(super) fn start(
        &mut self,
        resolver: &Arc<Resolver>,
        name: String,
        tell: impl FnOnce(Result<Vec<IpAddr>, String>) + Send + 'static,
    ) -> io::Result<()> {
        self.0.retain_mut(|thread| !thread.join_until(Instant::now()));
        let resolver = resolver.clone();
        let body = move || {
            let found =
                guarded(|| resolver(&name)).unwrap_or_else(|text| Err(io::Error::other(text)));
            let found = found.map_err(|error| error.to_string()).and_then(|found| {
                let mut addresses = Vec::new();
                for address in found {
                    if addresses.len() < MOST_ADDRESSES && !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                if addresses.is_empty() {
                    Err("it has no address".to_owned())
                } else {
                    Ok(addresses)
                }
            });
            tell(found);
        };
        self.0.push(OwnedThread::spawn("tool-egress-dns", body)?);
        Ok(())
    }
}

impl Drop for LookUps {
    fn drop(&mut self) {
        for mut thread in self.0.drain(..) {
            if !thread.join_until(Instant::now()) {
                thread.detach();
            }
        }
    }
}
