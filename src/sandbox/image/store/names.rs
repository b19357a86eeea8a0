//! Which image has a name.

use std::io;
use std::os::fd::AsFd;

use super::record::{self, NameRecord};
use super::{ImageStore, files_of};
use crate::sandbox::image::source::{normal_name, shown};
use crate::sandbox::image::{Digest, ImageError};

impl ImageStore {
    /// The digest of the image with a name, a digest, or the beginning of one.
    pub(super) fn find(&self, name: &str) -> Result<Option<Digest>, ImageError> {
        if let Some(record) = self.name_record(name)?
            && self.0.images.has(&record.digest.hex())
        {
            return Ok(Some(record.digest));
        }
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if hex.len() < 8 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let all = self.0.images.names()?;
        let mut begin_so = all.iter().filter(|one| one.starts_with(hex));
        match (begin_so.next(), begin_so.next()) {
            (Some(one), None) => Ok(format!("sha256:{one}").parse().ok()),
            (None, _) => Ok(None),
            (Some(_), Some(_)) => {
                let why = "the digests of several images begin so".to_owned();
                Err(ImageError::BadSource { image: shown(name), why })
            }
        }
    }

    /// What is written of a name.
    pub(super) fn name_record(&self, name: &str) -> Result<Option<NameRecord>, ImageError> {
        let file = NameRecord::file(&normal_name(name), self.foreign_platform().as_deref());
        match record::read::<NameRecord>(&self.0.names, &file) {
            Ok(record) => Ok(Some(record)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::io("read", &self.0.path.join("names").join(file), error)),
        }
    }

    /// What is said of a name that no image has here, and why it is not pulled.
    pub(super) fn not_stored(&self, name: &str, why: &str) -> ImageError {
        let file = Digest::of(normal_name(name).as_bytes()).hex();
        let (own, needs) = (self.0.ids.directory(), self.0.ids.name());
        let all = self.0.path.parent().and_then(|of_user| std::fs::read_dir(of_user).ok());
        let mut others = all.into_iter().flatten().flatten().filter(|other| {
            other.file_name() != *own && other.path().join("names").join(&file).exists()
        });
        let Some(other) = others.next() else {
            return ImageError::NotStored { image: shown(name), why: why.to_owned() };
        };
        let has = other.file_name().to_string_lossy().into_owned();
        let why = format!(
            "it was imported with the ids \"{has}\", and here they are \"{needs}\"; import it \
             again: tool-executor image import --ids {needs}"
        );
        ImageError::BadSource { image: shown(name), why }
    }

    /// Gives a name to an image; the one that had it has it no more.
    pub(super) fn call(&self, name: &str, digest: Digest) -> Result<(), ImageError> {
        if self.name_record(name).is_ok_and(|known| known.is_some_and(|it| it.digest == digest)) {
            return Ok(());
        }
        self.write_name(name, digest, None, None)
    }

    /// Writes down what a name is: of an image of a registry, the digest of its manifest, and when
    /// the registry said so.
    pub(super) fn write_name(
        &self,
        name: &str,
        digest: Digest,
        manifest: Option<Digest>,
        asked: Option<u64>,
    ) -> Result<(), ImageError> {
        let (name, platform) = (normal_name(name), self.foreign_platform());
        let file = NameRecord::file(&name, platform.as_deref());
        let record = NameRecord { name, digest, platform, manifest, asked };
        record::replace(self.0.names.as_fd(), &file, &record)
            .map_err(|error| ImageError::io("write", &self.0.path.join("names").join(file), error))
    }

    /// All names, in no order.
    pub(super) fn names(&self) -> Result<Vec<NameRecord>, ImageError> {
        let path = self.0.path.join("names");
        let files =
            files_of(&self.0.names).map_err(|error| ImageError::io("read", &path, error))?;
        let read = |file: &String| record::read::<NameRecord>(&self.0.names, file).ok();
        Ok(files.iter().filter_map(read).collect())
    }
}
