//! When a certificate is valid: just so much of X.509 (RFC 5280) as that takes.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment, in UTC; compares as time does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Moment {
    year: u32,
    month: u32,
    day: u32,
    hour: u32,
    minute: u32,
    second: u32,
}

/// From when until when a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    from: Moment,
    until: Moment,
}

impl Validity {
    /// Whether it is valid now.
    ///
    /// # Errors
    /// It is not; why, as a phrase about the certificate.
    pub(super) fn check(&self, now: SystemTime) -> Result<(), String> {
        let now = Moment::of(now);
        if now > self.until {
            return Err(format!("has expired: it was valid until {}", self.until));
        }
        if now < self.from {
            return Err(format!("is not valid before {}, by this machine's clock", self.from));
        }
        Ok(())
    }
}

/// When this certificate (DER) is valid, if it is one.
pub(super) fn of(certificate: &[u8]) -> Option<Validity> {
    const SEQUENCE: u8 = 0x30;
    const VERSION: u8 = 0xa0;
    let (certificate, _) = value(certificate, SEQUENCE)?;
    let (mut fields, _) = value(certificate, SEQUENCE)?;
    if let Some((_, rest)) = value(fields, VERSION) {
        fields = rest;
    }
    // The serial number, the algorithm of the signature, the issuer.
    for tag in [0x02, SEQUENCE, SEQUENCE] {
        fields = value(fields, tag)?.1;
    }
    let (validity, _) = value(fields, SEQUENCE)?;
    let (from, rest) = moment(validity)?;
    let (until, _) = moment(rest)?;
    Some(Validity { from, until })
}

/// The value at the beginning, which must have this tag, and what follows it.
fn value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&found, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

/// The moment at the beginning, and what follows it.
fn moment(der: &[u8]) -> Option<(Moment, &[u8])> {
    const UTC_TIME: u8 = 0x17;
    const GENERALIZED_TIME: u8 = 0x18;
    let (text, rest, digits) = match value(der, UTC_TIME) {
        Some((text, rest)) => (text, rest, 2),
        None => value(der, GENERALIZED_TIME).map(|(text, rest)| (text, rest, 4))?,
    };
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    if text.len() != digits + 10 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number = |from: usize, to: usize| text[from..to].parse::<u32>().ok();
    let year = match (number(0, digits)?, digits) {
        (year, 2) if year < 50 => 2000 + year,
        (year, 2) => 1900 + year,
        (year, _) => year,
    };
    let part = |index: usize| number(digits + 2 * index, digits + 2 * index + 2);
    let (month, day, hour, minute, second) = (part(0)?, part(1)?, part(2)?, part(3)?, part(4)?);
    Some((Moment { year, month, day, hour, minute, second }, rest))
}

impl Moment {
    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let (mut days, seconds) = (since / 86_400, (since % 86_400) as u32);
        let is_leap = |year: u32| {
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
        };
        let mut year = 1970;
        loop {
            let length = if is_leap(year) { 366 } else { 365 };
            if days < length || year == 9999 {
                break;
            }
            days -= length;
            year += 1;
        }
        let february = if is_leap(year) { 29 } else { 28 };
        let mut month = 1;
        for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30] {
            if days < length {
                break;
            }
            days -= length;
            month += 1;
        }
        Self {
            year,
            month,
            day: days as u32 + 1,
            hour: seconds / 3600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
        }
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second } = self;
        write!(f, "{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn moments_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_735_689_599, "2024-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!(Moment::of(time).to_string(), text);
        }
    }

    #[test]
    fn both_forms_of_a_time_are_read() {
        for (tag, text, shown) in [
            (0x17, "210203040506Z", Some("2021-02-03 04:05:06 UTC")),
            (0x17, "500203040506Z", Some("1950-02-03 04:05:06 UTC")),
            (0x18, "20510203040506Z", Some("2051-02-03 04:05:06 UTC")),
            (0x18, "210203040506Z", None),
            (0x17, "2102030405+6Z", None),
            (0x17, "210203040506", None),
            (0x04, "210203040506Z", None),
        ] {
            let der = [&[tag, text.len() as u8], text.as_bytes()].concat();
            let read = moment(&der).map(|(moment, _)| moment.to_string());
            assert_eq!(read.as_deref(), shown, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_much_for_it(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = of(&bytes);
            let _ = of(&[&[0x30, 0x84, 0, 0, 0, bytes.len() as u8], &bytes[..]].concat());
        }

        #[test]
        fn later_is_greater(one in 0u64..1 << 38, other in 0u64..1 << 38) {
            let moment = |seconds| Moment::of(UNIX_EPOCH + Duration::from_secs(seconds));
            prop_assume!(one.max(other) < 253_402_300_800);
            prop_assert_eq!(one.cmp(&other), moment(one).cmp(&moment(other)));
        }
    }
}
