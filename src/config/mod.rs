//! Every setting of the library, as plain data.
//!
//! One idiom for all: a struct with public fields, [`Default`], a `with_…` function for each
//! field, and serde. Its JSON is the configuration of the C ABI and of Python; the command line
//! and the environment fill in the same structs. Durations are seconds in JSON, under a name that
//! ends in `_s`; unknown keys are refused, with the keys that there are. Nothing here does
//! anything: what a value means is checked by [`ExecutorConfig::check`] and its kin, before
//! anything starts.
//!
//! The structs exist on every system and with every feature set. A part that cannot be had – the
//! embedded sandbox outside Linux, a fleet without the feature `http` – is refused at the start.
//!
//! ```
//! use tool_executor::config::ExecutorConfig;
//!
//! let config: ExecutorConfig = serde_json::from_str(
//!     r#"{"local": {"slots": 4, "limits": {"memory_bytes": null}}, "acquire_timeout_s": 90}"#,
//! )?;
//! assert_eq!(config.local.unwrap().limits.memory_bytes, None); // no limit
//!
//! let error = serde_json::from_str::<ExecutorConfig>(r#"{"local": {"slot": 4}}"#).unwrap_err();
//! assert!(error.to_string().contains("in \"local\": unknown field `slot`, expected one of `slots`"));
//! # Ok::<(), serde_json::Error>(())
//! ```

mod advertise;
mod backends;
mod bind;
mod executor;
mod fleet;
mod images;
mod limits;
mod local;
mod network;
mod secret;
mod server;
mod slurm;
mod tool_server;
mod user_ids;
mod variables;

#[cfg(feature = "server")]
pub(crate) use advertise::Advertise;
pub use backends::BackendConfig;
pub(crate) use backends::{MOST_BACKENDS, check_backend_name};
pub use bind::Bind;
pub(crate) use executor::MOST_THREADS;
pub use executor::{BatchPolicy, ExecutorConfig, LostWorkspace, ToolsConfig};
pub use fleet::FleetConfig;
pub use images::{ImagePlatform, ImagesConfig};
pub use limits::SlotLimits;
pub use local::LocalConfig;
pub use network::{HostPattern, NetworkMode};
pub use secret::Secret;
pub use server::ServerConfig;
pub use slurm::{SlurmConfig, SlurmJobs};
pub use tool_server::ToolServerConfig;
pub use user_ids::UserIds;
pub(crate) use variables::variable_problem;

pub use crate::tool::{BackgroundProcesses, OutputOrder, Policy, UnknownArguments, UnknownSetting};

use crate::tool::JsonObject;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde_json::Value;

/// Reads a part of a configuration; its errors say which part they are about.
fn part<'de, D, T>(name: &str, deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: DeserializeOwned,
{
    let mut value = Value::deserialize(deserializer)?;
    if let Value::Object(object) = &mut value {
        leave_out_nulls(object);
    }
    if value.is_array() {
        // Serde would take it for the fields in their order.
        let text = format!("in {name:?}: invalid type: an array, expected an object");
        return Err(D::Error::custom(text));
    }
    serde_json::from_value(value).map_err(|error| D::Error::custom(format!("in {name:?}: {error}")))
}

/// Takes a setting that is `null` for one that is not given. Not within the limits of slots, where
/// it means that there is none.
pub(crate) fn leave_out_nulls(object: &mut JsonObject) {
    object.retain(|_, value| !value.is_null());
}

/// A function for `deserialize_with` that reads the part of this name.
macro_rules! named_part {
    ($function:ident, $name:literal) => {
        fn $function<'de, D, T>(deserializer: D) -> Result<T, D::Error>
        where
            D: serde::Deserializer<'de>,
            T: serde::de::DeserializeOwned,
        {
            super::part($name, deserializer)
        }
    };
}
use named_part;
