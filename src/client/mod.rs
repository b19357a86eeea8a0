//! What the HTTP clients – of ToolServers and of sandbox servers – have in common: agents,
//! addresses, tokens, and what became of a request.

mod exchange;
mod exchanges;
mod failure;
mod names;
mod scheme;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

pub(crate) use self::exchange::Answered;
pub(crate) use self::exchanges::{Exchanges, Post};
pub(crate) use self::failure::Failure;
use self::names::NameError;
pub(crate) use self::names::Names;
pub(crate) use self::scheme::other_scheme;

use crate::tool::python_json;
use crate::wire;

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer that is read as a whole: 64 MiB.
const MAX_RESPONSE: u64 = 64 * 1024 * 1024;
/// Idle connections are dropped after this. Servers close theirs after 5 s and more; a request on
/// a connection that its server is just closing would fail without anybody's fault. (One that is
/// closed already is found out before it is used.)
const MAX_IDLE: Duration = Duration::from_secs(4);
/// How long a request waits for its server's address, at most.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);

/// A bearer token, as the header that carries it. Never printed.
#[derive(Clone)]
pub(crate) struct Authorization(Arc<str>);

impl Authorization {
    /// The header of this token.
    ///
    /// # Errors
    /// What is wrong with it, without itself.
    pub(crate) fn bearer(token: &str) -> Result<Self, String> {
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the token is empty or has a character that no header may".to_owned());
        }
        Ok(Self(format!("Bearer {token}").into()))
    }
}

impl fmt::Debug for Authorization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Authorization(…)")
    }
}

/// The URL of `path` under a server's base URL; `what` names the server in the error.
///
/// # Errors
/// The base is no `http` or `https` URL of a host.
pub(crate) fn endpoint(what: &str, base: &str, path: &str) -> Result<Uri, String> {
    let base = base.trim_end_matches('/');
    let uri: Uri = format!("{base}{path}")
        .parse()
        .map_err(|error| format!("{base:?} is not the URL of a {what}: {error}"))?;
    let scheme_is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    match uri.authority() {
        // A password in a URL would end up in logs.
        Some(authority) if scheme_is_http && !authority.as_str().contains('@') => Ok(uri),
        _ => Err(format!("{base:?} is not the URL of a {what}; http://host:port would be")),
    }
}

/// How an agent is set up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AgentConfig<'a> {
    /// How many idle connections it keeps; with none, each request has a connection of its own.
    pub(crate) idle_connections: usize,
    /// How long it waits for the next bytes of an answer, within the time limit of the whole.
    pub(crate) read_timeout: Option<Duration>,
    /// The certificate authorities to trust instead of Mozilla's, as PEM.
    pub(crate) ca_pem: Option<&'a str>,
    /// The addresses of the servers that it speaks with.
    pub(crate) names: &'a Names,
}

/// An agent that follows no redirects, uses no proxy, takes every status for an answer, and starts
/// no thread for a request.
///
/// # Errors
/// The certificates are none.
pub(crate) fn agent(config: AgentConfig<'_>) -> Result<Agent, String> {
    let mut builder = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .proxy(None)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_per_read(config.read_timeout)
        .max_idle_connections(config.idle_connections)
        .max_idle_connections_per_host(config.idle_connections)
        .max_idle_age(MAX_IDLE);
    if let Some(pem) = config.ca_pem {
        let roots = RootCerts::from(authorities(pem)?);
        builder = builder.tls_config(TlsConfig::builder().root_certs(roots).build());
    }
    let resolver = NamesResolver(config.names.clone());
    Ok(Agent::with_parts(builder.build(), DefaultConnector::default(), resolver))
}

/// The certificate authorities in a PEM text.
fn authorities(pem: &str) -> Result<Vec<Certificate<'static>>, String> {
    let mut roots = Vec::new();
    for item in parse_pem(pem.as_bytes()) {
        match item {
            Ok(PemItem::Certificate(certificate)) => roots.push(certificate),
            Ok(_) => {}
            Err(error) => return Err(format!("the CA certificates cannot be read: {error}")),
        }
    }
    if roots.is_empty() {
        return Err("there is no CA certificate in what was given".to_owned());
    }
    Ok(roots)
}

/// How [`Exchanges`] speak TLS: as an [`agent`] with the same authorities does.
///
/// # Errors
/// The certificates are none.
pub(crate) fn tls_config(ca_pem: Option<&str>) -> Result<Arc<ClientConfig>, String> {
    let mut roots = RootCertStore::empty();
    match ca_pem {
        None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        Some(pem) => {
            for authority in authorities(pem)? {
                let der = CertificateDer::from(authority.der().to_vec());
                roots
                    .add(der)
                    .map_err(|error| format!("a CA certificate cannot be used: {error}"))?;
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(Arc::new(builder.with_root_certificates(roots).with_no_client_auth()))
}

/// Reads an answer: a bounded body of Python's JSON under a status of success.
///
/// # Errors
/// See [`Failure`].
pub(crate) fn read_json<T: DeserializeOwned>(
    response: ureq::http::Response<ureq::Body>,
) -> Result<T, Failure> {
    read_json_up_to(MAX_RESPONSE, response)
}

/// The same, of a body of at most so many bytes.
///
/// # Errors
/// See [`Failure`].
pub(crate) fn read_json_up_to<T: DeserializeOwned>(
    max: u64,
    mut response: ureq::http::Response<ureq::Body>,
) -> Result<T, Failure> {
    let status = response.status();
    let body = response.body_mut().with_config().limit(max).read_to_vec()?;
    json_answer(&Answered { status: status.as_u16(), body })
}

/// The same, of an answer that is there.
///
/// # Errors
/// See [`Failure`].
pub(crate) fn json_answer<T: DeserializeOwned>(answered: &Answered) -> Result<T, Failure> {
    let text = String::from_utf8_lossy(&answered.body);
    if !(200..300).contains(&answered.status) {
        return Err(Failure::Refused(answered.status, wire::error_text(&text)));
    }
    let value = python_json::parse(&text)
        .map_err(|error| Failure::Broken(format!("the answer is not JSON: {error}")))?;
    serde_json::from_value(value)
        .map_err(|error| Failure::Broken(format!("the answer is not of the protocol: {error}")))
}

/// Adds the header to a request, if there is one.
pub(crate) fn authorize<B>(
    request: ureq::RequestBuilder<B>,
    authorization: Option<&Authorization>,
) -> ureq::RequestBuilder<B> {
    match authorization {
        Some(Authorization(header)) => request.header("Authorization", &**header),
        None => request,
    }
}

/// Finds servers in [`Names`]. The default resolver starts a thread for every request that has a
/// time limit.
#[derive(Debug)]
struct NamesResolver(Names);

impl Resolver for NamesResolver {
    fn resolve(
        &self,
        uri: &Uri,
        _config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else {
            return Err(ureq::Error::HostNotFound);
        };
        let host =
            DefaultResolver::host_and_port(scheme, authority).ok_or(ureq::Error::HostNotFound)?;
        let wait = (*timeout.after).min(LOOK_UP_TIMEOUT);
        let addresses = self.0.addresses(&host, Instant::now() + wait);
        let addresses = addresses.map_err(|error| match error {
            NameError::NotFound(why) => {
                log::debug!("{host}: {why}");
                ureq::Error::HostNotFound
            }
            NameError::Slow | NameError::GivenUp => ureq::Error::Timeout(ureq::Timeout::Resolve),
        })?;
        let mut result = self.empty();
        addresses.iter().for_each(|address| result.push(*address));
        Ok(result)
    }
}
