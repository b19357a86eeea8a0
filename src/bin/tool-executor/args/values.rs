//! The values of flags and variables: how each is read, and what is said of one that cannot be.
//!
//! A value that is wrong is told with the name of what it came from: the flag, or the variable.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, Command};
use tool_executor::config::{
    BackgroundProcesses, Bind, HostPattern, NetworkMode, OutputOrder, Secret, ServerConfig,
    UnknownArguments, UserIds,
};
use tool_executor::format::{Format, UnreadableCalls};

/// A limit, or that there is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Limit<T>(pub(crate) Option<T>);

/// A variable: its name, and its value if it is not this program's own.
pub(crate) type Variable = (String, Option<String>);

/// The values of one argument.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Several<T>(pub(crate) Vec<T>);

/// A bind for reading.
pub(super) fn bind(text: &str) -> Result<Bind, String> {
    text.parse().map_err(|_| "SOURCE or SOURCE:PLACE, as /opt/tools or /srv/data:/data".to_owned())
}

/// One variable.
pub(crate) fn variable(text: &str) -> Result<Variable, String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || !name.chars().all(is_part) || name.starts_with(|c: char| c.is_numeric()) {
        return Err(
            "NAME or NAME=VALUE, where NAME has letters, digits and `_` and begins with no \
                    digit"
                .to_owned(),
        );
    }
    Ok((name.to_owned(), value))
}

/// A parser of values of which a variable has one a line, and a flag one alone.
#[derive(Debug)]
pub(super) struct Lines<T>(pub(super) fn(&str) -> Result<T, String>);

impl<T> Clone for Lines<T> {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Lines<T> {
    type Value = Several<T>;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Several<T>, clap::Error> {
        self.parse_ref_(command, arg, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<Several<T>, clap::Error> {
        let wrong = |right: String| {
            let text = problem(arg, value, source, &right);
            clap::Error::raw(ErrorKind::ValueValidation, text).with_cmd(command)
        };
        let text = value.to_str().ok_or_else(|| wrong("UTF-8".to_owned()))?;
        let values: Result<Vec<_>, _> = match source {
            ValueSource::EnvVariable => {
                text.lines().filter(|line| !line.trim().is_empty()).map(self.0).collect()
            }
            _ => (self.0)(text).map(|value| vec![value]),
        };
        values.map(Several).map_err(wrong)
    }
}

/// A format of tool calls.
pub(super) fn format(text: &str) -> Result<Format, String> {
    text.parse().map_err(|_| format!("one of {}", Format::ALL.map(Format::as_str).join(", ")))
}

/// What becomes of a call that cannot be read.
pub(super) fn unreadable_calls(text: &str) -> Result<UnreadableCalls, String> {
    text.parse().map_err(|_| "one of answer, skip, error".to_owned())
}

/// What becomes of an argument that a tool does not have.
pub(super) fn unknown_arguments(text: &str) -> Result<UnknownArguments, String> {
    text.parse().map_err(|_| "refuse or ignore".to_owned())
}

/// How a command's streams are shown.
pub(super) fn output_order(text: &str) -> Result<OutputOrder, String> {
    text.parse().map_err(|_| "separate or interleaved".to_owned())
}

/// What becomes of what a command leaves running.
pub(super) fn background(text: &str) -> Result<BackgroundProcesses, String> {
    text.parse().map_err(|_| "end or keep".to_owned())
}

/// What network commands have.
pub(super) fn network(text: &str) -> Result<NetworkMode, String> {
    text.parse().map_err(|_| "none, proxy or host".to_owned())
}

/// Hosts that commands may reach.
pub(super) fn host_pattern(text: &str) -> Result<HostPattern, String> {
    text.parse().map_err(|error| format!("a pattern of hosts: {error}"))
}

/// User ids for the slots.
pub(super) fn user_ids(text: &str) -> Result<UserIds, String> {
    text.parse().map_err(|_| "auto, shared, or FIRST:COUNT, as 2000000000:655360".to_owned())
}

/// A parser of values whose errors name the flag or the variable.
///
/// `parse` says of a wrong value what would be right, as a phrase that follows "must be".
pub(super) fn named<T>(parse: fn(&str) -> Result<T, String>) -> Named<T> {
    Named(parse)
}

/// See [`named`].
#[derive(Debug)]
pub(super) struct Named<T>(fn(&str) -> Result<T, String>);

impl<T> Clone for Named<T> {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Named<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        self.parse_ref_(command, arg, value, ValueSource::CommandLine)
    }

    fn parse_ref_(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
        source: ValueSource,
    ) -> Result<T, clap::Error> {
        let parsed = match value.to_str() {
            Some(text) => (self.0)(text.trim()),
            None => Err("UTF-8".to_owned()),
        };
        parsed.map_err(|right| {
            let text = problem(arg, value, source, &right);
            clap::Error::raw(ErrorKind::ValueValidation, text).with_cmd(command)
        })
    }
}

/// What is said of a wrong value. One that may hold a secret is not repeated.
fn problem(arg: Option<&Arg>, value: &OsStr, source: ValueSource, right: &str) -> String {
    let value = value.to_string_lossy();
    let variable = arg.filter(|_| source == ValueSource::EnvVariable).and_then(Arg::get_env);
    let origin = match (variable, arg) {
        (Some(name), _) => format!("the variable {}", name.to_string_lossy()),
        (None, Some(arg)) => format!("'{arg}'"),
        (None, None) => "an argument".to_owned(),
    };
    let is_secret = arg.is_some_and(Arg::is_hide_env_values_set) || value.contains('@');
    match is_secret {
        true => format!("invalid value for {origin}: it must be {right}\n"),
        false => format!("invalid value '{value}' for {origin}: it must be {right}\n"),
    }
}

/// A path for results. `-` means standard output elsewhere; here the summary is there.
pub(super) fn results_file() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match path.as_os_str() == "-" {
        true => Err("standard output has the summary; name a file, or ./- if you mean it"),
        false => Ok(path),
    })
}

