//! Whom a machine may reach. Pure.
//!
//! A name is asked about twice: before it is looked up, since a look-up alone carries its text
//! outside; and for each address that was found, which is the one that a connection is made to.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::address::{self, Class};
use crate::config::HostPattern;

/// A host as a request names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Host {
    /// By its name, in lower case.
    Name(String),
    /// By its address, in canonical form.
    Address(IpAddr),
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(four)) => write!(f, "{four}"),
            Self::Address(IpAddr::V6(six)) => write!(f, "[{six}]"),
        }
    }
}

/// Why a host is not reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The operator's list does not have it.
    NotAllowed,
    /// The list of the machine's trajectory does not have it.
    NotAsked,
    /// Its address is of this kind.
    Address(IpAddr, Class),
    /// Its address is one of this machine's own.
    Own(IpAddr),
}

impl Refusal {
    /// A few words, for a status line.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::NotAllowed | Self::NotAsked => "Host not allowed".to_owned(),
            Self::Address(_, class) => format!("Refused: {class}"),
            Self::Own(_) => "Refused: an address of the host itself".to_owned(),
        }
    }

    /// What a person needs to know of it. `asked` is the host and the port of the request.
    pub(super) fn text(&self, asked: &str) -> String {
        let addressed = |address: &IpAddr, kind: &dyn fmt::Display| {
            format!(
                "{asked} is refused: {address} is {kind}; sandboxes reach public addresses only, \
                 unless the operator allows this one by its address (--allow-host)"
            )
        };
        match self {
            Self::NotAllowed => {
                format!("{asked} is not among the hosts that the operator allows (--allow-host)")
            }
            Self::NotAsked => format!(
                "{asked} is not among the hosts that this trajectory may reach (allow_hosts of its \
                 spec)"
            ),
            Self::Address(address, class) => addressed(address, class),
            Self::Own(address) => addressed(address, &"an address of the host itself"),
        }
    }
}

/// What the operator allows.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    /// None: every host with a public address.
    patterns: Vec<HostPattern>,
}

impl Rules {
    pub(super) fn new(patterns: &[HostPattern]) -> Self {
        Self { patterns: patterns.to_vec() }
    }

