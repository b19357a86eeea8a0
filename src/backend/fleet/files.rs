//! Files in and out of a native server's slots, byte by byte.
//!
//! A put is sent once: what gives its bytes cannot be asked for them again. It is tried again only
//! where none of it was sent. Where its connection breaks afterwards, the server is asked what came
//! of it. Where that cannot be told either, the error says so; half of it is never there.

use std::io::{self, BufReader, Cursor, Read, Write};
use std::time::{Duration, Instant};

use super::Connection;
use super::artifacts::{SlotLease, garbage, gone};
use crate::artifact::{ArtifactError, PutFiles, PutSummary};
use crate::client::{self, Failure};
use crate::wire::native::files::{
    COPY, CopyEnd, CopyRequest, PIECE, PUT, PUT_RESULT, PutAnswer, PutRequest, PutResultRequest,
};

/// How often a put is tried of which nothing was sent, and how often it is asked what came of one.
const TRIES: usize = 3;
/// How long it is asked.
const RESULT_TIME: Duration = Duration::from_secs(60);
/// The longest last line of a copy.
const MAX_END: u64 = 64 * 1024;

impl Connection {
    /// Puts what `from` has.
    pub(super) fn put_files(
        &self,
        slot: usize,
        lease: SlotLease,
        request: &PutFiles,
        from: &mut (dyn Read + Send),
    ) -> Result<PutSummary, ArtifactError> {
        let SlotLease { session, epoch } = lease;
        let id = uuid::Uuid::new_v4().to_string();
        let result = PutResultRequest { session: session.clone(), epoch, slot, id: id.clone() };
        let asked = PutRequest { session, epoch, slot, id, put: request.clone() };
        let mut line = serde_json::to_vec(&asked).map_err(|error| garbage(&error.to_string()))?;
        line.push(b'\n');
        let mut body = Body { line: Cursor::new(&line), from, is_begun: false, failed: None };
        let mut tries = 0;
        let sent = loop {
            tries += 1;
            match self.send_body(&mut body) {
                Err(failure) if !failure.may_have_executed() && !body.is_begun && tries < TRIES => {
                    body.line.set_position(0);
                }
                other => break other,
            }
        };
        if let Some(error) = body.failed {
            return Err(ArtifactError::Io(format!("reading '{}'", request.path), error));
        }
        let answer = match sent.and_then(client::read_json::<PutAnswer>) {
            Err(failure) if failure.may_have_executed() => self.ask_what_came(&result, failure),
            answer => answer,
        };
        match answer {
            Ok(PutAnswer::Done(summary)) => Ok(summary),
            Ok(PutAnswer::Failed(failed)) => Err(failed.into()),
            Ok(PutAnswer::Unknown) => {
                Err(broken("nothing was put", "it did not reach the sandbox server"))
            }
            Ok(PutAnswer::Running) => {
                Err(broken("it is not known whether they are there", "no result in time"))
            }
            Err(failure) if failure.may_have_executed() => {
                Err(broken("it is not known whether they are there", &failure.text()))
            }
            Err(failure) => Err(gone(failure)),
        }
    }

    /// What came of a put whose connection broke: `failure` says how.
    fn ask_what_came(
        &self,
        result: &PutResultRequest,
        failure: Failure,
    ) -> Result<PutAnswer, Failure> {
        let body =
            serde_json::to_vec(result).map_err(|error| Failure::Broken(error.to_string()))?;
        let until = Instant::now() + RESULT_TIME;
        let mut last = failure;
        let mut broken = 0;
        while broken < TRIES && Instant::now() < until {
            let response = self.post_patiently(PUT_RESULT, &body, Some(RESULT_TIME));
            match response.and_then(client::read_json::<PutAnswer>) {
                // It has a deadline there, and waits for one.
                Ok(PutAnswer::Running) => {}
                Ok(answer) => return Ok(answer),
                Err(failure @ Failure::Refused(..)) => return Err(failure),
                Err(failure) => {
                    broken += 1;
                    last = failure;
                }
            }
        }
        Err(last)
    }

    fn send_body(&self, body: &mut Body<'_>) -> Result<ureq::http::Response<ureq::Body>, Failure> {
        let agent = self.patient_agent()?;
        let request = agent.post(self.uri(PUT)?).header("Content-Type", "application/octet-stream");
        let request = client::authorize(request, self.authorization.as_ref());
        let request = request.config().timeout_connect(Some(self.prompt)).build();
        Ok(request.send(ureq::SendBody::from_reader(body))?)
    }

