//! Stand-in for the output capture.

/// Captures one stream in bounded memory.
pub(crate) struct Capture {
    limit: usize,
    kept: Vec<u8>,
    bytes: u64,
}

/// What was captured of one stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Captured {
    /// The text.
    pub(crate) text: String,
    /// Bytes printed.
    pub(crate) bytes: u64,
    /// Bytes left out of `text`.
    pub(crate) omitted_bytes: u64,
}

impl Capture {
    /// Keeps about `limit_chars`.
    pub(crate) fn new(limit_chars: usize) -> Self {
        Self {
            limit: limit_chars,
            kept: Vec::new(),
            bytes: 0,
        }
    }

    /// Adds bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let room = self.limit.saturating_sub(self.kept.len()).min(bytes.len());
        self.kept.extend_from_slice(&bytes[..room]);
        self.bytes += bytes.len() as u64;
    }

    /// Ends the capture.
    pub(crate) fn finish(self) -> Captured {
        Captured {
            omitted_bytes: self.bytes - self.kept.len() as u64,
            bytes: self.bytes,
            text: String::from_utf8_lossy(&self.kept).into_owned(),
        }
    }
}