    /// Whether this name may be looked up.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn check_name(&self, name: &str, port: u16) -> Result<(), Refusal> {
        let allows = |pattern: &HostPattern| pattern.allows_name(name, port);
        match self.patterns.is_empty() || self.patterns.iter().any(allows) {
            true => Ok(()),
            false => Err(Refusal::NotAllowed),
        }
    }

    /// The same where a trajectory has a list of its own.
    ///
    /// # Errors
    /// One of the two does not have it.
    pub(super) fn check_name_with(
        &self,
        own: Option<&Self>,
        name: &str,
        port: u16,
    ) -> Result<(), Refusal> {
        self.check_name(name, port)?;
        let asked = own.map_or(Ok(()), |own| own.check_name(name, port));
        asked.map_err(|_| Refusal::NotAsked)
    }

    /// Whether a connection to this address may be made for a request that names `host`, whose name
    /// was [checked](Self::check_name). `is_own` says whether an address is this machine's.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn check_address(
        &self,
        host: &Host,
        address: SocketAddr,
        is_own: impl FnOnce(IpAddr) -> bool,
    ) -> Result<(), Refusal> {
        let (ip, port) = (address::canonical(address.ip()), address.port());
        if self.patterns.iter().any(|pattern| pattern.names(ip, port)) {
            return Ok(());
        }
        let public = self.patterns.is_empty()
            || matches!(host, Host::Name(_))
            || self.patterns.iter().any(|pattern| pattern.allows_public(port));
        match address::class(ip) {
            Class::Public if !public => Err(Refusal::NotAllowed),
            Class::Public if is_own(ip) => Err(Refusal::Own(ip)),
            Class::Public => Ok(()),
            class => Err(Refusal::Address(ip, class)),
        }
    }

    /// The same where a trajectory has a list of its own.
    ///
    /// # Errors
    /// One of the two does not have it.
    pub(super) fn check_address_with(
        &self,
        own: Option<&Self>,
        host: &Host,
        address: SocketAddr,
        is_own: impl Fn(IpAddr) -> bool,
    ) -> Result<(), Refusal> {
        self.check_address(host, address, &is_own)?;
        let asked = own.map_or(Ok(()), |own| own.check_address(host, address, &is_own));
        asked.map_err(|_| Refusal::NotAsked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trajectorys_list_narrows_the_operators_and_never_widens_it() {
        let operators = rules(&["*.example", "10.0.0.0/8"]);
        let own = rules(&["a.example", "10.0.0.1", "b.elsewhere", "192.168.0.1"]);
        let name = |name| operators.check_name_with(Some(&own), name, 443);
        assert_eq!(name("a.example"), Ok(()));
        assert_eq!(name("c.example"), Err(Refusal::NotAsked));
        assert_eq!(name("b.elsewhere"), Err(Refusal::NotAllowed));
        let address = |text: &str| {
            let ip: IpAddr = text.parse().unwrap();
            let (host, address) = (Host::Address(ip), SocketAddr::new(ip, 443));
            operators.check_address_with(Some(&own), &host, address, |_| false)
        };
        assert_eq!(address("10.0.0.1"), Ok(()));
        assert_eq!(address("10.0.0.2"), Err(Refusal::NotAsked));
        assert!(matches!(address("192.168.0.1"), Err(Refusal::Address(..))));
        // A name that is asked for does not make private what it leads to reachable.
        let of_name = Host::Name("a.example".to_owned());
        let private = "10.0.0.2:443".parse().unwrap();
        let checked = operators.check_address_with(Some(&own), &of_name, private, |_| false);
        assert_eq!(checked, Err(Refusal::NotAsked));
        assert_eq!(operators.check_name_with(None, "c.example", 443), Ok(()));
    }

    fn rules(patterns: &[&str]) -> Rules {
        Rules::new(&patterns.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>())
    }

    fn check(rules: &Rules, host: &str, address: &str) -> Result<(), String> {
        let address: SocketAddr = address.parse().unwrap();
        let host = match host.parse() {
            Ok(ip) => Host::Address(ip),
            Err(_) => Host::Name(host.to_owned()),
        };
        if let Host::Name(name) = &host {
            rules.check_name(name, address.port()).map_err(|refusal| refusal.reason())?;
        }
        let is_own = |ip: IpAddr| ip.to_string() == "8.8.4.4";
        rules.check_address(&host, address, is_own).map_err(|refusal| refusal.reason())
    }

    #[test]
    fn without_a_list_all_public_hosts_are_reached_and_no_others() {
        let all = rules(&[]);
        assert_eq!(check(&all, "a.b", "8.8.8.8:1"), Ok(()));
        assert_eq!(check(&all, "8.8.8.8", "8.8.8.8:1"), Ok(()));
        for (host, address) in [
            ("a.b", "127.0.0.1:80"),
            ("a.b", "[::ffff:10.0.0.1]:80"),
            ("a.b", "8.8.4.4:80"),
            ("169.254.169.254", "169.254.169.254:80"),
        ] {
            let refused = check(&all, host, address).unwrap_err();
            assert!(refused.starts_with("Refused: "), "{host}: {refused}");
        }
    }

    #[test]
    fn a_list_leaves_nothing_else_and_a_name_in_it_no_private_address() {
        let some = rules(&["a.b:80", "*.c", "10.0.0.0/8:80", "8.8.4.4"]);
        for (host, address) in [
            ("a.b", "8.8.8.8:80"),
            ("x.c", "8.8.8.8:7"),
            // The address is named.
            ("a.b", "10.1.1.1:80"),
            ("a.b", "[::ffff:10.1.1.1]:80"),
            ("10.1.1.1", "10.1.1.1:80"),
            ("8.8.4.4", "8.8.4.4:1"),
        ] {
            assert_eq!(check(&some, host, address), Ok(()), "{host} {address}");
        }
        for (host, address) in [
            ("a.b", "8.8.8.8:81"),
            ("c", "8.8.8.8:7"),
            ("8.8.8.8", "8.8.8.8:80"),
            ("10.1.1.1", "10.1.1.1:81"),
            ("a.b", "127.0.0.1:80"),
            // No look-up for a name that is not in the list, whatever its address is.
            ("evil", "10.1.1.1:80"),
        ] {
            assert!(check(&some, host, address).is_err(), "{host} {address}");
        }
        let star = rules(&["*:443", "127.0.0.1:8080"]);
        assert_eq!(check(&star, "8.8.8.8", "8.8.8.8:443"), Ok(()));
        assert_eq!(check(&star, "a.b", "8.8.8.8:443"), Ok(()));
        assert_eq!(check(&star, "127.0.0.1", "127.0.0.1:8080"), Ok(()));
        assert!(check(&star, "127.0.0.1", "127.0.0.1:443").is_err());
        assert!(check(&star, "a.b", "8.8.8.8:80").is_err());
    }
}