    /// Writes a whole file to `into`, and gives its size.
    pub(super) fn copy_file(
        &self,
        slot: usize,
        lease: SlotLease,
        path: &str,
        into: &mut dyn Write,
    ) -> Result<u64, ArtifactError> {
        let SlotLease { session, epoch } = lease;
        let asked = CopyRequest { session, epoch, slot, path: path.to_owned() };
        let asked = serde_json::to_vec(&asked).map_err(|error| garbage(&error.to_string()))?;
        let response = self.post_patiently(COPY, &asked, None).map_err(gone)?;
        if !response.status().is_success() {
            let refused = client::read_json::<serde_json::Value>(response);
            return Err(refused.map_or_else(gone, |_| garbage("an empty answer")));
        }
        let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        read_pieces(BufReader::with_capacity(PIECE, reader), path, into)
    }
}

/// The error of a put whose connection broke.
fn broken(what: &str, why: &str) -> ArtifactError {
    let text = format!("the connection to the sandbox server broke while files were put; {what}");
    ArtifactError::Io(text, io::Error::other(why.to_owned()))
}

/// Reads the pieces of a copy, and how it ended.
fn read_pieces(
    mut reader: impl Read,
    path: &str,
    into: &mut dyn Write,
) -> Result<u64, ArtifactError> {
    let cut_off = |error: io::Error| gone(Failure::Broken(format!("the copy is cut off: {error}")));
    let mut piece = vec![0; PIECE];
    let mut received = 0;
    loop {
        let mut length = [0; 4];
        reader.read_exact(&mut length).map_err(cut_off)?;
        let length = u32::from_be_bytes(length) as usize;
        if length == 0 {
            break;
        }
        let piece = piece.get_mut(..length).ok_or_else(|| garbage("a piece of it is too long"))?;
        reader.read_exact(piece).map_err(cut_off)?;
        into.write_all(piece)
            .map_err(|error| ArtifactError::Io(format!("writing a copy of {path}"), error))?;
        received += length as u64;
    }
    let mut end = Vec::new();
    reader.take(MAX_END).read_to_end(&mut end).map_err(cut_off)?;
    match serde_json::from_slice(&end).map_err(|error| garbage(&error.to_string()))? {
        CopyEnd::Done { bytes } if bytes == received => Ok(bytes),
        CopyEnd::Done { .. } => Err(garbage("the copy lacks a piece")),
        CopyEnd::Failed(failed) => Err(failed.into()),
    }
}

/// A put's body: its line, and what is put.
struct Body<'a> {
    line: Cursor<&'a Vec<u8>>,
    from: &'a mut (dyn Read + Send),
    /// Something of what is put was read.
    is_begun: bool,
    /// Why it could not be read.
    failed: Option<io::Error>,
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.line.read(buffer)?;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        self.is_begun = true;
        loop {
            match self.from.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let again = io::Error::new(error.kind(), error.to_string());
                    self.failed = Some(error);
                    return Err(again);
                }
                read => return read,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(pieces: &[&[u8]], end: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in pieces.iter().chain([&&b""[..]]) {
            bytes.extend((piece.len() as u32).to_be_bytes());
            bytes.extend_from_slice(piece);
        }
        bytes.extend(end.as_bytes());
        bytes
    }

    #[test]
    fn a_copy_is_whole_or_an_error() {
        let read = |bytes: &[u8]| {
            let mut into = Vec::new();
            read_pieces(bytes, "f", &mut into).map(|bytes| (bytes, into))
        };
        let whole = pieces(&[b"ab", b"c"], r#"{"done":{"bytes":3}}"#);
        assert_eq!(read(&whole).unwrap(), (3, b"abc".to_vec()));
        assert_eq!(read(&pieces(&[], r#"{"done":{"bytes":0}}"#)).unwrap(), (0, Vec::new()));
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
        assert!(read(&pieces(&[b"ab"], r#"{"done":{"bytes":3}}"#)).is_err());
        let failed = pieces(&[b"ab"], r#"{"failed":{"code":"not_a_file","text":"f"}}"#);
        assert!(matches!(read(&failed), Err(ArtifactError::NotAFile(path)) if path == "f"));
        assert!(read(&[0xff; 64]).is_err());
    }
}
