//! The executor as a user of the library sees it, over backends that do what a test needs.
//! `sandbox` and some others run real processes in the embedded sandbox.

#[cfg(target_os = "linux")]
mod alone;
mod artifacts;
#[cfg(target_os = "linux")]
mod background;
mod begin;
#[cfg(target_os = "linux")]
mod caller;
#[cfg(all(target_os = "linux", feature = "server"))]
mod calls;
mod close;
mod completion;
#[cfg(target_os = "linux")]
mod deaths;
mod descriptors;
mod door;
#[cfg(target_os = "linux")]
mod escape;
#[cfg(feature = "server")]
mod executor_api;
mod fakes;
#[cfg(target_os = "linux")]
mod files;
#[cfg(all(target_os = "linux", feature = "server"))]
mod fleet;
#[cfg(target_os = "linux")]
mod forks;
mod handlers;
#[cfg(target_os = "linux")]
mod host;
mod http;
#[cfg(feature = "server")]
mod http_client;
#[cfg(target_os = "linux")]
mod identity;
#[cfg(target_os = "linux")]
mod images;
#[cfg(all(target_os = "linux", feature = "server"))]
mod interrupt;
#[cfg(target_os = "linux")]
mod isolation;
#[cfg(target_os = "linux")]
mod kernel;
mod kills;
#[cfg(all(target_os = "linux", feature = "server"))]
mod level;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod machine;
#[cfg(target_os = "linux")]
mod network;
mod once;
mod order;
mod own_limits;
#[cfg(all(target_os = "linux", feature = "server"))]
#[path = "../program/mod.rs"]
#[allow(dead_code, reason = "what the other tests need of it")]
mod program;
#[cfg(target_os = "linux")]
mod provided;
#[cfg(all(target_os = "linux", feature = "server"))]
mod proxy;
#[cfg(target_os = "linux")]
mod pulls;
#[cfg(target_os = "linux")]
#[allow(dead_code, reason = "what the other tests need of it")]
mod registry;
#[cfg(target_os = "linux")]
mod sandbox;
#[cfg(all(feature = "server", target_os = "linux"))]
mod sandbox_api;
#[cfg(target_os = "linux")]
mod seccomp;
#[cfg(all(target_os = "linux", feature = "server"))]
mod several;
mod slots;
#[cfg(all(target_os = "linux", feature = "server"))]
mod slow;
#[cfg(all(target_os = "linux", feature = "server"))]
mod slurm;
mod snapshots;
#[cfg(target_os = "linux")]
mod specs;
#[cfg(target_os = "linux")]
mod stopped;
#[cfg(all(target_os = "linux", feature = "server"))]
mod threads;
mod tls;
mod tool_server;
#[cfg(target_os = "linux")]
mod users;
