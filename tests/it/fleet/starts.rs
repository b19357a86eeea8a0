//! What ends the start of a fleet at once, since waiting cannot mend it.

use std::net::TcpListener;

use super::*;

/// The error of a start that has hours to wait, and must not.
pub(super) fn refused(config: FleetConfig) -> String {
    let config = config.with_start_timeout(PATIENCE * 100);
    let began = Instant::now();
    let started = ToolExecutor::builder().backend(FleetBackend::new(config).unwrap()).start();
    let Err(StartError::Backend(error)) = started else { panic!("it started") };
    assert!(began.elapsed() < PATIENCE, "after {:?}: {error}", began.elapsed());
    error.to_string()
}

#[test]
fn https_to_a_plain_port_ends_the_start_with_the_right_url() {
    let server = server(1);
    let plain = url(&server);
    let text = refused(fleet([plain.replace("http:", "https:")]));
    assert!(text.contains("it speaks http, not https"), "{text}");
    assert!(text.ends_with(&plain), "{text}");
}

#[test]
fn http_to_a_tls_port_and_a_certificate_that_is_not_trusted_end_the_start() {
    let (https, _) = crate::tls::server();
    let text = refused(fleet([https.replace("https:", "http:")]));
    assert!(text.contains("it speaks https, not http"), "{text}");
    assert!(text.ends_with(&https), "{text}");
    let (_, another) = crate::tls::server();
    let text = refused(fleet([https]).with_ca_pem(another));
    assert!(text.contains("its certificate"), "{text}");
}

#[test]
fn one_that_will_never_do_is_not_waited_for_because_of_one_that_may_come_yet() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let server = server(1);
    let text = refused(FleetConfig::new([closed, url(&server)]).with_token("wrong"));
    assert!(text.contains("HTTP 403") && text.contains(&url(&server)), "{text}");
}