pub(super) fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("a whole number of at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

pub(super) fn at_least_one_u32(text: &str) -> Result<u32, String> {
    let number = at_least_one(text)?;
    u32::try_from(number).map_err(|_| format!("at most {}", u32::MAX))
}

pub(super) fn at_least_one_u64(text: &str) -> Result<u64, String> {
    at_least_one(text).map(|number| number as u64)
}

pub(super) fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "a port from 0 to 65535".to_owned())
}

pub(super) fn address(text: &str) -> Result<std::net::IpAddr, String> {
    text.parse().map_err(|_| "an IP address, as 127.0.0.1, 0.0.0.0 or ::1".to_owned())
}

/// A host, and perhaps a port. The library reads it and says what is wrong with it.
pub(super) fn advertised(text: &str) -> Result<String, String> {
    let config = ServerConfig::new(([127, 0, 0, 1], 0)).with_advertise(text);
    let right = "HOST or HOST:PORT, as boxes.example, 10.0.0.7:8080 or [::1]:8080";
    config.check().map(|()| text.to_owned()).map_err(|_| right.to_owned())
}

/// The base URL of a server.
pub(super) fn url(text: &str) -> Result<String, String> {
    let authority = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    let authority = authority.and_then(|rest| rest.split('/').next());
    let is_one = |authority: &str| {
        !authority.is_empty() && !authority.contains(|c: char| c.is_whitespace() || c == '@')
    };
    match authority.is_some_and(is_one) {
        true => Ok(text.to_owned()),
        false => Err("a URL as http://host:port or https://host, without a password".to_owned()),
    }
}

/// A bearer token.
pub(super) fn token(text: &str) -> Result<Secret, String> {
    match !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(text.into()),
        false => Err("a token of visible ASCII characters without spaces".to_owned()),
    }
}

/// A yes or a no, in the words that the reference takes for yes, and their opposites.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "y" | "on" => Ok(true),
        "0" | "false" | "no" | "n" | "off" => Ok(false),
        _ => Err("1, true, yes, y or on, or 0, false, no, n or off".to_owned()),
    }
}

/// Seconds of a wait: up to a year.
pub(super) fn wait_seconds(text: &str) -> Result<Duration, String> {
    seconds(text, 0.0, 31_536_000.0)
}

