//! Durations as JSON numbers, for `#[serde(with = …)]`: seconds, as every setting has them.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserializer, Error, Unexpected, Visitor};
use serde::ser::Serializer;

/// The longest duration that is read: a year. Beyond it sums of times could overflow.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Writes a duration.
pub(crate) fn serialize<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(time.as_secs_f64())
}

/// Reads a duration of up to a year.
pub(crate) fn deserialize<'de, D>(deserializer: D) -> Result<Duration, D::Error>
where
    D: Deserializer<'de>,
{
    deserializer.deserialize_f64(Seconds)
}

/// The same for a duration that may be missing, or `null`.
pub(crate) mod option {
    use super::*;

    /// Writes a duration, or `null`.
    pub(crate) fn serialize<S>(time: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
    {
        match time {
            Some(time) => serializer.serialize_some(&time.as_secs_f64()),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a duration of up to a year, or `null`.
    pub(crate) fn deserialize<'de, D>(deserializer: D) -> Result<Option<Duration>, D::Error>
    where
        D: Deserializer<'de>,
    {
        struct Optional;
        impl<'de> Visitor<'de> for Optional {
            type Value = Option<Duration>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                Seconds.expecting(f)
            }

            fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_some<D: Deserializer<'de>>(self, given: D) -> Result<Self::Value, D::Error> {
                super::deserialize(given).map(Some)
            }
        }
        deserializer.deserialize_option(Optional)
    }
}

/// The same as milliseconds, to the microsecond.
pub(crate) mod milliseconds {
    use super::*;
    use serde::Deserialize;

    /// Writes a duration.
    pub(crate) fn serialize<S>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error>
    where
        S: Serializer,
    {
        serializer.serialize_f64(time.as_micros() as f64 / 1000.0)
    }

    /// Reads a duration of up to a year.
    pub(crate) fn deserialize<'de, D>(deserializer: D) -> Result<Duration, D::Error>
    where
        D: Deserializer<'de>,
    {
        let ms = f64::deserialize(deserializer)?;
        let time = Duration::try_from_secs_f64(ms / 1000.0).ok().filter(|time| *time <= LONGEST);
        // To the microsecond, as it was written.
        let time =
            time.map(|time| Duration::from_micros((time.as_secs_f64() * 1e6).round() as u64));
        time.ok_or_else(|| D::Error::custom(format!("{ms} is no number of milliseconds")))
    }
}

struct Seconds;

impl Visitor<'_> for Seconds {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a number of seconds from 0 to {}", LONGEST.as_secs())
    }

    fn visit_f64<E: Error>(self, seconds: f64) -> Result<Duration, E> {
        if (0.0..=LONGEST.as_secs_f64()).contains(&seconds) {
            return Ok(Duration::from_secs_f64(seconds));
        }
        Err(E::invalid_value(Unexpected::Float(seconds), &self))
    }

    fn visit_u64<E: Error>(self, seconds: u64) -> Result<Duration, E> {
        self.visit_f64(seconds as f64)
    }

    fn visit_i64<E: Error>(self, seconds: i64) -> Result<Duration, E> {
        self.visit_f64(seconds as f64)
    }
}
