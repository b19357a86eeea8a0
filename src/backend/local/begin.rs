//! Trajectories that begin with a spec: what of it this engine gives, and how.

use std::ffi::OsString;

use super::LocalBackend;
use crate::backend::{BeginReply, SlotRef, gives};
use crate::config::{BackgroundProcesses, NetworkMode};
use crate::error::BeginFailure;
use crate::sandbox::settings::Settings;
use crate::spec::{SpecField, TrajectorySpec};

/// What of a spec can be given.
pub(super) fn given(backend: &LocalBackend) -> Vec<SpecField> {
    let has_proxy = backend.0.network == NetworkMode::Proxy && backend.0.egress.is_some();
    SpecField::ALL
        .into_iter()
        .filter(|field| match field {
            SpecField::Env | SpecField::Network => true,
            SpecField::Background => backend.0.supervisor.isolation().is_sandboxed(),
            SpecField::AllowHosts => has_proxy,
            _ => false,
        })
        .collect()
}

/// Makes a clean slot what a spec asks for.
pub(super) fn begin(
    backend: &LocalBackend,
    slot: &SlotRef,
    spec: &TrajectorySpec,
    reply: BeginReply,
) {
    reply.send(prepare(backend, slot, spec));
}

fn prepare(
    backend: &LocalBackend,
    slot: &SlotRef,
    spec: &TrajectorySpec,
) -> Result<(), BeginFailure> {
    gives(spec, &given(backend))?;
    let Some(place) = backend.0.slots.get(slot.index) else {
        return Err(BeginFailure::failed(format!("there is no slot {}", slot.name)));
    };
    let can_cut_network = backend.0.supervisor.isolation().can_cut_network();
    let cuts_network = cuts_network(spec.network, backend.0.network, can_cut_network)
        .map_err(BeginFailure::unsupported)?;
    if spec.env.contains_key("PATH") {
        let text = "the variable PATH cannot be set where commands have the host's programs; the \
                    operator gives directories that are to come first in it (--path-prepend)";
        return Err(BeginFailure::unsupported(text));
    }
    let variables = spec.env.iter().map(|(name, value)| (name.clone(), OsString::from(value)));
    let keeps_background = spec.background.map(|wish| wish == BackgroundProcesses::Keep);
    let variables = variables.collect();
    place.workspace().set(Settings { variables, cuts_network, keeps_background });
    if let (Some(hosts), Some(egress)) = (&spec.allow_hosts, &backend.0.egress) {
        egress.narrow(slot.index, hosts);
    }
    Ok(())
}

/// Whether a trajectory that asks for this network has none where the operator gives another.
///
/// # Errors
/// It asks for one that the operator does not give.
fn cuts_network(
    asked: Option<NetworkMode>,
    operators: NetworkMode,
    can_cut_network: bool,
) -> Result<bool, String> {
    match asked {
        None => Ok(false),
        Some(asked) if asked == operators => Ok(false),
        Some(NetworkMode::None) if can_cut_network => Ok(true),
        Some(NetworkMode::None) => {
            let text = "this sandbox cannot give network none: commands here have the network of \
                        the machine; leave network out";
            Err(text.to_owned())
        }
        Some(asked) => Err(format!(
            "this sandbox cannot give network {asked}: its operator gives {operators}; leave network \
             out, or ask for {operators}{}",
            if can_cut_network && operators != NetworkMode::None { " or none" } else { "" }
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trajectory_has_the_operators_network_or_less() {
        use NetworkMode::{Host, None as Cut, Proxy};
        for (asked, operators, can_cut, expected) in [
            (None, Host, true, Ok(false)),
            (Some(Host), Host, true, Ok(false)),
            (Some(Cut), Host, true, Ok(true)),
            (Some(Cut), Proxy, true, Ok(true)),
            (Some(Cut), Cut, true, Ok(false)),
            (Some(Cut), Host, false, Err("leave network out")),
            (Some(Host), Proxy, true, Err("ask for proxy or none")),
            (Some(Proxy), Host, true, Err("its operator gives host")),
            (Some(Proxy), Cut, true, Err("ask for none")),
        ] {
            match (cuts_network(asked, operators, can_cut), expected) {
                (Ok(found), expected) => assert_eq!(Ok(found), expected, "{asked:?}"),
                (Err(error), Err(words)) => assert!(error.contains(words), "{error}"),
                (Err(error), Ok(_)) => panic!("{asked:?}: {error}"),
            }
        }
    }
}
