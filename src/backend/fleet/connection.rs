//! How requests reach one server, and what it says of itself in `/health`.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Deserialize;
use ureq::Agent;
use ureq::http::Uri;

use super::artifacts;
use crate::client::{self, AgentConfig, Authorization, Failure, Names};
use crate::config::{FleetConfig, NetworkMode};
use crate::level::{ImageIds, IsolationLevel};
use crate::limits::EnforcedLimits;
use crate::spec::SpecField;
use crate::wire::null_as_default;

/// How long a short request may take, one that its server answers at once: at most, and if servers
/// are given up so soon that there would be no time for another try.
const PROMPT: Duration = Duration::from_secs(5);
const PROMPT_LEAST: Duration = Duration::from_secs(1);
/// How long a native server may say nothing: some of its beats; one of them at least.
const STALL_TIMEOUT: Duration = Duration::from_secs(8);
const STALL_TIMEOUT_LEAST: Duration = Duration::from_secs(3);

/// How requests reach one server.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) url: String,
    pub(super) authorization: Option<Authorization>,
    /// How long a request may take that is answered at once.
    pub(super) prompt: Duration,
    /// How long the stream of results may say nothing.
    pub(super) stall_timeout: Duration,
    /// For requests that may be repeated; keeps idle connections.
    pub(super) pooled: Agent,
    /// For those that may not: a connection that the server is just closing would lose them.
    pub(super) fresh: Agent,
    /// For artifacts, which may take their time.
    pub(super) patient: Arc<Patient>,
    /// What the server last said of itself.
    pub(super) advertised: Arc<Mutex<Advertised>>,
    /// See [`FleetConfig::allow_unisolated`].
    pub(super) allow_unisolated: bool,
}

/// An agent for requests that end when the server is given up.
pub(super) struct Patient {
    pub(super) ca_pem: Option<String>,
    pub(super) names: Names,
    /// None while it is given up.
    pub(super) agent: Mutex<Option<Agent>>,
}

/// What `/health` says, as far as it matters.
#[derive(Debug, Deserialize)]
struct Health {
    status: String,
    #[serde(default, deserialize_with = "null_as_default")]
    features: Vec<String>,
    #[serde(default)]
    bwrap_available: Option<bool>,
    /// Anybody's, in whatever form.
    #[serde(default)]
    limits: serde_json::Value,
    #[serde(default)]
    warm_slots: Option<bool>,
    /// Of a later version it may be one that is not known here.
    #[serde(default)]
    network: serde_json::Value,
    #[serde(default)]
    isolation_level: Option<IsolationLevel>,
    /// Of a later version it may be one that is not known here.
    #[serde(default)]
    image_ids: serde_json::Value,
    /// Anybody's, in whatever form.
    #[serde(default)]
    weakened_because: serde_json::Value,
    /// Of a later version it may have some that are not known here.
    #[serde(default)]
    spec_fields: serde_json::Value,
}

/// The most reasons why slots are not isolated further, and their longest.
pub(super) const MOST_REASONS: usize = 8;
const LONGEST_REASON: usize = 300;

/// Why a server's slots are not isolated further, as far as it says so in words that one can show.
fn reasons(told: serde_json::Value) -> Vec<String> {
    let told: Vec<String> = serde_json::from_value(told).unwrap_or_default();
    let is_plain =
        |text: &String| text.len() <= LONGEST_REASON && !text.chars().any(char::is_control);
    told.into_iter().filter(is_plain).take(MOST_REASONS).collect()
}

/// What of specs a server can give, as far as this version knows it.
fn spec_fields(told: serde_json::Value) -> Vec<SpecField> {
    let told: Vec<serde_json::Value> = serde_json::from_value(told).unwrap_or_default();
    told.into_iter().filter_map(|field| serde_json::from_value(field).ok()).collect()
}

/// What a server says of its slots.
#[derive(Clone)]
pub(super) struct Advertised {
    /// `None` where it does not say.
    pub(super) isolates: Option<bool>,
    pub(super) limits: Option<EnforcedLimits>,
    pub(super) warm_slots: Option<bool>,
    pub(super) network: Option<NetworkMode>,
    pub(super) level: Option<IsolationLevel>,
    pub(super) image_ids: Option<ImageIds>,
    /// Of a length that a server's words may have.
    pub(super) weakened_because: Vec<String>,
    /// What of a trajectory's spec it can give.
    pub(super) spec: Vec<SpecField>,
}

impl Patient {
    pub(super) fn agent(ca_pem: Option<&str>, names: &Names) -> Result<Agent, String> {
        let read_timeout = Some(artifacts::TIME);
        client::agent(AgentConfig { idle_connections: 4, read_timeout, ca_pem, names })
    }

