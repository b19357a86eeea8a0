//! TLS: a server's certificate and key, and the handshake.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::validity;
use crate::config::Secret;
use crate::error::ConfigError;

/// The first byte of every TLS connection: a handshake record.
const HANDSHAKE: u8 = 0x16;

/// The answer to plain HTTP, which clients that look for `https` in it understand.
const NOT_HTTP: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Content-Length: 53\r\nConnection: close\r\n\r\nThis server speaks https: its URL begins with https:\n";

/// What does the handshakes of a server with this certificate chain and key, both PEM.
///
/// # Errors
/// What is wrong with them: no PEM, no certificate or key in it, a key of another certificate, a
/// certificate that is not valid now.
pub(crate) fn acceptor(
    cert_pem: &str,
    key_pem: &Secret,
    now: SystemTime,
) -> Result<TlsAcceptor, ConfigError> {
    let wrong = |text: String| ConfigError::new(text);
    let chain = CertificateDer::pem_slice_iter(cert_pem.as_bytes());
    let chain: Result<Vec<_>, PemError> = chain.collect();
    let chain =
        chain.map_err(|error| wrong(format!("tls_cert_pem cannot be read as PEM: {error}")))?;
    let Some(own) = chain.first() else {
        let text = "there is no certificate in tls_cert_pem; it must have one or more blocks of \
                    -----BEGIN CERTIFICATE-----, the server's own first";
        return Err(ConfigError::new(text));
    };
    let validity = validity::of(own).ok_or_else(|| {
        wrong("the first certificate in tls_cert_pem is none that can be read".to_owned())
    })?;
    validity.check(now).map_err(|why| wrong(format!("the server's certificate {why}")))?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.expose().as_bytes()).map_err(|error| {
        wrong(match error {
            PemError::NoItemsFound => "there is no private key in tls_key_pem; it must have a \
                                       block of -----BEGIN PRIVATE KEY-----, without a password"
                .to_owned(),
            // Nothing of a key is in these errors.
            error => format!("tls_key_pem cannot be read as PEM: {error}"),
        })
    })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(format!("TLS cannot be set up: {error}")))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| {
            wrong(match error {
                rustls::Error::InconsistentKeys(_) => "the key in tls_key_pem is not that of the \
                                                       first certificate in tls_cert_pem"
                    .to_owned(),
                error => format!("the certificate and its key cannot be used: {error}"),
            })
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Does the handshake. A client that speaks plain HTTP is told what is spoken here. Has no deadline
/// of its own.
///
/// # Errors
/// The client leaves, or does not speak TLS, or not with this server.
pub(crate) async fn accept(
    acceptor: &TlsAcceptor,
    mut stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    let mut first = [0];
    if stream.peek(&mut first).await? == 1 && first != [HANDSHAKE] {
        stream.write_all(NOT_HTTP).await?;
        stream.shutdown().await?;
        return Err(io::Error::other("it does not speak TLS"));
    }
    acceptor.accept(stream).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    fn error(cert: &str, key: &str) -> String {
        let error = acceptor(cert, &key.into(), SystemTime::now()).map(|_| ()).unwrap_err();
        error.to_string()
    }

    #[test]
    fn what_is_wrong_with_a_certificate_or_key_is_said() {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        assert!(acceptor(&cert, &key.as_str().into(), SystemTime::now()).is_ok());
        let another = KeyPair::generate().unwrap().serialize_pem();
        assert!(error(&cert, &another).contains("is not that of the first certificate"));
        assert!(error("", &key).contains("no certificate in tls_cert_pem"));
        assert!(error(&key, &key).contains("no certificate in tls_cert_pem"));
        assert!(error(&cert, "").contains("no private key in tls_key_pem"));
        assert!(error(&cert, &cert).contains("no private key in tls_key_pem"));
        let cut = &cert[..cert.len() / 2];
        assert!(error(cut, &key).contains("cannot be read as PEM"), "{}", error(cut, &key));
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(error(nonsense, &key).contains("none that can be read"));
        for text in [error(&cert, &another), error(&cert, &key[..80])] {
            assert!(!text.contains(key.lines().nth(1).unwrap()), "{text}");
        }
    }

    #[test]
    fn a_certificate_that_is_not_valid_now_is_refused_at_the_start() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2021, 2, 3);
        let cert = params.self_signed(&key).unwrap().pem();
        let secret = Secret::from(key.serialize_pem());
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let say = |now| acceptor(&cert, &secret, now).map(|_| ()).map_err(|e| e.to_string());
        assert_eq!(say(at(1_600_000_000)), Ok(()));
        let late = say(SystemTime::now()).unwrap_err();
        assert!(late.contains("has expired: it was valid until 2021-02-03 00:00:00 UTC"), "{late}");
        let early = say(at(1_500_000_000)).unwrap_err();
        assert!(early.contains("is not valid before 2020-01-01 00:00:00 UTC"), "{early}");
    }

    #[test]
    fn the_answer_to_plain_http_is_as_long_as_it_says() {
        let text = std::str::from_utf8(NOT_HTTP).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