/// Seconds without use: long enough for a client to come back.
pub(super) fn unused_seconds(text: &str) -> Result<Duration, String> {
    seconds(text, 0.1, 31_536_000.0)
}

/// How long an image may be unused: up to ten years.
pub(super) fn unused_image_seconds(text: &str) -> Result<Duration, String> {
    seconds(text, 0.0, 315_360_000.0)
}

/// The lease of an executor's slots.
pub(super) fn lease_seconds(text: &str) -> Result<Duration, String> {
    seconds(text, 1.0, 3600.0)
}

/// Seconds of grace: up to an hour.
pub(super) fn grace_seconds(text: &str) -> Result<Duration, String> {
    seconds(text, 0.0, 3600.0)
}

/// The time limit of a call: up to a day.
pub(super) fn call_seconds(text: &str) -> Result<Duration, String> {
    seconds(text, 1.0, 86_400.0)
}

fn seconds(text: &str, least: f64, most: f64) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (least..=most).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("a number of seconds from {least} to {most}")),
    }
}

/// A time that calls wait for company: up to a minute.
pub(super) fn milliseconds(text: &str) -> Result<Duration, String> {
    match text.parse::<u64>() {
        Ok(ms @ 0..=60_000) => Ok(Duration::from_millis(ms)),
        _ => Err("a whole number of milliseconds from 0 to 60000".to_owned()),
    }
}

/// Processes of a slot: with fewer than this no shell starts.
pub(super) fn processes(text: &str) -> Result<Limit<u64>, String> {
    size(text, 8)
}

/// Files of a slot: with fewer than this it is full from the beginning.
pub(super) fn files(text: &str) -> Result<Limit<u64>, String> {
    size(text, 64)
}

/// Open files of a process: with fewer than this no shell starts.
pub(super) fn open_files(text: &str) -> Result<Limit<u64>, String> {
    size(text, 16)
}

/// Memory of a slot: with less than this no shell starts.
pub(super) fn memory(text: &str) -> Result<Limit<u64>, String> {
    size(text, 16 << 20)
}

/// The size of a file.
pub(super) fn file_size(text: &str) -> Result<Limit<u64>, String> {
    size(text, 4 << 10)
}

/// The size of a file that file tools read and write. There is always a limit: it is held in
/// memory.
pub(super) fn tool_file_size(text: &str) -> Result<u64, String> {
    match size(text, 1) {
        Ok(Limit(Some(bytes))) => Ok(bytes),
        _ => Err("a number of at least 1, as 100000, 512K or 1M".to_owned()),
    }
}

/// The size of a workspace.
pub(super) fn workspace_size(text: &str) -> Result<Limit<u64>, String> {
    size(text, 64 << 10)
}

