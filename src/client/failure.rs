//! Why a request brought no answer that can be used, and whether another try could.

use std::io::ErrorKind;

use rustls::{AlertDescription, CertificateError, InvalidMessage};

/// Why a request brought no answer that can be used.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Its time was up.
    Timeout,
    /// It did not reach the server.
    NotSent(String),
    /// It did not reach a server: none listens there.
    NoListener,
    /// It did not reach the server, and no other try will: the address or the server's certificate
    /// is not right.
    Misconfigured(String),
    /// The other side does not speak TLS, or not with us.
    NoTls(String),
    /// The server refused it.
    Refused(u16, String),
    /// It may have reached the server.
    Broken(String),
}

impl Failure {
    /// What happened, as one line.
    pub(crate) fn text(&self) -> String {
        match self {
            Failure::Timeout => "no answer in time".to_owned(),
            Failure::NoListener => "connection refused".to_owned(),
            Failure::Refused(status, text) => format!("HTTP {status}: {text}"),
            Failure::NotSent(text)
            | Failure::Misconfigured(text)
            | Failure::NoTls(text)
            | Failure::Broken(text) => text.clone(),
        }
    }

    /// Whether what was asked for may have been done.
    pub(crate) fn may_have_executed(&self) -> bool {
        match self {
            Failure::NotSent(_) | Failure::NoListener | Failure::Misconfigured(_) => false,
            // 4xx: refused before anything ran. 5xx: it is not known.
            Failure::Refused(status, _) => *status >= 500,
            // So it is said by a peer that is met for the first time; but not only by one.
            Failure::NoTls(_) => true,
            Failure::Timeout | Failure::Broken(_) => true,
        }
    }

    /// Whether waiting cannot mend it, as opposed to a server that is not there yet: a wrong
    /// scheme, certificate, token or address.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Failure::Misconfigured(_) | Failure::NoTls(_) => true,
            Failure::Refused(status, _) => matches!(status, 401 | 403 | 404),
            Failure::Timeout | Failure::NotSent(_) | Failure::NoListener | Failure::Broken(_) => {
                false
            }
        }
    }

    /// Whether it is what comes of speaking `http` to a server that wants `https`, or the other way
    /// round, among other things: [`other_scheme`](super::other_scheme) can tell.
    pub(crate) fn may_be_the_scheme(&self) -> bool {
        match self {
            Failure::Timeout | Failure::NoTls(_) | Failure::Broken(_) => true,
            // Servers that know what happened say so under this status.
            Failure::Refused(status, _) => *status == 400,
            Failure::NotSent(_) | Failure::NoListener | Failure::Misconfigured(_) => false,
        }
    }
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Self {
        if let Some(failure) = tls_error(&error).and_then(of_tls) {
            return failure;
        }
        let text = error.to_string();
        match error {
            ureq::Error::Timeout(ureq::Timeout::Connect) => {
                Failure::NotSent(format!("cannot connect: {text}"))
            }
            ureq::Error::Timeout(ureq::Timeout::Resolve) => {
                Failure::NotSent("its host name was not found in time".to_owned())
            }
            ureq::Error::Timeout(_) => Failure::Timeout,
            ureq::Error::HostNotFound => Failure::NotSent("host name not found".to_owned()),
            ureq::Error::ConnectionFailed => Failure::NotSent(text),
            ureq::Error::Io(error) if error.kind() == ErrorKind::ConnectionRefused => {
                Failure::NoListener
            }
            ureq::Error::BadUri(_) | ureq::Error::Tls(_) => Failure::Misconfigured(text),
            _ => Failure::Broken(text),
        }
    }
}

/// What TLS says of a request's failure.
pub(super) fn tls_error(error: &ureq::Error) -> Option<&rustls::Error> {
    match error {
        ureq::Error::Rustls(error) => Some(error),
        ureq::Error::Io(error) => error.get_ref()?.downcast_ref(),
        _ => None,
    }
}

/// The failure that TLS's error means, if no other try can succeed.
fn of_tls(error: &rustls::Error) -> Option<Failure> {
    Some(match error {
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Failure::NoTls("it does not speak TLS, which https needs".to_owned())
        }
        rustls::Error::AlertReceived(alert) if is_final(*alert) => {
            Failure::NoTls(format!("it refuses TLS with this client: {alert:?}"))
        }
        rustls::Error::PeerIncompatible(_) => Failure::NoTls(error.to_string()),
        rustls::Error::InvalidCertificate(error) => Failure::Misconfigured(bad_certificate(error)),
        rustls::Error::NoCertificatesPresented => {
            Failure::Misconfigured("it has no certificate".to_owned())
        }
        _ => return None,
    })
}

fn bad_certificate(error: &CertificateError) -> String {
    let why = match error {
        CertificateError::UnknownIssuer => {
            "comes from an authority that is not trusted; ca_pem names those that are"
        }
        CertificateError::BadSignature => {
            "is not signed by the trusted authority of that name; ca_pem has another key of it"
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "has expired",
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "is not valid yet"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "is for another host name"
        }
        other => return format!("its certificate is not right: {other:?}"),
    };
    format!("its certificate {why}")
}

/// Whether a server that sends this alert will send it again.
fn is_final(alert: AlertDescription) -> bool {
    matches!(
        alert,
        AlertDescription::HandshakeFailure
            | AlertDescription::ProtocolVersion
            | AlertDescription::InsufficientSecurity
            | AlertDescription::NoApplicationProtocol
            | AlertDescription::UnrecognisedName
            | AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
    )
}
