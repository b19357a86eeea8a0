//! Images that tests make: layers, OCI layouts, saved archives.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::Digest;
use super::config::Platform;

/// The tar of a layer with these files; a name that ends with a slash is a directory.
pub(crate) fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = Header::new_gnu();
        let is_directory = name.ends_with('/');
        header.set_entry_type(if is_directory { EntryType::Directory } else { EntryType::Regular });
        header.set_mode(if is_directory { 0o755 } else { 0o644 });
        header.set_size(text.len() as u64);
        header.set_mtime(1_000_000_000);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

pub(crate) fn plain(bytes: &[u8]) -> Vec<u8> {
    bytes.to_vec()
}

/// The configuration of an image with these layers, for this machine.
pub(crate) fn configuration(layers: &[Vec<u8>]) -> Value {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let host = Platform::host();
    json!({
        "architecture": host.architecture,
        "os": host.os,
        "config": {"Env": ["PATH=/image/bin"], "User": "me", "WorkingDir": "/w"},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    })
}

/// An OCI layout that is being written: each part may be made wrong before it is.
pub(crate) struct Layout<'a> {
    dir: &'a Path,
    manifests: Vec<Value>,
}

impl<'a> Layout<'a> {
    pub(crate) fn new(dir: &'a Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        Self { dir, manifests: Vec::new() }
    }

    /// Writes a blob: its descriptor.
    pub(crate) fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        fs::write(self.dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    }

    /// Adds an image; `change` gets its configuration and its manifest.
    pub(crate) fn image(
        mut self,
        tag: Option<&str>,
        layers: &[Vec<u8>],
        pack: fn(&[u8]) -> Vec<u8>,
        change: impl FnOnce(&mut Value, &mut Value),
    ) -> Self {
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let mut config = configuration(layers);
        let blobs: Vec<_> = layers.iter().map(|layer| self.blob(kind, &pack(layer))).collect();
        let mut manifest = json!({"schemaVersion": 2, "layers": blobs});
        change(&mut config, &mut manifest);
        let kind = "application/vnd.oci.image.config.v1+json";
        if manifest["config"].is_null() {
            manifest["config"] = self.blob(kind, config.to_string().as_bytes());
        }
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let mut described = self.blob(kind, manifest.to_string().as_bytes());
        if let Some(tag) = tag {
            described["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        }
        self.manifests.push(described);
        self
    }

    /// Adds a manifest as it is.
    pub(crate) fn manifest(mut self, described: Value) -> Self {
        self.manifests.push(described);
        self
    }

    pub(crate) fn manifests(&self) -> &[Value] {
        &self.manifests
    }

    pub(crate) fn write(self) {
        let index = json!({"schemaVersion": 2, "manifests": self.manifests});
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
    }
}

/// What `docker save` writes of images: names and layers.
pub(crate) fn saved(images: &[(&str, &[Vec<u8>])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, name, bytes).unwrap();
    };
    let mut list = Vec::new();
    for (name, layers) in images {
        let mut paths = Vec::new();
        // Not in order, as archives may have them.
        for layer in layers.iter().rev() {
            let path = format!("{}/layer.tar", Digest::of(layer).hex());
            add(&path, layer);
            paths.insert(0, path);
        }
        let config = configuration(layers).to_string();
        let path = format!("{}.json", Digest::of(config.as_bytes()).hex());
        add(&path, config.as_bytes());
        list.push(json!({"Config": path, "RepoTags": [name], "Layers": paths}));
    }
    add("manifest.json", Value::from(list).to_string().as_bytes());
    tar.into_inner().unwrap()
}
