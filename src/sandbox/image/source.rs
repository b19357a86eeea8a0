//! What a user may name as an image.

use std::fmt;
use std::path::{Path, PathBuf};

use super::ImageError;
use super::reference::Reference;
pub(super) use crate::image_key::normal_name;

/// Where an image comes from. Its text form is what [`parse`](Self::parse) reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ImageSource {
    /// A directory with the files of an image, used in place: `dir:/path`.
    Directory(PathBuf),
    /// An OCI layout: `oci:/path`, `oci:/path:tag`.
    OciLayout {
        /// Its directory.
        path: PathBuf,
        /// Which of its images; without one it must have one for this machine.
        tag: Option<String>,
    },
    /// A file that `docker save` or `podman save` wrote, or a tar of an OCI layout; plain, gzip or
    /// zstd: `docker-archive:/path`, `docker-archive:/path:name`.
    Archive {
        /// The file.
        path: PathBuf,
        /// Which of its images; without one it must have one for this machine.
        tag: Option<String>,
    },
    /// An image of a registry: `docker://name`. It is pulled by `skopeo`, where that is installed,
    /// and known by its name from then on.
    Registry(String),
    /// An image of an engine on this machine: `docker-daemon:name` or `containers-storage:name`. It
    /// is copied by `skopeo`, and known by this name from then on.
    Engine(String),
    /// An image that the store has under this name or digest, or else that of a registry.
    Stored(String),
}

const DIRECTORY: &str = "dir:";
const LAYOUT: &str = "oci:";
/// The first is how one is written.
const ARCHIVES: [&str; 2] = ["docker-archive:", "oci-archive:"];
/// The engines on this machine that `skopeo` copies from.
pub(super) const ENGINES: [&str; 2] = [DAEMON, "containers-storage:"];
pub(super) const DAEMON: &str = "docker-daemon:";
/// Transports of others, which would be taken for names.
const OTHERS: [&str; 3] = ["ostree:", "sif:", "tarball:"];
/// The first part of an image of a registry, as skopeo has it, too.
pub(super) const REGISTRY: &str = "docker://";

/// The longest name: a registry's, and what belongs to it.
const MAX_NAME: usize = 512;

