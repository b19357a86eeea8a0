//! Images as text. Names and configurations are what their authors wrote: control characters in
//! them are escaped.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use tool_executor::image::{Digest, ImportStep, Pruned, StoredImage, StoredLayer};

/// How much of a digest is shown: enough to name an image by.
const SHORT: usize = 12;

/// A line about what an import is doing.
pub(super) fn step(step: &ImportStep) -> Option<String> {
    match step {
        ImportStep::Pulling => Some("pulling".to_owned()),
        ImportStep::Fetching { layers, there, packed_bytes } => {
            let (missing, size) = (layers - there, size(*packed_bytes));
            Some(format!("fetching {missing} of {layers} layers, {size}"))
        }
        ImportStep::Fetched { bytes, of: 0 } => Some(format!("{} have arrived", size(*bytes))),
        ImportStep::Fetched { bytes, of } => {
            Some(format!("{} of {} have arrived", size(*bytes), size(*of)))
        }
        ImportStep::Retrying { why, after } => {
            Some(format!("{why}; trying again in {} s", after.as_secs()))
        }
        ImportStep::Arrived { bytes, time } => {
            Some(format!("fetched {} in {:.1} s", size(*bytes), time.as_secs_f64()))
        }
        ImportStep::Layer { number, of, diff_id, packed_bytes } => {
            let (digest, size) = (short(diff_id), size(*packed_bytes));
            Some(format!("layer {number} of {of}, {digest}, {size}"))
        }
        ImportStep::Unpacked { was_there: true, number, .. } => {
            Some(format!("layer {number} is in the store"))
        }
        _ => None,
    }
}

/// What was imported: its digest, its names, and what was left out of it.
pub(super) fn imported(images: &[StoredImage]) -> String {
    let mut text = String::new();
    for image in images {
        let names: Vec<_> = image.names.iter().map(|name| escaped(name)).collect();
        let _ = writeln!(text, "{} {}", image.digest, names.join(" "));
        for layer in &image.layers {
            text.push_str(&left_out(layer));
        }
    }
    text
}

/// A table of images.
pub(super) fn list(images: &[StoredImage]) -> String {
    let mut rows = vec![["NAME", "DIGEST", "SIZE", "LAYERS", "USED", ""].map(str::to_owned)];
    for image in images {
        let mut names = image.names.iter().map(|name| escaped(name)).collect::<Vec<_>>();
        if names.is_empty() {
            names.push("-".to_owned());
        }
        for name in names {
            rows.push([
                name,
                short(&image.digest),
                size(image.bytes),
                image.layers.len().to_string(),
                ago(image.used_unix),
                if image.in_use { "in use".to_owned() } else { String::new() },
            ]);
        }
    }
    let widths: Vec<_> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<_> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

/// All about an image.
pub(super) fn show(image: &StoredImage) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:12} {value}");
    };
    line("digest", &image.digest.to_string());
    if let Some(manifest) = &image.manifest {
        line("manifest", &manifest.to_string());
    }
    image.names.iter().for_each(|name| line("name", &escaped(name)));
    line("source", &escaped(&image.source));
    line("imported", &ago(image.imported_unix));
    line("used", &if image.in_use { "now".to_owned() } else { ago(image.used_unix) });
    line("size", &size(image.bytes));
    line("user", &escaped(or(&image.config.user, "root")));
    line("directory", &escaped(or(&image.config.working_dir, "/")));
    image.config.env.iter().for_each(|variable| line("variable", &escaped(variable)));
    for layer in &image.layers {
        let _ = writeln!(
            text,
            "layer        {} {} {} entries {}",
            short(&layer.diff_id),
            size(layer.bytes),
            layer.entries,
            layer.path.display()
        );
        text.push_str(&left_out(layer));
    }
    text
}

/// What was removed.
pub(super) fn pruned(pruned: &Pruned) -> String {
    let mut text = String::new();
    for image in &pruned.images {
        let _ = writeln!(text, "removed {image}");
    }
    let (layers, bytes) = (pruned.layers, size(pruned.bytes));
    let s = if layers == 1 { "" } else { "s" };
    let _ = writeln!(text, "{layers} layer{s} removed, {bytes}");
    if pruned.in_use > 0 {
        let (n, s) = (pruned.in_use, if pruned.in_use == 1 { " is" } else { "s are" });
        let _ = writeln!(text, "{n} image{s} in use");
    }
    text
}

fn left_out(layer: &StoredLayer) -> String {
    let lines = layer.left_out.iter();
    let mut text: String = lines.map(|line| format!("  left out: {line}\n")).collect();
    if layer.left_out_more > 0 {
        let _ = writeln!(text, "  left out: {} more", layer.left_out_more);
    }
    text
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn escaped(text: &str) -> String {
    text.escape_debug().to_string()
}

fn short(digest: &Digest) -> String {
    digest.hex()[..SHORT].to_owned()
}

/// Bytes, with three digits or so.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KB", "MB", "GB", "TB", "PB"];
    let mut value = bytes as f64 / 1000.0;
    let mut unit = 0;
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if value < 9.95 { 1 } else { 0 };
    format!("{value:.digits$} {}", UNITS[unit])
}

/// How long ago a time was, in words.
fn ago(unix: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (value, unit) = match now.saturating_sub(unix) {
        seconds @ ..120 => (seconds, "second"),
        seconds @ ..7200 => (seconds / 60, "minute"),
        seconds @ ..172_800 => (seconds / 3600, "hour"),
        seconds => (seconds / 86_400, "day"),
    };
    format!("{value} {unit}{} ago", if value == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 KB"),
            (9_949, "9.9 KB"),
            (9_950, "10 KB"),
            (999_499, "999 KB"),
            (999_500, "1.0 MB"),
            (5_300_000_000, "5.3 GB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        assert!(ago(0).ends_with(" days ago"));
        assert!(ago(u64::MAX).ends_with("0 seconds ago"));
    }
}
