//! What network a sandbox's commands have, and whom they may reach by it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ConfigError;

/// What network a slot's commands have, where their call allows them one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum NetworkMode {
    /// A loopback interface of their own, and nothing else.
    None,
    /// A loopback interface of their own, and on it an HTTP proxy by which they reach public hosts.
    /// What does not use the proxy finds the network unreachable.
    #[default]
    Proxy,
    /// The host's network: its loopback interface with all services that listen there, and those of
    /// other slots.
    Host,
}

impl NetworkMode {
    /// Every value, the default first.
    pub const ALL: &[Self] = &[Self::Proxy, Self::None, Self::Host];

    /// Its name, as in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Proxy => "proxy",
            Self::Host => "host",
        }
    }
}

impl NetworkMode {
    /// What is so on two machines: the one that lets commands reach more.
    pub(crate) fn wider(self, other: Self) -> Self {
        let rank = |mode| match mode {
            Self::None => 0,
            Self::Proxy => 1,
            Self::Host => 2,
        };
        if rank(self) >= rank(other) { self } else { other }
    }
}

impl fmt::Display for NetworkMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for NetworkMode {
    type Err = ConfigError;

    fn from_str(name: &str) -> Result<Self, ConfigError> {
        let found = Self::ALL.iter().copied().find(|mode| mode.as_str() == name);
        found.ok_or_else(|| ConfigError::new(format!("{name:?} is none of none, proxy, host")))
    }
}

/// Hosts that commands may reach through the proxy: `PATTERN[:PORT]`. Read from and written as
/// text.
///
/// | pattern | allows |
/// |---|---|
/// | `*` | every host with a public address |
/// | `packages.example` | the host of this name, at its public addresses |
/// | `*.packages.example` | every host below this name, at their public addresses |
/// | `10.1.2.3`, `10.0.0.0/8`, `[fd00::1]` | these addresses, private and loopback ones too |
///
/// A name allows no private address: whoever answers for the name could name any. Give the address
/// beside it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern {
    target: Target,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Target {
    Public,
    Name(String),
    Below(String),
    Addresses { first: IpAddr, prefix: u8 },
}

impl HostPattern {
    /// Whether it allows a host of this lower-case name, at its public addresses.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn allows_name(&self, name: &str, port: u16) -> bool {
        let fits = match &self.target {
            Target::Public => true,
            Target::Name(allowed) => name == allowed,
            Target::Below(parent) => {
                name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
            Target::Addresses { .. } => false,
        };
        fits && self.fits_port(port)
    }

    /// Whether it allows all public addresses.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code))]
    pub(crate) fn allows_public(&self, port: u16) -> bool {
        self.target == Target::Public && self.fits_port(port)
    }

    /// Whether it names this address and port, whatever kind of address that is. Port 0 stands for
    /// any.
    pub fn names(&self, address: IpAddr, port: u16) -> bool {
        let Target::Addresses { first, prefix } = self.target else { return false };
        let fits = match (first, address) {
            (IpAddr::V4(first), IpAddr::V4(address)) => {
                (first.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(prefix)
            }
            (IpAddr::V6(first), IpAddr::V6(address)) => {
                (first.to_bits() ^ address.to_bits()).leading_zeros() >= u32::from(prefix)
            }
            _ => false,
        };
        fits && self.fits_port(port)
    }

    fn fits_port(&self, port: u16) -> bool {
        port == 0 || self.port.is_none_or(|allowed| allowed == port)
    }
}

impl FromStr for HostPattern {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let wrong = |why: &str| {
            ConfigError::new(format!(
                "{text:?} is no pattern of hosts: {why}; give NAME, *.NAME, *, ADDRESS or \
                 ADDRESS/BITS, and perhaps :PORT"
            ))
        };
        if text.contains("//") {
            return Err(wrong("it is a URL"));
        }
        let (host, port) = split_port(text).ok_or_else(|| wrong("a bracket is not closed"))?;
        let port = match port {
            Some(port) => match port.parse() {
                Ok(number) if number > 0 && !port.starts_with('+') => Some(number),
                _ => return Err(wrong("the port is not a number from 1 to 65535")),
            },
            None => None,
        };
        let target = match host.strip_prefix("*.") {
            _ if host == "*" => Target::Public,
            Some(parent) => Target::Below(name(parent).map_err(wrong)?),
            None => match addresses(host) {
                Some(found) => found.map_err(wrong)?,
                None => Target::Name(name(host).map_err(wrong)?),
            },
        };
        Ok(Self { target, port })
    }
}

/// The host, without brackets, and the port. `None` where a bracket is not closed.
fn split_port(text: &str) -> Option<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((host, Some(port))),
            None if rest.is_empty() => Some((host, None)),
            None => None,
        };
    }
    match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => Some((host, Some(port))),
        // None, or an IPv6 address without brackets.
        _ => Some((text, None)),
    }
}