impl ImageSource {
    /// Reads `dir:/path`, `oci:/path[:tag]`, `docker-archive:/path[:name]`, an absolute path of any
    /// of these, which is then looked at, `docker://name`, `docker-daemon:name`,
    /// `containers-storage:name`, or the name or digest of an image in the store or in a registry.
    ///
    /// In a path with a tag, the first colon ends the path, unless there is something of the whole
    /// name.
    ///
    /// # Errors
    /// [`ImageError::BadSource`], [`ImageError::NotFound`] where a path that is to be looked at is
    /// not there, [`ImageError::Io`].
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let bad = |why: &str| ImageError::BadSource { image: shown(text), why: why.to_owned() };
        if text.is_empty() {
            return Err(bad("an image has a name or a path"));
        }
        if text.contains('\0') || text.len() > 8192 {
            return Err(bad("a name has no zero byte, and 8192 bytes at most"));
        }
        if let Some(other) = OTHERS.iter().find(|other| text.starts_with(**other)) {
            let why = format!(
                "images are not had by {other}; bring it (skopeo copy {} oci:DIR) and name \
                 oci:/DIR",
                shown(text)
            );
            return Err(bad(&why));
        }
        if let Some(name) = text.strip_prefix(REGISTRY) {
            return match Reference::parse(name) {
                Ok(_) => Ok(Self::Registry(name.to_owned())),
                Err(why) => Err(bad(&why)),
            };
        }
        if let Some(name) = ENGINES.iter().find_map(|prefix| text.strip_prefix(prefix)) {
            let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
            let starts_well = name.starts_with(|first: char| first.is_ascii_alphanumeric());
            return match starts_well && name.len() <= MAX_NAME && name.bytes().all(is_part) {
                true => Ok(Self::Engine(text.to_owned())),
                false => Err(bad("an image of an engine has a name, as docker-daemon:task:1")),
            };
        }
        if let Some((scheme, rest)) = text.split_once("://") {
            let (scheme, rest) = (shown(scheme), shown(rest));
            let why = format!("an image is named without {scheme}://, as {rest}");
            return Err(bad(&why));
        }
        let absolute = |path: &str| match path.starts_with('/') {
            true => Ok(PathBuf::from(path)),
            false => Err(bad("the path of an image is absolute")),
        };
        if let Some(path) = text.strip_prefix(DIRECTORY) {
            return Ok(Self::Directory(absolute(path)?));
        }
        if let Some(path) = text.strip_prefix(LAYOUT) {
            let (path, tag) = split(absolute(path)?, path);
            return Ok(Self::OciLayout { path, tag });
        }
        if let Some(path) = ARCHIVES.iter().find_map(|prefix| text.strip_prefix(prefix)) {
            let (path, tag) = split(absolute(path)?, path);
            return Ok(Self::Archive { path, tag });
        }
        if text.starts_with('/') {
            return Self::look(text);
        }
        let is_odd = |c: char| c.is_control() || c.is_whitespace();
        if text.starts_with(['.', '-']) || text.len() > MAX_NAME || text.contains(is_odd) {
            return Err(bad(
                "it is no name of an image, as python:3.12; a path of one is absolute",
            ));
        }
        Ok(Self::Stored(text.to_owned()))
    }

    /// What an absolute path names.
    fn look(text: &str) -> Result<Self, ImageError> {
        let (path, tag) = split(PathBuf::from(text), text);
        let about = std::fs::metadata(&path)
            .map_err(|error| ImageError::at_source(&shown(text), &path, error))?;
        let is_layout = || ["oci-layout", "index.json"].iter().all(|f| path.join(f).is_file());
        if about.is_file() {
            Ok(Self::Archive { path, tag })
        } else if !about.is_dir() {
            let why = "it is neither a directory nor a file".to_owned();
            Err(ImageError::BadSource { image: shown(text), why })
        } else if is_layout() {
            Ok(Self::OciLayout { path, tag })
        } else if tag.is_some() {
            let why = "a directory has no tag, and it is no OCI layout".to_owned();
            Err(ImageError::BadSource { image: shown(text), why })
        } else {
            Ok(Self::Directory(path))
        }
    }

    /// As [`parse`](Self::parse), where relative paths are those of a directory: behind a prefix,
    /// or beginning with a dot, or of something that is there.
    ///
    /// # Errors
    /// Those of [`parse`](Self::parse).
    pub fn parse_in(text: &str, directory: &Path) -> Result<Self, ImageError> {
        let prefixes = [DIRECTORY, LAYOUT].into_iter().chain(ARCHIVES);
        let (prefix, path) = prefixes
            .filter_map(|prefix| Some((prefix, text.strip_prefix(prefix)?)))
            .next()
            .unwrap_or(("", text));
        let is_path = !path.is_empty()
            && (!prefix.is_empty()
                || path.starts_with('.')
                || split(directory.join(path), path).0.exists());
        match directory.join(path).to_str() {
            Some(path) if is_path => Self::parse(&format!("{prefix}{path}")),
            _ => Self::parse(text),
        }
    }
}

/// A path, and the tag behind it.
fn split(whole: PathBuf, text: &str) -> (PathBuf, Option<String>) {
    match text.split_once(':') {
        Some((path, tag)) if !path.is_empty() && !tag.is_empty() && !whole.exists() => {
            // `whole` may begin with more than `text` does.
            let path = match whole.to_str().and_then(|whole| whole.strip_suffix(text)) {
                Some(before) => PathBuf::from(format!("{before}{path}")),
                None => PathBuf::from(path),
            };
            (path, Some(tag.to_owned()))
        }
        _ => (whole, None),
    }
}

