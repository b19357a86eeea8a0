//! What an image is known by where it matters only whether two names mean the same one: a number
//! that is made of the name.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is before the name or path of an image. The path of a directory is none of these: it is
/// used in place.
const PREFIXES: [&str; 6] = [
    "docker://",
    "oci:",
    "docker-archive:",
    "oci-archive:",
    "docker-daemon:",
    "containers-storage:",
];
/// What is before the path of a directory that is used in place.
const IN_PLACE: &str = "dir:";

/// Stands for the name of an image. Names that are the same image to a store have the same key:
/// `python`, `python:latest` and `docker://python`; `oci:/images/a` and `/images/a`.
///
/// Two images have the same key by chance only. Nothing depends on it but where a trajectory is
/// put.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageKey(u64);

impl ImageKey {
    /// The key of a name; `None` of what is used in place (`dir:/path`), and so is everywhere or
    /// nowhere whoever has used it.
    pub fn of(name: &str) -> Option<Self> {
        if name.starts_with(IN_PLACE) {
            return None;
        }
        let plain = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
        let is_exact = plain.starts_with('/') || plain.starts_with("sha256:");
        let hashed = if is_exact { fnv(plain) } else { fnv(&normal_name(plain)) };
        Some(Self(hashed))
    }

    /// The key as a number, for who tells it elsewhere.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl From<u64> for ImageKey {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl fmt::Display for ImageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// FNV-1a: the same in every program, of every version.
fn fnv(text: &str) -> u64 {
    let add = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    text.bytes().fold(0xcbf2_9ce4_8422_2325, add)
}

/// A name as images are known by it: `python` is `python:latest`, and so is what a registry has
/// under `HOST/library/python`, which is the long form of Docker's own images.
pub(crate) fn normal_name(name: &str) -> String {
    let name = match name.split_once('/') {
        Some((host, rest)) if host.contains('.') && rest.starts_with("library/") => rest,
        _ => name,
    };
    let name = name.strip_prefix("library/").unwrap_or(name);
    match name.rsplit('/').next().is_some_and(|last| last.contains([':', '@'])) {
        true => name.to_owned(),
        false => format!("{name}:latest"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_one_image_have_one_key_and_others_have_others() {
        let key = |name: &str| ImageKey::of(name).unwrap();
        for names in [
            &["python", "python:latest", "docker://python", "hub.example/library/python"][..],
            &["python:3.12", "docker://python:3.12", "library/python:3.12"],
            &["oci:/images/a", "/images/a", "docker-archive:/images/a"],
            &["oci:/images/a:tag", "/images/a:tag"],
            &["sha256:00ff"],
        ] {
            assert!(names.iter().all(|name| key(name) == key(names[0])), "{names:?}");
        }
        let all = ["python", "python:3.12", "/images/a", "/images/a:tag", "sha256:00ff"].map(key);
        assert!(all.iter().all(|one| all.iter().filter(|other| one == *other).count() == 1));
        assert_eq!(ImageKey::of("dir:/images/a"), None, "it is used in place");
        // It is told from program to program.
        assert_eq!(key("python").to_string(), "9e0094521a5d04a4");
    }
}
