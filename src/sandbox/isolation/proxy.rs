//! What programs in a sandbox are told of its proxy and of certificates. Pure.
//!
//! Programs find a proxy by variables, in upper or lower case; apt by a file of its own.

use std::ffi::OsString;

use crate::sandbox::identity::HOST_NAME;

/// The port of the proxy on a sandbox's loopback interface. No usual service has it, and the kernel
/// gives it to no connection by itself.
pub(super) const PORT: u16 = 13128;

/// Where the bundle of certificate authorities is, below `/etc`.
pub(crate) const CA_BUNDLE: &str = "tool-executor/ca-bundle.pem";
/// Where apt finds its proxy, below `/etc`.
pub(crate) const APT_FILE: &str = "apt/apt.conf.d/90sandbox-proxy";

/// Where the copy of `/etc` has what apt is told where all users are one.
pub(crate) const APT_USER: &str = "tool-executor/apt-user.conf";
/// Where apt finds that in an image, below `/etc`.
pub(super) const APT_USER_PLACE: &str = "apt/apt.conf.d/90sandbox-user";

/// The variables by which programs find a bundle of certificate authorities: OpenSSL's, those of
/// Python's requests and pip, curl's, Node's and npm's (whose file of settings may name another),
/// git's and cargo's.
const CA_VARIABLES: [&str; 8] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "NPM_CONFIG_CAFILE",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
];

fn url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// The variables by which programs find the proxy at this port, as `NAME=value`.
pub(super) fn variables(port: u16) -> Vec<OsString> {
    let (url, direct) = (url(port), format!("localhost,127.0.0.1,::1,{HOST_NAME}"));
    [("http_proxy", &url), ("https_proxy", &url), ("all_proxy", &url), ("no_proxy", &direct)]
        .into_iter()
        .flat_map(|(name, value)| {
            [name.to_owned(), name.to_ascii_uppercase()]
                .map(|name| format!("{name}={value}").into())
        })
        // Node does not heed them before it is told to.
        .chain([OsString::from("NODE_USE_ENV_PROXY=1")])
        .collect()
}

/// The variables by which programs find the bundle of certificate authorities, as `NAME=value`.
pub(crate) fn ca_variables() -> Vec<OsString> {
    CA_VARIABLES.iter().map(|name| format!("{name}=/etc/{CA_BUNDLE}").into()).collect()
}

/// What apt reads.
pub(crate) fn apt_file() -> String {
    let url = url(PORT);
    format!("Acquire::http::Proxy \"{url}\";\nAcquire::https::Proxy \"{url}\";\n")
}

/// What apt reads where all users are one: it tries whether its own user is another.
pub(crate) fn apt_user_file() -> String {
    "APT::Sandbox::User \"root\";\n".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_find_the_proxy_in_either_case_and_reach_the_sandbox_itself_without_it() {
        let variables = variables(7);
        for expected in [
            "http_proxy=http://127.0.0.1:7",
            "HTTPS_PROXY=http://127.0.0.1:7",
            "ALL_PROXY=http://127.0.0.1:7",
            "NO_PROXY=localhost,127.0.0.1,::1,sandbox",
            "no_proxy=localhost,127.0.0.1,::1,sandbox",
        ] {
            assert!(variables.contains(&OsString::from(expected)), "{expected}");
        }
        assert_eq!(apt_file().matches("Proxy \"http://127.0.0.1:13128\";").count(), 2);
    }
}
