//! Whether a server that cannot be understood speaks the other one of `http` and `https`.

use std::time::Duration;

use ureq::Agent;
use ureq::http::Uri;
use ureq::http::uri::{Authority, Scheme};

use super::Failure;
use super::failure::tls_error;

/// How much of an answer is looked at.
const LOOKED_AT: u64 = 4 * 1024;

/// Asks the server of `uri` by the other scheme, without a token, within `time`; if it understands
/// that, says so and how its URL begins.
pub(crate) fn other_scheme(agent: &Agent, uri: &Uri, time: Duration) -> Option<String> {
    let (other, was_tls) = with_other_scheme(uri)?;
    let request = agent.get(other.clone()).config().timeout_global(Some(time)).build();
    let understands = match request.call() {
        // One that wants TLS may say so in plain HTTP.
        Ok(response) => !was_tls || !says_that_it_wants_tls(response),
        // Whatever TLS does not like, it is TLS.
        Err(error) => {
            let is_no_tls = matches!(
                tls_error(&error),
                None | Some(rustls::Error::InvalidMessage(_) | rustls::Error::General(_))
            );
            !was_tls && !is_no_tls
        }
    };
    let (speaks, spoken) = if was_tls { ("http", "https") } else { ("https", "http") };
    understands.then(|| {
        let authority = other.authority().map_or("", Authority::as_str);
        format!("it speaks {speaks}, not {spoken}: its URL begins with {speaks}://{authority}")
    })
}

/// The same place by the other scheme, and whether the one given is `https`. The port is the one
/// that the given URL means.
fn with_other_scheme(uri: &Uri) -> Option<(Uri, bool)> {
    let was_tls = uri.scheme() == Some(&Scheme::HTTPS);
    let (scheme, port) = if was_tls { (Scheme::HTTP, 443) } else { (Scheme::HTTPS, 80) };
    let authority = uri.authority()?;
    let authority: Authority = match authority.port() {
        Some(_) => authority.clone(),
        None => format!("{authority}:{port}").parse().ok()?,
    };
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(scheme);
    parts.authority = Some(authority);
    Some((Uri::from_parts(parts).ok()?, was_tls))
}

fn says_that_it_wants_tls(mut response: ureq::http::Response<ureq::Body>) -> bool {
    if response.status() != 400 {
        return false;
    }
    let body = response.body_mut().with_config().limit(LOOKED_AT).read_to_vec();
    let text = body.map_err(Failure::from).unwrap_or_default().to_ascii_lowercase();
    let says = |word: &[u8]| text.windows(word.len()).any(|some| some == word);
    says(b"https") || says(b"tls") || says(b"ssl")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_other_scheme_has_the_same_host_port_and_path() {
        for (uri, other) in [
            ("http://a:8080/health", "https://a:8080/health"),
            ("https://a:8080/x/health", "http://a:8080/x/health"),
            ("http://a/health", "https://a:80/health"),
            ("https://[::1]/health", "http://[::1]:443/health"),
        ] {
            let (found, _) = with_other_scheme(&uri.parse().unwrap()).unwrap();
            assert_eq!(found.to_string(), other);
        }
    }
}
