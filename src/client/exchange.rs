//! One request and its answer over HTTP/1.1, without I/O: bytes to send, bytes that came, and what
//! they mean. The framing is `ureq_proto`'s (RFC 9112).

use ureq::http::{HeaderValue, Request, Uri, header};
use ureq_proto::BodyMode;
use ureq_proto::client::state::{RecvBody, RecvResponse};
use ureq_proto::client::{Call, RecvResponseResult, SendRequestResult};

use super::{Authorization, Failure};

/// The longest head of an answer: as `ureq`'s.
const MAX_HEAD: usize = 64 * 1024;
/// How much of a body is taken from its framing at a time.
const PART: usize = 16 * 1024;

/// An answer, whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    /// Its status.
    pub(crate) status: u16,
    /// Its body, without framing.
    pub(crate) body: Vec<u8>,
}

/// What has come of an answer so far.
pub(super) struct Exchange {
    part: Part,
    /// What came and was not taken from its framing yet.
    raw: Vec<u8>,
    body: Vec<u8>,
    max_body: usize,
}

enum Part {
    Head(Call<RecvResponse>),
    Body(u16, Call<RecvBody>),
    /// Nothing more is looked at.
    Over,
}

impl Exchange {
    /// A POST of JSON, and its bytes, whole. Its connection serves no other.
    ///
    /// # Errors
    /// It cannot be a request.
    pub(super) fn post(
        uri: &Uri,
        authorization: Option<&Authorization>,
        body: &[u8],
        max_body: usize,
    ) -> Result<(Self, Vec<u8>), Failure> {
        let failed = |error: &dyn std::fmt::Display| Failure::NotSent(error.to_string());
        let mut request = Request::post(uri)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONTENT_LENGTH, body.len())
            .header(header::CONNECTION, "close");
        if let Some(Authorization(token)) = authorization {
            let mut token = HeaderValue::from_str(token).map_err(|error| failed(&error))?;
            token.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, token);
        }
        let request = request.body(()).map_err(|error| failed(&error))?;
        let mut call = Call::new(request).map_err(|error| failed(&error))?.proceed();
        // The head has the token and the path, which are bounded; and there is room to grow.
        let mut bytes = vec![0; 4096 + uri.to_string().len()];
        let mut head = 0;
        while !call.can_proceed() {
            match call.write(&mut bytes[head..]).map_err(|error| failed(&error))? {
                0 if bytes.len() > MAX_HEAD => {
                    return Err(Failure::NotSent("its head is too long".to_owned()));
                }
                0 => bytes.resize(bytes.len() * 2, 0),
                written => head += written,
            }
        }
        bytes.truncate(head);
        let call = match call.proceed().map_err(|error| failed(&error))? {
            Some(SendRequestResult::SendBody(mut call)) => {
                bytes.extend_from_slice(body);
                call.consume_direct_write(body.len()).map_err(|error| failed(&error))?;
                if body.is_empty() {
                    call.write(&[], &mut []).map_err(|error| failed(&error))?;
                }
                call.proceed()
            }
            Some(SendRequestResult::RecvResponse(call)) => Some(call),
            _ => None,
        };
        let Some(call) = call else {
            return Err(Failure::NotSent("its body has no end".to_owned()));
        };
        let (part, raw, body) = (Part::Head(call), Vec::new(), Vec::new());
        Ok((Self { part, raw, body, max_body }, bytes))
    }

    /// Takes bytes of the answer; gives it when it is whole.
    ///
    /// # Errors
    /// It is no answer, or a longer one than is read.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Result<Option<Answered>, Failure> {
        self.raw.extend_from_slice(bytes);
        let broken = |error: ureq_proto::Error| Failure::Broken(format!("protocol: {error}"));
        while let Part::Head(call) = &mut self.part {
            let (used, response) = call.try_response(&self.raw, false).map_err(broken)?;
            self.raw.drain(..used);
            let Some(response) = response else {
                if self.raw.len() > MAX_HEAD {
                    return Err(Failure::Broken("the head of the answer is too long".to_owned()));
                }
                // It may be an interim answer that has gone.
                if used > 0 {
                    continue;
                }
                return Ok(None);
            };
            let status = response.status().as_u16();
            let Part::Head(call) = std::mem::replace(&mut self.part, Part::Over) else { break };
            match call.proceed() {
                Some(RecvResponseResult::RecvBody(call)) => self.part = Part::Body(status, call),
                _ => return Ok(Some(Answered { status, body: Vec::new() })),
            }
        }
        let Part::Body(status, call) = &mut self.part else { return Ok(None) };
        let mut used = 0;
        loop {
            let length = self.body.len();
            self.body.resize(length + PART, 0);
            let read = call.read(&self.raw[used..], &mut self.body[length..]);
            let (of_raw, of_body) = read.map_err(broken)?;
            self.body.truncate(length + of_body);
            used += of_raw;
            if self.body.len() > self.max_body {
                return Err(Failure::Broken(format!(
                    "the answer has more than {} bytes",
                    self.max_body
                )));
            }
            if of_raw == 0 && of_body == 0 {
                break;
            }
        }
        self.raw.drain(..used);
        let status = *status;
        let is_whole = call.can_proceed() && call.body_mode() != BodyMode::CloseDelimited;
        Ok(is_whole.then(|| self.finish(status)))
    }

    /// No more bytes come.
    ///
    /// # Errors
    /// That is too early.
    pub(super) fn end(&mut self) -> Result<Answered, Failure> {
        let is_whole = |call: &Call<RecvBody>| call.can_proceed() || call.is_ended_chunked();
        match &self.part {
            Part::Body(status, call) if is_whole(call) => {
                let status = *status;
                Ok(self.finish(status))
            }
            Part::Head(_) if self.raw.is_empty() => {
                Err(Failure::Broken("the connection was closed without an answer".to_owned()))
            }
            _ => Err(Failure::Broken("the connection was closed amid the answer".to_owned())),
        }
    }

    fn finish(&mut self, status: u16) -> Answered {
        self.part = Part::Over;
        Answered { status, body: std::mem::take(&mut self.body) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn exchange(max_body: usize) -> (Exchange, Vec<u8>) {
        let uri = "http://box:8080/base/execute".parse().unwrap();
        let token = Authorization::bearer("s3cret").unwrap();
        Exchange::post(&uri, Some(&token), b"{\"a\":1}", max_body).unwrap()
    }

    #[test]
    fn a_request_has_its_head_its_token_and_its_body() {
        let (_, bytes) = exchange(100);
        let text = String::from_utf8(bytes).unwrap().to_ascii_lowercase();
        assert!(text.starts_with("post /base/execute http/1.1\r\nhost: box:8080\r\n"), "{text}");
        for line in [
            "content-type: application/json",
            "content-length: 7",
            "connection: close",
            "authorization: bearer s3cret",
        ] {
            assert!(text.contains(&format!("\r\n{line}\r\n")), "{line}: {text}");
        }
        assert!(text.ends_with("\r\n\r\n{\"a\":1}"), "{text}");
        let uri = "http://box/".parse().unwrap();
        let (_, bytes) = Exchange::post(&uri, None, b"", 1).unwrap();
        assert!(bytes.ends_with(b"\r\n\r\n"));
    }

    const ANSWERS: [(&str, bool); 5] = [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", true),
        ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", true),
        (
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            true,
        ),
        ("HTTP/1.1 200 OK\r\n\r\nhello", false),
        ("HTTP/1.0 200 OK\r\nServer: x\r\n\r\nhello", false),
    ];

    #[test]
    fn every_framing_is_read_in_pieces_of_any_size() {
        for (answer, has_an_end) in ANSWERS {
            for size in 1..answer.len() {
                let (mut exchange, _) = exchange(100);
                let mut answered = None;
                for piece in answer.as_bytes().chunks(size) {
                    assert!(answered.is_none());
                    answered = exchange.take(piece).unwrap();
                }
                assert_eq!(answered.is_some(), has_an_end, "{answer}");
                let answered = answered.unwrap_or_else(|| exchange.end().unwrap());
                assert_eq!(answered, Answered { status: 200, body: b"hello".to_vec() });
            }
        }
    }

    #[test]
    fn an_answer_that_ends_too_early_is_none() {
        for (answer, has_an_end) in ANSWERS {
            let text = answer.as_bytes();
            for length in 0..text.len() {
                let (mut exchange, _) = exchange(100);
                let taken = exchange.take(&text[..length]).unwrap();
                let is_cut = if has_an_end { taken.is_none() } else { false };
                // "0\r\n" is the end of a chunked answer, if need be.
                if is_cut && !text[..length].windows(5).any(|end| end == b"\r\n0\r\n") {
                    assert!(exchange.end().is_err(), "{length} of {answer}");
                }
            }
        }
    }

    #[test]
    fn an_answer_without_a_body_and_one_that_is_too_long() {
        let (mut first, _) = exchange(100);
        let answered = first.take(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
        assert_eq!(answered, Some(Answered { status: 204, body: Vec::new() }));
        let (mut second, _) = exchange(4);
        assert!(second.take(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").is_err());
        let (mut third, _) = exchange(4);
        let endless = vec![b'a'; MAX_HEAD + 100];
        let head = [b"HTTP/1.1 200 OK\r\nX: ".as_slice(), &endless].concat();
        assert!(third.take(&head).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_whatever_panic_or_grow(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20),
            head in 0..ANSWERS.len(),
        ) {
            let (mut exchange, _) = exchange(64);
            let mut result = exchange.take(&ANSWERS[head].0.as_bytes()[..20]);
            for piece in pieces {
                if !matches!(result, Ok(None)) {
                    break;
                }
                result = exchange.take(&piece);
            }
            prop_assert!(exchange.body.len() <= 64 + PART);
        }
    }
}
