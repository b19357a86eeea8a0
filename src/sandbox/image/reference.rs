//! The names of images as registries have them: `[host[:port]/]path[:tag][@digest]`. Pure.
//!
//! What a name without a host means is for `skopeo` and its settings to say.

use super::Digest;

/// The longest name without tag and digest, as registries have it.
const MAX_PATH: usize = 255;

/// A name that a registry could have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Reference<'a> {
    /// With the host, if the name has one.
    pub(super) path: &'a str,
    pub(super) host: Option<&'a str>,
    pub(super) tag: Option<&'a str>,
    pub(super) digest: Option<Digest>,
}

impl<'a> Reference<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// What is wrong with it, and what would be right.
    pub(super) fn parse(name: &'a str) -> Result<Self, String> {
        let (named, digest) = match name.split_once('@') {
            None => (name, None),
            Some((named, digest)) => {
                let parsed = digest.parse().map_err(|_| {
                    "what follows the @ must be a digest, sha256: and 64 hexadecimal digits in \
                     lower case"
                })?;
                (named, Some(parsed))
            }
        };
        let last = named.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match named[last..].rfind(':') {
            Some(colon) => (&named[..last + colon], Some(&named[last + colon + 1..])),
            None => (named, None),
        };
        if let Some(tag) = tag {
            let is_tag = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
            let starts_well = !tag.starts_with(['.', '-']);
            if !(1..=128).contains(&tag.len()) || !tag.bytes().all(is_tag) || !starts_well {
                let why = "the tag after the colon must be 1 to 128 letters, digits, _, . and -, \
                           as python:3.12";
                return Err(why.to_owned());
            }
        }
        let (host, rest) = match path.split_once('/') {
            Some((host, rest)) if is_host(host) => (Some(host), rest),
            _ => (None, path),
        };
        if rest.is_empty() {
            return Err("it names no image, as python:3.12 does".to_owned());
        }
        if path.len() > MAX_PATH {
            return Err(format!("it is longer than {MAX_PATH} bytes"));
        }
        if host.is_some_and(|host| !is_good_host(host)) {
            return Err("its registry must be HOST or HOST:PORT, as localhost:5000".to_owned());
        }
        if rest.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err("names in registries have no upper-case letters".to_owned());
        }
        if !rest.split('/').all(is_component) {
            let why = "each part between slashes must be lower-case letters and digits, with ., _, \
                       __ or - between them, as registry.example/team/python:3.12";
            return Err(why.to_owned());
        }
        Ok(Self { path, host, tag, digest })
    }

    /// The same image by this digest, as `skopeo` takes it: with a digest, and so without a tag.
    pub(super) fn at(&self, digest: &Digest) -> String {
        format!("{}@{digest}", self.path)
    }

    /// It as `skopeo` takes it.
    pub(super) fn plain(&self) -> String {
        match (&self.digest, self.tag) {
            (Some(digest), _) => self.at(digest),
            (None, Some(tag)) => format!("{}:{tag}", self.path),
            (None, None) => self.path.to_owned(),
        }
    }
}

/// Whether the first part of a name is a registry, by the rule that all programs have.
fn is_host(first: &str) -> bool {
    first.contains(['.', ':'])
        || first == "localhost"
        || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_good_host(host: &str) -> bool {
    let (name, port) = match (host.starts_with('['), host.rsplit_once(':')) {
        (true, Some((name, port))) if name.ends_with(']') => (name, Some(port)),
        (false, Some((name, port))) => (name, Some(port)),
        _ => (host, None),
    };
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let is_name = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
            !name.is_empty() && name.bytes().all(is_part) && !name.starts_with(['.', '-'])
        }
    };
    is_name && port.is_none_or(is_port)
}

/// Letters and digits, with one of the separators between two of them.
fn is_component(part: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut rest = part.as_bytes();
    loop {
        let letters = rest.iter().take_while(|byte| is_alphanumeric(byte)).count();
        if letters == 0 {
            return false;
        }
        rest = &rest[letters..];
        if rest.is_empty() {
            return true;
        }
        let between = rest.iter().take_while(|byte| !is_alphanumeric(byte)).count();
        let is_separator = match &rest[..between] {
            b"." | b"_" | b"__" => true,
            dashes => dashes.iter().all(|byte| *byte == b'-'),
        };
        if !is_separator {
            return false;
        }
        rest = &rest[between..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_registries_have_them() {
        let digest = format!("sha256:{}", "a1".repeat(32));
        for (name, host, path, tag) in [
            ("python", None, "python", None),
            ("python:3.12", None, "python", Some("3.12")),
            ("team/python:3.12", None, "team/python", Some("3.12")),
            ("localhost/x", Some("localhost"), "localhost/x", None),
            ("localhost:5000/x", Some("localhost:5000"), "localhost:5000/x", None),
            ("[::1]:5000/x:_1", Some("[::1]:5000"), "[::1]:5000/x", Some("_1")),
            ("r.example/a.b/c__d/e---f", Some("r.example"), "r.example/a.b/c__d/e---f", None),
        ] {
            let read = Reference::parse(name).unwrap();
            assert_eq!((read.host, read.path, read.tag, read.digest), (host, path, tag, None));
            assert_eq!(read.plain(), name);
            let pinned = format!("{name}@{digest}");
            let read = Reference::parse(&pinned).unwrap();
            assert_eq!((read.path, read.tag), (path, tag));
            assert_eq!(read.plain(), format!("{path}@{digest}"));
        }
    }

    #[test]
    fn what_no_registry_can_have_is_refused_with_what_would_be_right() {
        for (name, says) in [
            ("", "names no image"),
            (":3", "names no image"),
            ("r.example/", "names no image"),
            ("python:", "the tag"),
            ("python:3 12", "the tag"),
            ("python:-3", "the tag"),
            ("Python", "upper-case"),
            ("r.example/Python:3", "upper-case"),
            ("python@sha256:12", "64 hexadecimal"),
            ("python@3.12", "64 hexadecimal"),
            ("a//b", "between slashes"),
            ("a/../b", "between slashes"),
            ("-a", "between slashes"),
            ("a_-b", "between slashes"),
            ("a/b/", "between slashes"),
            ("r.example:x/a", "HOST or HOST:PORT"),
            ("r_r.example/a", "HOST or HOST:PORT"),
            ("[::g]:1/a", "HOST or HOST:PORT"),
            ("--tls-verify=false", "between slashes"),
        ] {
            let said = Reference::parse(name).unwrap_err();
            assert!(said.contains(says), "{name:?}: {said}");
        }
        assert!(Reference::parse(&"a".repeat(256)).unwrap_err().contains("longer than 255"));
    }
}