/// For messages: what was given may be anything.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 200;
    let mut shown: String = text.chars().take(MOST).collect::<String>().escape_debug().collect();
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    shown
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let with_tag = |f: &mut fmt::Formatter<'_>, prefix, path: &Path, tag: &Option<String>| {
            write!(f, "{prefix}{}", path.display())?;
            tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
        };
        match self {
            Self::Directory(path) => write!(f, "{DIRECTORY}{}", path.display()),
            Self::OciLayout { path, tag } => with_tag(f, LAYOUT, path, tag),
            Self::Archive { path, tag } => with_tag(f, ARCHIVES[0], path, tag),
            Self::Registry(name) => write!(f, "{REGISTRY}{name}"),
            Self::Engine(name) | Self::Stored(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        match ImageSource::parse(text) {
            Ok(source) => source.to_string(),
            Err(error) => format!("refused: {error}"),
        }
    }

    #[test]
    fn what_has_a_prefix_is_what_it_says() {
        for text in [
            "dir:/x",
            "oci:/no/where",
            "oci:/no/where:latest",
            "docker-archive:/a.tar",
            "docker-archive:/a.tar:hub.example/library/python:3.12",
            "python:3.12",
            "docker://localhost:5000/x/python:3.12",
            "docker-daemon:task:1",
            "containers-storage:localhost/task:1",
            "hub.example/library/python@sha256:00",
            "Task-17",
            "python",
        ] {
            assert_eq!(parsed(text), text);
        }
        assert_eq!(parsed("oci-archive:/a:b"), "docker-archive:/a:b");
        let tagged = ImageSource::parse("docker-archive:/a.tar:x/python:3.12").unwrap();
        let (path, tag) = (PathBuf::from("/a.tar"), Some("x/python:3.12".to_owned()));
        assert_eq!(tagged, ImageSource::Archive { path, tag });
    }

    #[test]
    fn what_names_no_image_is_refused_with_what_would_be_right() {
        for (text, says) in [
            ("", "has a name or a path"),
            ("dir:x", "absolute"),
            ("oci:x:y", "absolute"),
            ("./x", "absolute"),
            ("docker://", "names no image"),
            ("docker://a b", "between slashes"),
            ("docker://-x", "between slashes"),
            ("docker://A", "upper-case"),
            ("docker-daemon:", "as docker-daemon:task:1"),
            ("containers-storage:[x]y", "as docker-daemon:task:1"),
            ("ostree:x", "skopeo copy"),
            ("https://r.example/x", "without https://, as r.example/x"),
            ("a\u{7}b", "no name"),
            ("a b", "as python:3.12"),
            ("--x", "as python:3.12"),
            ("/no/such/place", "there is no /no/such/place"),
            ("/dev/null", "neither"),
        ] {
            let said = parsed(text);
            assert!(said.starts_with("refused: ") && said.contains(says), "{text:?}: {said}");
        }
    }

    #[test]
    fn a_path_is_looked_at() {
        let outer = tempfile::tempdir().unwrap();
        let path = |name: &str| outer.path().join(name).to_str().unwrap().to_owned();
        std::fs::create_dir(path("d")).unwrap();
        std::fs::create_dir(path("layout")).unwrap();
        for name in ["layout/oci-layout", "layout/index.json", "a.tar", "a:b.tar"] {
            std::fs::write(path(name), "{}").unwrap();
        }
        for (given, expected) in [
            ("d", "dir:"),
            ("layout", "oci:"),
            ("layout:tag", "oci:"),
            ("a.tar", "docker-archive:"),
            ("a.tar:x:y", "docker-archive:"),
            ("a:b.tar", "docker-archive:"),
        ] {
            assert_eq!(parsed(&path(given)), format!("{expected}{}", path(given)));
            let here = ImageSource::parse_in(given, outer.path()).unwrap().to_string();
            assert_eq!(here, format!("{expected}{}", path(given)));
        }
        let whole = ImageSource::parse(&path("a:b.tar")).unwrap();
        assert_eq!(whole, ImageSource::Archive { path: path("a:b.tar").into(), tag: None });
        assert!(parsed(&path("d:tag")).contains("no OCI layout"));
        let here = |text| ImageSource::parse_in(text, outer.path()).unwrap().to_string();
        assert_eq!(here("python:3"), "python:3");
        assert_eq!(here("oci:new:tag"), format!("oci:{}", path("new:tag")));
        assert_eq!(here("dir:../x"), format!("dir:{}", path("../x")));
    }
}
