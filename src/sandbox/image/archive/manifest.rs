//! Manifests, and which of several is meant. Pure.

use std::collections::HashMap;

use serde::Deserialize;

use crate::sandbox::image::Digest;
use crate::sandbox::image::config::Platform;
use crate::sandbox::image::source::{normal_name, shown};

/// A list of manifests.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    #[serde(default)]
    pub(super) manifests: Vec<Descriptor>,
}

/// A manifest of one image.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Option<Descriptor>,
    #[serde(default)]
    pub(super) layers: Vec<Descriptor>,
}

/// What says of something else what it is.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    media_type: String,
    pub(super) digest: String,
    pub(super) size: u64,
    platform: Option<Platform>,
    annotations: Option<HashMap<String, String>>,
}

/// How a name is noted in a layout: by most programs, and by containerd.
const TAG: &str = "org.opencontainers.image.ref.name";
const NAME: &str = "io.containerd.image.name";
/// On what is about an image, and none.
const ATTESTATION: &str = "vnd.docker.reference.type";

impl Descriptor {
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }

    pub(super) fn is_called(&self, tag: &str) -> bool {
        self.annotation(TAG) == Some(tag) || self.annotation(NAME) == Some(tag)
    }

    /// The whole name of it, if it has one: a tag alone says nothing outside its layout.
    pub(super) fn name(&self) -> Option<String> {
        let is_whole = |tag: &&str| tag.contains([':', '/']);
        self.annotation(NAME).or(self.annotation(TAG).filter(is_whole)).map(str::to_owned)
    }

    /// Why it is no layer that can be unpacked.
    pub(super) fn no_layer(&self) -> Option<String> {
        let kind = self.media_type.as_str();
        let is_elsewhere = kind.contains("nondistributable") || kind.contains(".foreign.");
        let is_layer = ["application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs."];
        let what = shown(kind);
        if is_elsewhere {
            Some(format!("a layer of it is not in it, but elsewhere ({what})"))
        } else if kind.is_empty() || is_layer.iter().any(|start| kind.starts_with(start)) {
            None
        } else {
            Some(format!("a layer of it has no files of an image ({what})"))
        }
    }

    fn is_attestation(&self) -> bool {
        let unknown = |platform: &Platform| platform.os == "unknown";
        self.annotation(ATTESTATION).is_some() || self.platform.as_ref().is_some_and(unknown)
    }
}

/// Which manifest of a list is meant.
#[derive(Debug)]
pub(super) enum Choice<'a> {
    One(&'a Descriptor),
    /// Several are for this machine: their names.
    Several(Vec<String>),
    /// None is: what they are for.
    None(Vec<String>),
    Empty,
}

/// The manifest of a list for a machine. The first of those for several variants of it.
pub(super) fn choose<'a>(manifests: &'a [Descriptor], host: &Platform) -> Choice<'a> {
    let images: Vec<_> = manifests.iter().filter(|one| !one.is_attestation()).collect();
    // One that says nothing is looked at.
    let fits = |one: &&&Descriptor| one.platform.as_ref().is_none_or(|its| host.runs(its));
    let mut fitting: Vec<_> = images.iter().filter(fits).copied().collect();
    fitting.dedup_by(|one, other| one.digest == other.digest);
    match fitting[..] {
        [] if images.is_empty() => Choice::Empty,
        [] => {
            let others = images.iter().filter_map(|one| one.platform.as_ref());
            Choice::None(others.map(ToString::to_string).collect())
        }
        [one] => Choice::One(one),
        // A list for machines, and not of images.
        [one, ..] if fitting.iter().all(|one| one.platform.is_some() && one.tag().is_none()) => {
            Choice::One(one)
        }
        _ => {
            let tag = |one: &&Descriptor| shown(one.tag().unwrap_or(&one.digest));
            Choice::Several(fitting.iter().map(tag).collect())
        }
    }
}

