//! Bearer tokens: who may use a server.

use std::fmt;

use subtle::ConstantTimeEq;

use crate::config::Secret;
use crate::error::ConfigError;

/// A server's bearer token. Never printed: not in `Debug`, not in errors, not in logs.
#[derive(Clone)]
pub(crate) struct Token(String);

impl Token {
    /// A token.
    ///
    /// # Errors
    /// It is empty, or has a character that no header may have.
    pub(crate) fn new(secret: &Secret) -> Result<Self, ConfigError> {
        let text = secret.expose();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let text = "the token is empty or has a character that no header may";
            return Err(ConfigError::new(text));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Why a request is refused: its status, and the text for `{"detail": …}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) detail: &'static str,
}

/// Checks the `Authorization` header of a request. Without a token everybody may.
///
/// The comparison takes the same time wherever two tokens of one length differ.
///
/// # Errors
/// The refusal to answer with, in the words of the reference protocol (section 5).
pub(crate) fn check(token: Option<&Token>, authorization: Option<&[u8]>) -> Result<(), Refusal> {
    const SCHEME: &[u8] = b"bearer ";
    let Some(token) = token else { return Ok(()) };
    let refuse = |status, detail| Err(Refusal { status, detail });
    let Some(header) = authorization.filter(|header| !header.is_empty()) else {
        return refuse(401, "Missing Authorization header");
    };
    match header.split_at_checked(SCHEME.len()) {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case(SCHEME) => {
            if bool::from(given.trim_ascii().ct_eq(token.0.as_bytes())) {
                Ok(())
            } else {
                refuse(403, "Invalid token")
            }
        }
        _ => refuse(401, "Invalid Authorization header"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_what_follows_bearer_in_any_case_trimmed() {
        let token = Token::new(&"s3cret".into()).unwrap();
        let check = |header: Option<&str>| {
            check(Some(&token), header.map(str::as_bytes)).map_err(|refusal| refusal.status)
        };
        assert_eq!(check(Some("Bearer s3cret")), Ok(()));
        assert_eq!(check(Some("bEARER   s3cret  ")), Ok(()));
        for (header, status) in [
            (None, 401),
            (Some(""), 401),
            (Some("Bearer"), 401),
            (Some("Basic s3cret"), 401),
            (Some("s3cret"), 401),
            (Some("Bearer "), 403),
            (Some("Bearer s3cre"), 403),
            (Some("Bearer S3CRET"), 403),
            (Some("Bearer s3cret s3cret"), 403),
        ] {
            assert_eq!(check(header), Err(status), "{header:?}");
        }
        assert_eq!(super::check(None, None), Ok(()));
        assert!(!format!("{token:?}").contains("s3cret"));
        assert!(Token::new(&"".into()).is_err() && Token::new(&"a b".into()).is_err());
    }
}