/// A whole number with K, M, G or T for powers of 1024, or `none`.
fn size(text: &str, least: u64) -> Result<Limit<u64>, String> {
    let wrong = || {
        let shown = match least {
            _ if least >= 1 << 20 => format!("{}M", least >> 20),
            _ if least >= 1 << 10 => format!("{}K", least >> 10),
            _ => least.to_string(),
        };
        format!("a number of at least {shown}, as 65536, 512M or 4G, or none")
    };
    if text.eq_ignore_ascii_case("none") {
        return Ok(Limit(None));
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let size = number.checked_mul(1 << shift).filter(|size| *size >= least);
    size.map(|size| Limit(Some(size))).ok_or_else(wrong)
}

/// Processors' worth of time.
pub(super) fn processors(text: &str) -> Result<Limit<f64>, String> {
    if text.eq_ignore_ascii_case("none") {
        return Ok(Limit(None));
    }
    match text.parse::<f64>() {
        Ok(number) if (0.01..=1e6).contains(&number) => Ok(Limit(Some(number))),
        _ => Err("a number from 0.01 to 1000000, as 1.5, or none".to_owned()),
    }
}

/// What is to be logged: a level, or a filter of `env_logger`.
pub(super) fn log_filter(text: &str) -> Result<String, String> {
    let right = || "off, error, warn, info, debug or trace, or a list as warn,module=debug";
    let is_level = |level: &str| level.parse::<log::LevelFilter>().is_ok();
    let is_directive = |directive: &str| match directive.split_once('=') {
        Some((module, level)) => !module.is_empty() && is_level(level),
        None => is_level(directive),
    };
    match text.split(',').map(str::trim).all(is_directive) {
        true => Ok(text.to_owned()),
        false => Err(right().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, expected) in [
            ("65536", 65_536),
            ("512M", 512 << 20),
            ("4g", 4 << 30),
            ("1KiB", 1024),
            ("2T", 2 << 40),
        ] {
            assert_eq!(size(text, 1), Ok(Limit(Some(expected))), "{text}");
        }
        assert_eq!(size("none", 1), Ok(Limit(None)));
        for wrong in ["", "M", "1.5G", "-1", "5 apples", "99999999T", "1MM", "\u{e9}", "0"] {
            assert!(size(wrong, 1).is_err(), "{wrong}");
        }
        assert_eq!(
            memory("15M").unwrap_err(),
            "a number of at least 16M, as 65536, 512M or 4G, or none"
        );
        assert!(memory("16M").is_ok() && processes("7").is_err() && processes("8").is_ok());
    }

    #[test]
    fn a_yes_or_a_no_is_said_in_words_and_nothing_else_is_one() {
        for yes in ["1", "true", "TRUE", "yes", "y", "On"] {
            assert_eq!(boolean(yes), Ok(true), "{yes}");
        }
        for no in ["0", "false", "no", "N", "off"] {
            assert_eq!(boolean(no), Ok(false), "{no}");
        }
        for neither in ["", "maybe", "2", "tru", "enabled"] {
            assert!(boolean(neither).is_err(), "{neither}");
        }
    }

    #[test]
    fn times_have_limits_and_are_numbers() {
        assert_eq!(call_seconds("1.5"), Ok(Duration::from_millis(1500)));
        for wrong in ["0.5", "86401", "NaN", "inf", "", "-1", "1s"] {
            assert!(call_seconds(wrong).is_err(), "{wrong}");
        }
        assert_eq!(wait_seconds("0"), Ok(Duration::ZERO));
        assert!(wait_seconds("31536001").is_err() && grace_seconds("3601").is_err());
        assert!(milliseconds("60000").is_ok() && milliseconds("60001").is_err());
    }

    #[test]
    fn a_url_has_a_host_and_no_password() {
        for right in ["http://a", "http://127.0.0.1:8080/", "https://[::1]:8443/base"] {
            assert_eq!(url(right).as_deref(), Ok(right));
        }
        for wrong in ["", "a:8080", "ftp://a", "http://", "http:///x", "http://u:p@h", "http://a b"]
        {
            assert!(url(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_log_filter_is_a_level_or_a_list_of_modules_with_levels() {
        for right in ["warn", "DEBUG", "off", "warn,tool_executor=debug", "a::b=trace, info"] {
            assert!(log_filter(right).is_ok(), "{right}");
        }
        for wrong in ["", "loud", "tool_executor=loud", "=debug", "warn,", "a=b=c"] {
            assert!(log_filter(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_value_is_told_with_its_origin_and_a_secret_is_not_repeated() {
        let arg = Arg::new("slots").long("slots").value_name("N").env("SLOTS_OF_THIS_TEST");
        let arg = arg.num_args(1);
        let said = |source| problem(Some(&arg), OsStr::new("x"), source, "right");
        assert_eq!(
            said(ValueSource::CommandLine),
            "invalid value 'x' for '--slots <N>': it must be right\n"
        );
        assert_eq!(
            said(ValueSource::EnvVariable),
            "invalid value 'x' for the variable SLOTS_OF_THIS_TEST: it must be right\n"
        );
        let secret = arg.clone().hide_env_values(true);
        for (arg, value) in [(&secret, "s3cret"), (&arg, "http://user:s3cret@host")] {
            let said = problem(Some(arg), OsStr::new(value), ValueSource::EnvVariable, "right");
            assert!(!said.contains("s3cret"), "{said}");
        }
    }
}
