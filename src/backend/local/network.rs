//! What network the slots have: found out at the start, by what was wished and what is possible.

use serde_json::Value;

use super::start::system;
use super::*;
use crate::egress::{Setup, Usage};
use crate::error::IsolationError;
use crate::sandbox::bash::IsolationPolicy;
use crate::sandbox::isolation::proxy;

/// Where hosts have their bundle of certificate authorities.
const HOST_BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
];

/// Gives sandboxes the network that was wished for, and starts what serves their proxies. Says what
/// network there is.
///
/// # Errors
/// - [`BackendErrorKind::NotIsolated`](crate::BackendErrorKind::NotIsolated): sandboxes cannot have
///   a network of their own here, and less is not allowed.
/// - The proxy's threads or descriptors are refused.
pub(super) fn connect(
    config: &LocalConfig,
    isolation: Engine,
) -> Result<(Engine, NetworkMode, Option<Arc<Egress>>), BackendError> {
    let mode = config.network;
    let variables = if config.ca_pem.is_some() { proxy::ca_variables() } else { Vec::new() };
    let isolation = isolation.with_variables(variables);
    let is_possible = isolation.can_cut_network();
    if mode == NetworkMode::Host || (!is_possible && config.allow_unisolated) {
        if isolation.is_sandboxed() {
            let why = if mode == NetworkMode::Host { "as was asked for" } else { "as was allowed" };
            log::warn!(
                "commands that may use the network have this machine's own, {why}: they reach \
                 what listens on its loopback interface, and each other's ports"
            );
        }
        return Ok((isolation.with_network(NetworkMode::Host, None), NetworkMode::Host, None));
    }
    if !is_possible {
        let reason = "sandboxes cannot have a network of their own here";
        let remedy = "allow this process to make network namespaces, or let commands have this \
                      machine's network (--network host; in the library, NetworkMode::Host)";
        return Err(BackendError::not_isolated(IsolationError::new(reason, remedy)));
    }
    if mode == NetworkMode::None {
        return Ok((isolation.with_network(mode, None), mode, None));
    }
    let setup = Setup { allowed: &config.allow_hosts, slots: config.slots, log: config.log_egress };
    let egress = Egress::start(&setup)
        .map(Arc::new)
        .map_err(|error| system("cannot start the proxy of sandboxes", error))?;
    Ok((isolation.with_network(mode, Some(egress.clone())), mode, Some(egress)))
}

/// Puts what programs read of the network into what sandboxes see as `/etc`.
///
/// # Errors
/// It cannot be written.
pub(super) fn add_files(config: &LocalConfig, etc: &EtcCopy) -> std::io::Result<()> {
    if config.network == NetworkMode::Proxy {
        // Only apt is the poorer for it.
        if let Err(error) = etc.add(proxy::APT_FILE, &proxy::apt_file()) {
            log::warn!("apt in sandboxes does not know the proxy: {error}");
        }
    }
    let Some(pem) = &config.ca_pem else { return Ok(()) };
    let hosts = HOST_BUNDLES.iter().find_map(|path| std::fs::read_to_string(path).ok());
    let bundle = format!("{}\n{pem}\n", hosts.unwrap_or_default().trim_end());
    etc.add(proxy::CA_BUNDLE, &bundle)
}

impl LocalBackend {
    /// A call's policy, as far as its slot has a network at all.
    pub(super) fn bounded(&self, slot: usize, policy: IsolationPolicy) -> IsolationPolicy {
        let cuts = |slot: &Slot| slot.workspace().cuts_network();
        let has_network =
            self.0.network != NetworkMode::None && !self.0.slots.get(slot).is_some_and(cuts);
        let allow_network = policy.allow_network && has_network;
        IsolationPolicy { allow_network, ..policy }
    }

    /// Says in a result what its slot has asked of the network since the last one.
    pub(super) fn tell_usage(egress: Option<&Egress>, slot: usize, result: &mut ToolResult) {
        let usage = egress.map(|egress| egress.take_usage(slot)).unwrap_or_default();
        if usage != Usage::default() {
            result.metadata.insert("network".to_owned(), to_json(&usage));
        }
    }
}

/// As it is in a result's metadata: what is zero is left out, but for the requests and the bytes.
fn to_json(usage: &Usage) -> Value {
    let Usage { requests, refused, failed, bytes_sent, bytes_received, refused_hosts } = usage;
    let mut json = serde_json::json!({
        "requests": requests, "bytes_sent": bytes_sent, "bytes_received": bytes_received,
    });
    for (name, count) in [("refused", refused), ("failed", failed)] {
        if *count > 0 {
            json[name] = (*count).into();
        }
    }
    if !refused_hosts.is_empty() {
        json["refused_hosts"] = refused_hosts.clone().into();
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_told_without_what_did_not_happen() {
        let usage = Usage { requests: 1, bytes_sent: 2, bytes_received: 3, ..Usage::default() };
        let text = r#"{"requests":1,"bytes_sent":2,"bytes_received":3}"#;
        assert_eq!(to_json(&usage).to_string(), text);
        let usage = Usage { refused: 1, refused_hosts: vec!["a".to_owned()], ..usage };
        let text =
            r#"{"requests":1,"bytes_sent":2,"bytes_received":3,"refused":1,"refused_hosts":["a"]}"#;
        assert_eq!(to_json(&usage).to_string(), text);
    }
}
