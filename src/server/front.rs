//! What both servers begin with: the listener, the door, TLS, and how they call themselves.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::SystemTime;

use super::auth::Token;
use super::door::{Door, own_names};
use super::error::ServeError;
use super::http::{HttpLimits, Serving};
use super::tls;
use crate::config::{Advertise, ServerConfig};

/// A server's address, taken, and how it serves there.
pub(super) struct Front {
    pub(super) listener: TcpListener,
    pub(super) serving: Serving,
    /// How others reach it.
    pub(super) url: String,
}

impl Front {
    /// Takes the address of a server that is configured so.
    ///
    /// # Errors
    /// The configuration makes no sense, or the address cannot be listened on.
    pub(super) fn open(config: &ServerConfig) -> Result<Self, ServeError> {
        config.check()?;
        let token = config.token.as_ref().map(Token::new).transpose()?;
        let tls = match (&config.tls_cert_pem, &config.tls_key_pem) {
            (Some(cert), Some(key)) => Some(tls::acceptor(cert, key, SystemTime::now())?),
            _ => None,
        };
        let refused = |error| ServeError::Listen(config.addr, error);
        let listener = TcpListener::bind(config.addr).map_err(refused)?;
        let addr = listener.local_addr().map_err(refused)?;
        // Checked above.
        let advertised = config.advertise.as_deref().and_then(|text| text.parse().ok());
        let host = host_name();
        let door = Door {
            token,
            on_loopback: addr.ip().is_loopback(),
            names: own_names(addr, advertised.as_ref().map(|own: &Advertise| &*own.host), &host),
            tls: tls.is_some(),
        };
        let url = url(addr, advertised.as_ref(), &host, tls.is_some());
        let serving = Serving { limits: HttpLimits::from(config), door: Arc::new(door), tls };
        Ok(Self { listener, serving, url })
    }
}

/// What this machine calls itself; empty where that is not known, or is no name for a URL.
fn host_name() -> String {
    #[cfg(target_os = "linux")]
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(target_os = "linux"))]
    let name = String::new();
    let is_fine = name.parse::<Advertise>().is_ok_and(|read| read.port.is_none());
    if is_fine { name } else { String::new() }
}

/// How others reach a server that listens there.
fn url(addr: SocketAddr, advertised: Option<&Advertise>, host: &str, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    let port = advertised.and_then(|own| own.port).unwrap_or(addr.port());
    let name = match advertised {
        Some(own) => &own.host,
        None if addr.ip().is_unspecified() && !host.is_empty() => host,
        None => return format!("{scheme}://{addr}"),
    };
    match name.contains(':') {
        true => format!("{scheme}://[{name}]:{port}"),
        false => format!("{scheme}://{name}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_calls_itself_as_it_is_told_or_by_the_hosts_name_if_it_listens_everywhere() {
        for (addr, advertise, host, tls, expected) in [
            ("127.0.0.1:80", None, "node7", false, "http://127.0.0.1:80"),
            ("[::1]:80", None, "node7", true, "https://[::1]:80"),
            ("0.0.0.0:80", None, "node7", true, "https://node7:80"),
            ("[::]:80", None, "node7", false, "http://node7:80"),
            ("0.0.0.0:80", None, "", false, "http://0.0.0.0:80"),
            ("0.0.0.0:80", Some("boxes"), "node7", false, "http://boxes:80"),
            ("127.0.0.1:80", Some("boxes:443"), "node7", true, "https://boxes:443"),
            ("0.0.0.0:80", Some("[fe80::7]"), "node7", false, "http://[fe80::7]:80"),
        ] {
            let advertise: Option<Advertise> = advertise.map(|text| text.parse().unwrap());
            let found = url(addr.parse().unwrap(), advertise.as_ref(), host, tls);
            assert_eq!(found, expected);
        }
    }
}
