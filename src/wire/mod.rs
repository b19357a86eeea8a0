//! The HTTP protocols' JSON, as serde types. Nothing else knows their field names.
//!
//! What is read is read as a stock Python peer writes it: fields may be missing or `null`, unknown
//! ones are ignored, and the text may be Python's dialect of JSON. What is written is strict JSON.

pub(crate) mod tool_server;

use serde::{Deserialize, Deserializer};

/// For fields whose `null` means the same as their absence.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