impl Descriptor {
    fn tag(&self) -> Option<&str> {
        self.annotation(TAG).or(self.annotation(NAME))
    }
}

/// An image in what `docker save` writes.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Saved {
    pub(super) config: String,
    pub(super) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(super) layers: Vec<String>,
}

impl Saved {
    pub(super) fn is_called(&self, tag: &str) -> bool {
        self.repo_tags.iter().flatten().any(|name| normal_name(name) == normal_name(tag))
    }

    pub(super) fn shown(&self) -> String {
        let name = self.repo_tags.iter().flatten().next();
        name.map_or_else(|| shown(&self.config), |name| shown(name))
    }
}

/// The digest that a file is called by: `<hex>.json`, `blobs/sha256/<hex>`.
pub(super) fn digest_in(path: &str) -> Option<Digest> {
    let name = path.rsplit('/').next()?;
    format!("sha256:{}", name.strip_suffix(".json").unwrap_or(name)).parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn descriptors(list: serde_json::Value) -> Vec<Descriptor> {
        serde_json::from_value(list).unwrap()
    }

    fn chosen(list: serde_json::Value) -> String {
        let host = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        match choose(&descriptors(list), &host) {
            Choice::One(one) => one.digest.clone(),
            Choice::Several(tags) => format!("several: {}", tags.join(" ")),
            Choice::None(others) => format!("none: {}", others.join(" ")),
            Choice::Empty => "empty".to_owned(),
        }
    }

    #[test]
    fn the_manifest_for_this_machine_is_chosen() {
        let is = |digest: &str, os: &str, architecture: &str| {
            let platform = json!({"os": os, "architecture": architecture});
            json!({"digest": digest, "size": 1, "platform": platform})
        };
        let (amd, arm) = (is("amd", "linux", "amd64"), is("arm", "linux", "arm64"));
        let (windows, unknown) = (is("w", "windows", "amd64"), is("u", "unknown", "unknown"));
        assert_eq!(chosen(json!([arm, windows, unknown, amd])), "amd");
        assert_eq!(chosen(json!([arm, unknown])), "none: linux/arm64");
        assert_eq!(chosen(json!([unknown])), "empty");
        assert_eq!(chosen(json!([])), "empty");
        assert_eq!(chosen(json!([{"digest": "x", "size": 1}])), "x");
        assert_eq!(chosen(json!([amd, is("v2", "linux", "amd64")])), "amd");
        let tagged = |digest: &str, tag: &str| json!({"digest": digest, "size": 1, "annotations": {TAG: tag}});
        assert_eq!(chosen(json!([tagged("x", "a"), tagged("y", "b")])), "several: a b");
        assert_eq!(chosen(json!([tagged("x", "a"), tagged("x", "b")])), "x");
    }

    #[test]
    fn names_of_saved_images_are_those_that_docker_takes_for_the_same() {
        let saved = |name: &str| Saved {
            config: String::new(),
            repo_tags: Some(vec![name.to_owned()]),
            layers: Vec::new(),
        };
        for (is, asked) in [
            ("python:3.12", "hub.example/library/python:3.12"),
            ("hub.example/library/python:latest", "python"),
            ("localhost/x:1", "localhost/x:1"),
            ("localhost:5000/x:latest", "localhost:5000/x"),
        ] {
            assert!(saved(is).is_called(asked), "{is} {asked}");
        }
        assert!(!saved("python:3.12").is_called("python"));
    }

    #[test]
    fn layers_that_are_elsewhere_and_those_that_are_none_are_refused() {
        let layer = |kind: &str| {
            let list = json!([{"mediaType": kind, "digest": "x", "size": 1}]);
            descriptors(list)[0].no_layer().is_none()
        };
        for kind in [
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "",
        ] {
            assert!(layer(kind), "{kind}");
        }
        for kind in [
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.in-toto+json",
        ] {
            assert!(!layer(kind), "{kind}");
        }
    }
}