/// The addresses that a host stands for, if it is one or a range of them.
fn addresses(host: &str) -> Option<Result<Target, &'static str>> {
    let (address, bits) = match host.split_once('/') {
        Some((address, bits)) => (address, Some(bits)),
        None => (host, None),
    };
    let Ok(first) = address.parse::<IpAddr>() else {
        return bits.map(|_| Err("what stands before the slash is no address"));
    };
    let most = if first.is_ipv4() { 32 } else { 128 };
    let prefix = match bits.map(str::parse::<u8>) {
        None => most,
        Some(Ok(bits)) if bits <= most => bits,
        Some(_) => return Some(Err("an address does not have so many bits")),
    };
    // As the connection is made to it.
    let (first, prefix) = match first {
        IpAddr::V6(six) => match six.to_ipv4_mapped() {
            Some(four) if prefix >= 96 => (IpAddr::V4(four), prefix - 96),
            _ => (first, prefix),
        },
        IpAddr::V4(_) => (first, prefix),
    };
    let masked = match first {
        IpAddr::V4(four) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(four.to_bits() & mask))
        }
        IpAddr::V6(six) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(six.to_bits() & mask))
        }
    };
    Some(Ok(Target::Addresses { first: masked, prefix }))
}

/// A host's name in lower case.
fn name(text: &str) -> Result<String, &'static str> {
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let is_letter = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let mut labels = name.split('.');
    if name.len() > 253 || !labels.all(|label| !label.is_empty() && label.chars().all(is_letter)) {
        return Err("it is neither an address nor a name");
    }
    if name.rsplit('.').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_digit())) {
        return Err("it is not an address, and a name does not end in a number");
    }
    Ok(name)
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::Public => f.write_str("*")?,
            Target::Name(name) => f.write_str(name)?,
            Target::Below(parent) => write!(f, "*.{parent}")?,
            Target::Addresses { first: first @ IpAddr::V4(_), prefix: 32 } => write!(f, "{first}")?,
            Target::Addresses { first: first @ IpAddr::V4(_), prefix } => {
                write!(f, "{first}/{prefix}")?;
            }
            Target::Addresses { first, prefix: 128 } => write!(f, "[{first}]")?,
            Target::Addresses { first, prefix } => write!(f, "[{first}/{prefix}]")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl TryFrom<String> for HostPattern {
    type Error = ConfigError;

    fn try_from(text: String) -> Result<Self, ConfigError> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> Self {
        pattern.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> HostPattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_pattern_is_written_as_it_is_read() {
        for (text, written) in [
            ("*", "*"),
            ("*:443", "*:443"),
            ("Packages.Example.", "packages.example"),
            ("*.packages.example:443", "*.packages.example:443"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("0.0.0.0/0:80", "0.0.0.0/0:80"),
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("::1", "[::1]"),
            ("[::1]:80", "[::1]:80"),
            ("fd00::/8", "[fd00::/8]"),
            ("[fd00::7/8]:443", "[fd00::/8]:443"),
            ("[::ffff:10.0.0.1]:1", "10.0.0.1:1"),
        ] {
            assert_eq!(pattern(text).to_string(), written, "{text}");
            assert_eq!(pattern(written), pattern(text));
        }
        let json = serde_json::to_string(&pattern("*.a.b:1")).unwrap();
        assert_eq!(json, "\"*.a.b:1\"");
        assert_eq!(serde_json::from_str::<HostPattern>(&json).unwrap(), pattern("*.a.b:1"));
    }

    #[test]
    fn what_is_no_pattern_is_told_why() {
        for (text, why) in [
            ("https://packages.example", "a URL"),
            ("", "neither an address nor a name"),
            ("a b", "neither an address nor a name"),
            ("a*.b", "neither an address nor a name"),
            ("*.", "neither an address nor a name"),
            ("1.2.3", "does not end in a number"),
            ("10.0.0.0/33", "so many bits"),
            ("packages.example/simple", "before the slash is no address"),
            ("packages.example:0", "from 1 to 65535"),
            ("packages.example:http", "from 1 to 65535"),
            ("packages.example:", "from 1 to 65535"),
            ("[::1", "bracket"),
            ("[::1]80", "bracket"),
        ] {
            let error = text.parse::<HostPattern>().unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_pattern_allows_what_it_names_and_nothing_else() {
        for (text, name, port, expected) in [
            ("*", "a.b", 1, true),
            ("*:443", "a.b", 80, false),
            ("packages.example", "packages.example", 1, true),
            ("packages.example", "x.packages.example", 1, false),
            ("*.packages.example", "x.y.packages.example", 1, true),
            ("*.packages.example", "packages.example", 1, false),
            ("*.packages.example", "evilpackages.example", 1, false),
            ("10.0.0.1", "10.0.0.1", 1, false),
        ] {
            assert_eq!(pattern(text).allows_name(name, port), expected, "{text} {name}");
        }
        for (text, address, port, expected) in [
            ("10.0.0.0/8", "10.255.0.1", 5, true),
            ("10.0.0.0/8", "11.0.0.1", 5, false),
            ("0.0.0.0/0", "127.0.0.1", 5, true),
            ("0.0.0.0/0", "::1", 5, false),
            ("::/0", "fe80::1", 5, true),
            ("127.0.0.1:5", "127.0.0.1", 5, true),
            ("127.0.0.1:5", "127.0.0.1", 6, false),
            ("*", "10.0.0.1", 6, false),
        ] {
            let address = address.parse().unwrap();
            assert_eq!(pattern(text).names(address, port), expected, "{text} {address}");
        }
    }

    #[test]
    fn a_mode_is_read_by_the_name_that_it_is_written_with() {
        for &mode in NetworkMode::ALL {
            assert_eq!(mode.as_str().parse::<NetworkMode>().unwrap(), mode);
            assert_eq!(serde_json::to_value(mode).unwrap(), mode.as_str());
        }
        assert!("maybe".parse::<NetworkMode>().unwrap_err().to_string().contains("proxy"));
    }
}