    /// Ends what is under way; nothing begins until it is taken back.
    pub(super) fn give_up(&self) {
        let agent = self.agent.lock().take();
        if let Some(agent) = agent {
            agent.shutdown();
        }
    }

    pub(super) fn take_back(&self) {
        let mut agent = self.agent.lock();
        if agent.is_none() {
            // The certificates were read before.
            *agent = Self::agent(self.ca_pem.as_deref(), &self.names).ok();
        }
    }
}

impl Connection {
    pub(super) fn new(
        url: &str,
        authorization: Option<Authorization>,
        config: &FleetConfig,
        names: &Names,
    ) -> Result<Self, String> {
        let url = url.trim_end_matches('/').to_owned();
        client::endpoint("sandbox server", &url, "/health")?;
        let agent = |idle_connections, read_timeout| {
            let ca_pem = config.ca_pem.as_deref();
            client::agent(AgentConfig { idle_connections, read_timeout, ca_pem, names })
        };
        let stall_timeout =
            (config.unreachable_timeout / 2).clamp(STALL_TIMEOUT_LEAST, STALL_TIMEOUT);
        Ok(Self {
            url,
            authorization,
            prompt: (config.unreachable_timeout / 4).clamp(PROMPT_LEAST, PROMPT),
            stall_timeout,
            pooled: agent(4, Some(stall_timeout))?,
            fresh: agent(0, None)?,
            patient: Arc::new(Patient {
                agent: Mutex::new(Some(Patient::agent(config.ca_pem.as_deref(), names)?)),
                ca_pem: config.ca_pem.clone(),
                names: names.clone(),
            }),
            advertised: Arc::new(Mutex::new(Advertised {
                isolates: None,
                limits: None,
                warm_slots: None,
                network: None,
                level: None,
                image_ids: None,
                weakened_because: Vec::new(),
                spec: Vec::new(),
            })),
            allow_unisolated: config.allow_unisolated,
        })
    }

    pub(super) fn uri(&self, path: &str) -> Result<Uri, Failure> {
        client::endpoint("sandbox server", &self.url, path).map_err(Failure::NotSent)
    }

    /// Posts JSON, and gives the response as soon as its head is there.
    pub(super) fn post(
        &self,
        agent: &Agent,
        path: &str,
        body: &[u8],
        timeout: Option<Duration>,
    ) -> Result<ureq::http::Response<ureq::Body>, Failure> {
        let request = agent.post(self.uri(path)?).header("Content-Type", "application/json");
        let request = client::authorize(request, self.authorization.as_ref());
        let request = request.config().timeout_connect(Some(self.prompt)).timeout_global(timeout);
        Ok(request.build().send(body)?)
    }

    /// Asks how it is, and notes what it says; gives its features.
    pub(super) fn health(&self) -> Result<Vec<String>, Failure> {
        let health: Health = self.get("/health")?;
        if health.status != "ok" {
            return Err(Failure::Broken(format!("its status is {:?}", health.status)));
        }
        *self.advertised.lock() = Advertised {
            isolates: health.bwrap_available,
            limits: serde_json::from_value(health.limits).ok(),
            warm_slots: health.warm_slots,
            network: serde_json::from_value(health.network).ok(),
            level: health.isolation_level,
            image_ids: serde_json::from_value(health.image_ids).ok(),
            weakened_because: reasons(health.weakened_because),
            spec: spec_fields(health.spec_fields),
        };
        if self.is_barred() {
            return Err(Failure::Broken("it runs commands without isolation".to_owned()));
        }
        Ok(health.features)
    }

    /// Whether the server says that it does not isolate commands, and may not be used therefore.
    pub(super) fn is_barred(&self) -> bool {
        !self.allow_unisolated && self.advertised.lock().isolates == Some(false)
    }

    /// Whether the server speaks the other one of `http` and `https`: then how its URL begins.
    pub(super) fn other_scheme(&self) -> Option<String> {
        client::other_scheme(&self.fresh, &self.uri("/health").ok()?, self.prompt)
    }

    pub(super) fn get<T: serde::de::DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = self.fresh.get(self.uri(path)?);
        let request = client::authorize(request, self.authorization.as_ref());
        client::read_json(request.config().timeout_global(Some(self.prompt)).build().call()?)
    }

    /// Ends what is under way.
    pub(super) fn interrupt(&self) {
        self.pooled.clone().shutdown();
        self.fresh.clone().shutdown();
        self.patient.names.give_up();
        self.patient.give_up();
    }
}
