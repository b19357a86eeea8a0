//! What `skopeo` says when it fails, and what that means. Pure.

use std::time::Duration;

use crate::sandbox::image::PullFailure;

/// How much of what it says is shown.
const SHOWN: usize = 600;
/// The first wait before a pull is tried again, and the longest.
const WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The last thing that was said: the message of a line that is written as `time=… level=… msg="…"`.
pub(super) fn last_message(text: &str) -> String {
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("nothing");
    let message = match line.split_once(" msg=") {
        Some((_, quoted)) => unquoted(quoted),
        None => line.to_owned(),
    };
    // It wraps what failed in what this is no case of: the name was read.
    let message = match message.strip_prefix("Error parsing image name ") {
        Some(rest) => rest.split_once("\": ").map_or(rest, |(_, cause)| cause).to_owned(),
        None => message,
    };
    let mut shown: String =
        message.chars().take(SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if message.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// A text in quotes, as Go writes it.
fn unquoted(text: &str) -> String {
    let Some(text) = text.strip_prefix('"') else { return text.to_owned() };
    let text = text.strip_suffix('"').unwrap_or(text);
    let (mut plain, mut chars) = (String::with_capacity(text.len()), text.chars());
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some('n' | 't' | 'r') => plain.push(' '),
                Some(c) => plain.push(c),
                None => {}
            },
            c => plain.push(c),
        }
    }
    plain
}

/// What a message means.
pub(super) fn reason(message: &str) -> PullFailure {
    let text = message.to_ascii_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    // In this order: a message has the words of the registry, and of what it is about.
    if has(&["toomanyrequests", "too many requests", "429"]) {
        PullFailure::RateLimited
    } else if has(&["no space left", "disk quota exceeded"]) {
        PullFailure::Full
    } else if has(&["x509", "certificate", "server gave http response to https client"]) {
        PullFailure::Certificate
    } else if has(&[
        "unauthorized",
        "authentication required",
        "denied",
        "invalid username/password",
        "status 401",
        "status 403",
        "unable to retrieve auth token",
    ]) {
        PullFailure::Unauthorized
    } else if has(&[
        "manifest unknown",
        "name unknown",
        "not found",
        "404",
        "blob unknown",
        "no such image",
        "does not resolve to an image id",
    ]) {
        PullFailure::NotFound
    } else if has(&["digest did not match", "digest mismatch", "does not match", "digest of"]) {
        PullFailure::WrongDigest
    } else if has(&[
        "unexpected eof",
        "connection reset",
        "broken pipe",
        "eof",
        "stream error",
        "unexpected http status",
        "status code 5",
        "status: 5",
        "internal server error",
        "bad gateway",
        "service unavailable",
        "gateway timeout",
        "range request",
    ]) {
        PullFailure::Cut
    } else if has(&[
        "connection refused",
        "no such host",
        "no route to host",
        "network is unreachable",
        "i/o timeout",
        "timeout",
        "deadline exceeded",
        "temporary failure",
        "server misbehaving",
        "dial ",
        "pinging container registry",
    ]) {
        PullFailure::Unreachable
    } else {
        PullFailure::Other
    }
}

/// How long to wait before a pull is tried again that failed for the `failed`th time; none if that
/// would not help.
pub(in crate::sandbox::image) fn wait_before_retry(
    reason: PullFailure,
    failed: u32,
    retries: u32,
) -> Option<Duration> {
    let may_pass = matches!(reason, PullFailure::Cut | PullFailure::Unreachable);
    let (first, longest) = WAITS;
    let wait = first.saturating_mul(1 << failed.saturating_sub(1).min(16)).min(longest);
    (may_pass && (1..=retries).contains(&failed)).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_found_in_what_is_logged() {
        for (said, message) in [
            (
                "time=\"2026\" level=fatal msg=\"Error parsing image name \\\"docker://h/x:1\\\": \
                 reading manifest 1 in h/x: manifest unknown: \\\"no\\\"\"\n",
                "reading manifest 1 in h/x: manifest unknown: \"no\"",
            ),
            ("one\ntwo \n\n", "two"),
            ("time=\"1\" level=fatal msg=plain", "plain"),
            ("time=\"1\" msg=\"a\\nb\u{1b}[2J\"", "a b\u{fffd}[2J"),
            ("", "nothing"),
        ] {
            assert_eq!(last_message(said), message);
        }
        assert_eq!(last_message(&"x".repeat(1000)).chars().count(), SHOWN + 1);
    }

    #[test]
    fn each_message_has_its_reason() {
        for (message, expected) in [
            ("reading manifest 2 in h/x: manifest unknown", PullFailure::NotFound),
            ("reading manifest 2 in h/x: toomanyrequests: You have", PullFailure::RateLimited),
            ("received unexpected HTTP status: 429 Too Many Requests", PullFailure::RateLimited),
            ("reading manifest: errors: denied: requested access", PullFailure::Unauthorized),
            ("reading manifest 1 in h/x: unauthorized: authentication", PullFailure::Unauthorized),
            ("Get \"https://h/v2/\": x509: certificate signed by", PullFailure::Certificate),
            ("http: server gave HTTP response to HTTPS client", PullFailure::Certificate),
            ("dial tcp 127.0.0.1:5999: connect: connection refused", PullFailure::Unreachable),
            ("lookup no.such on 10.0.0.1:53: no such host", PullFailure::Unreachable),
            ("received unexpected HTTP status: 503 Service Unavailable", PullFailure::Cut),
            ("writing blob: storing blob: unexpected EOF", PullFailure::Cut),
            ("write /x/layout/y: no space left on device", PullFailure::Full),
            ("Digest did not match, expected sha256:a, got sha256:b", PullFailure::WrongDigest),
            ("a word that is not known", PullFailure::Other),
        ] {
            assert_eq!(reason(message), expected, "{message}");
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again_and_ever_later() {
        let wait = |reason, failed| wait_before_retry(reason, failed, 7).map(|wait| wait.as_secs());
        let waits: Vec<_> = (1..9).map(|failed| wait(PullFailure::Cut, failed)).collect();
        let expected = [1, 2, 4, 8, 16, 30, 30].map(Some);
        assert_eq!(waits, [&expected[..], &[None]].concat());
        assert_eq!(wait(PullFailure::Unreachable, 1), Some(1));
        for reason in [PullFailure::NotFound, PullFailure::RateLimited, PullFailure::WrongDigest] {
            assert_eq!(wait(reason, 1), None);
        }
        assert_eq!(wait_before_retry(PullFailure::Cut, 1, 0), None);
        assert_eq!(wait_before_retry(PullFailure::Cut, u32::MAX, u32::MAX).unwrap().as_secs(), 30);
    }
}
