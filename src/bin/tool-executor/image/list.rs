//! Which images are to be pulled: names, or the lines of a replay.

use std::io::{self, BufRead, Read};
use std::path::Path;

use serde_json::Value;
use tool_executor::image::{ImageError, ImageSource};

use crate::replay::open_input;

/// The longest line: a trajectory of a replay may be long.
const MAX_LINE: u64 = 256 << 20;

/// What `image pull` takes a name for: an image of a registry, unless it says something else.
pub(super) fn source(name: &str) -> Result<ImageSource, ImageError> {
    match ImageSource::parse(name)? {
        ImageSource::Stored(name) => ImageSource::parse(&format!("docker://{name}")),
        source => Ok(source),
    }
}

/// The names in a file, each once, in their order.
pub(super) fn names(path: &Path) -> Result<Vec<String>, String> {
    let mut input = open_input(path).map_err(|error| error.to_string())?;
    let (mut names, mut number) = (Vec::new(), 0_usize);
    loop {
        let mut line = Vec::new();
        let read = input.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        if read.map_err(|error: io::Error| error.to_string())? == 0 {
            return Ok(names);
        }
        number += 1;
        let named = named(&line).map_err(|problem| format!("line {number}: {problem}"))?;
        names.extend(named.filter(|name| !names.contains(name)));
    }
}

/// The image that a line names, if it does.
fn named(line: &[u8]) -> Result<Option<String>, String> {
    let text = std::str::from_utf8(line).map_err(|_| "it is not UTF-8")?.trim();
    if text.is_empty() || text.starts_with('#') {
        return Ok(None);
    }
    if !text.starts_with('{') {
        return Ok(Some(text.to_owned()));
    }
    let value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let image = value.get("spec").and_then(|spec| spec.get("image"));
    match image {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(image)) => {
            // What is not pulled needs nothing.
            let is_pulled = |source: &ImageSource| {
                !matches!(
                    source,
                    ImageSource::Directory(_)
                        | ImageSource::OciLayout { .. }
                        | ImageSource::Archive { .. }
                )
            };
            let keep = source(image).map_or(true, |source| is_pulled(&source));
            Ok(keep.then(|| image.clone()))
        }
        Some(other) => Err(format!("\"image\" is no text: {other}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_trajectories_name_images() {
        for (line, expected) in [
            ("", Ok(None)),
            ("# python:3", Ok(None)),
            (" python:3.12 \n", Ok(Some("python:3.12"))),
            (r#"{"trajectory_id": "a"}"#, Ok(None)),
            (r#"{"spec": {"image": "python:3"}, "calls": []}"#, Ok(Some("python:3"))),
            (r#"{"spec": {"image": "dir:/x"}}"#, Ok(None)),
            (r#"{"spec": {"image": "Bad Name"}}"#, Ok(Some("Bad Name"))),
            (r#"{"spec": {"image": 3}}"#, Err("no text")),
            ("{", Err("EOF")),
        ] {
            match (named(line.as_bytes()), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.as_deref(), expected, "{line}"),
                (Err(said), Err(words)) => assert!(said.contains(words), "{said}"),
                (found, _) => panic!("{line}: {found:?}"),
            }
        }
    }
}
