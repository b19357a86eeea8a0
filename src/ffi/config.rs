//! The configuration in JSON: everything that the Rust builders have, under the same names, durations in
//! seconds. What is not given has the builders' default. Documented for users in `te_executor_new`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::status::Fault;
use super::status::te_status::{TE_INVALID_CONFIG, TE_INVALID_JSON};
use super::text::{from_object, object, on_a_stack};
use crate::backend::fleet::FleetConfig;
use crate::executor::{BatchPolicy, Builder, LostWorkspace};
use crate::tool::{JsonObject, Policy, ToolRegistry, ToolSchema};
use crate::toolserver::ToolServerConfig;

/// The longest duration: a year.
const LONGEST: f64 = 365.0 * 24.0 * 60.0 * 60.0;

/// A duration in seconds.
#[derive(Clone, Copy)]
struct Seconds(Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number of seconds from 0 to {LONGEST}")
            }

            fn visit_f64<E: serde::de::Error>(self, seconds: f64) -> Result<Seconds, E> {
                if (0.0..=LONGEST).contains(&seconds) {
                    return Ok(Seconds(Duration::from_secs_f64(seconds)));
                }
                Err(E::invalid_value(Unexpected::Float(seconds), &self))
            }

            fn visit_u64<E: serde::de::Error>(self, seconds: u64) -> Result<Seconds, E> {
                self.visit_f64(seconds as f64)
            }

            fn visit_i64<E: serde::de::Error>(self, seconds: i64) -> Result<Seconds, E> {
                self.visit_f64(seconds as f64)
            }
        }
        deserializer.deserialize_f64(Number)
    }
}

/// A part of the configuration whose errors say where they are.
macro_rules! part {
    ($function:ident, $name:literal) => {
        fn $function<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
        where
            D: Deserializer<'de>,
            T: DeserializeOwned,
        {
            let value = Value::deserialize(deserializer)?;
            from_object(value)
                .map(Some)
                .map_err(|error| D::Error::custom(format!("in {:?}: {error}", $name)))
        }
    };
}

part!(local, "local");
part!(fleet, "fleet");
part!(tool_server, "tool_server");
part!(policy, "policy");
part!(tools, "tools");

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Config {
    #[serde(deserialize_with = "local")]
    local: Option<Local>,
    #[serde(deserialize_with = "fleet")]
    fleet: Option<Fleet>,
    #[serde(deserialize_with = "tool_server")]
    tool_server: Option<ToolServer>,
    #[serde(deserialize_with = "policy")]
    policy: Option<PolicyPart>,
    #[serde(deserialize_with = "tools")]
    tools: Option<Tools>,
    batch_policy: Option<Batching>,
    batch_window_s: Option<Seconds>,
    max_batch_size: Option<usize>,
    queue_capacity: Option<usize>,
    queue_timeout_s: Option<Seconds>,
    acquire_timeout_s: Option<Seconds>,
    idle_limit_s: Option<Seconds>,
    answer_grace_s: Option<Seconds>,
    reset_timeout_s: Option<Seconds>,
    close_timeout_s: Option<Seconds>,
    on_lost_workspace: Option<OnLost>,
    io_threads: Option<usize>,
    handler_threads: Option<usize>,
}

/// `backend::local::LocalConfig`. A key of it is a field here and a line in `Local::start`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
struct Local {
    slots: Option<usize>,
    data_dir: Option<PathBuf>,
    max_output_chars: Option<usize>,
    max_output_file_bytes: Option<u64>,
    adopt_orphans: Option<bool>,
    max_file_bytes: Option<u64>,
    warm_slots: Option<bool>,
    seccomp: Option<bool>,
    limits: LocalLimits,
}

/// `SlotLimits`. What is not given has its default; `null` is no limit.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
struct LocalLimits {
    #[serde(deserialize_with = "given")]
    processes: Option<Option<u64>>,
    #[serde(deserialize_with = "given")]
    memory_bytes: Option<Option<u64>>,
    #[serde(deserialize_with = "given")]
    cpu: Option<Option<f64>>,
    #[serde(deserialize_with = "given")]
    open_files: Option<Option<u64>>,
    #[serde(deserialize_with = "given")]
    file_bytes: Option<Option<u64>>,
    #[serde(deserialize_with = "given")]
    workspace_bytes: Option<Option<u64>>,
}

/// A `null` that is given is not the same as nothing.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fleet {
    urls: Vec<String>,
    token: Option<String>,
    unreachable_timeout_s: Option<Seconds>,
    start_timeout_s: Option<Seconds>,
    ca_pem: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolServer {
    url: String,
    token: Option<String>,
    concurrency: Option<usize>,
    ca_pem: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PolicyPart {
    allow_network: Option<bool>,
    require_sandbox: Option<bool>,
    require_stateful_sandbox: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tools {
    builtin: Option<bool>,
    external: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Batching {
    Adaptive,
    Window,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum OnLost {
    Refuse,
    StartEmpty,
}

/// A tool, as `te_tools_add` and `tools.external` take it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Schema {
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    parameters: JsonObject,
    #[serde(default)]
    required: Vec<String>,
}

impl Schema {
    /// # Errors
    /// A line that says what is wrong with it.
    pub(super) fn into_schema(self) -> Result<ToolSchema, String> {
        let known = |name: &&String| self.parameters.contains_key(*name);
        if let Some(name) = self.required.iter().find(|name| !known(name)) {
            return Err(format!("\"required\" names {name:?}, which is not in \"parameters\""));
        }
        let is_schema = |schema: &Value| schema.is_object();
        if let Some((name, _)) = self.parameters.iter().find(|(_, schema)| !is_schema(schema)) {
            return Err(format!("the parameter {name:?} is no JSON Schema, which is an object"));
        }
        let mut schema = ToolSchema::new(self.name, self.description);
        schema.parameters = self.parameters;
        schema.required = self.required;
        Ok(schema)
    }
}

/// Sets what is given, each by a line.
macro_rules! set {
    ($target:ident, $($field:ident = $value:expr),* $(,)?) => {
        $(if let Some(value) = $value { $target.$field = value; })*
    };
}

/// The builder that a configuration describes, with these tools added, and what is known of its backend.
///
/// # Errors
/// It is not JSON, has an unknown key, or a value that makes no sense; or the embedded sandbox does not
/// start.
pub(super) fn builder(
    json: &str,
    add: impl FnOnce(&mut ToolRegistry) -> Result<(), Fault>,
) -> Result<(Builder, Started), Fault> {
    let wrong = |text: String| Fault::new(TE_INVALID_CONFIG, text);
    let config: Config = on_a_stack(json, || {
        object(json).map_err(|error| {
            let status = if error.is_data() { TE_INVALID_CONFIG } else { TE_INVALID_JSON };
            Fault::new(status, format!("the configuration: {error}"))
        })
    })?;
    let mut registry = match config.tools.as_ref().and_then(|tools| tools.builtin) {
        Some(false) => ToolRegistry::empty(),
        _ => ToolRegistry::builtin(),
    };
    for schema in config.tools.map(|tools| tools.external).unwrap_or_default() {
        let schema: Schema = from_object(schema)
            .map_err(|error| wrong(format!("in \"tools\": an external tool: {error}")))?;
        let name = schema.name.clone();
        let added = schema
            .into_schema()
            .and_then(|schema| registry.register_external(schema).map_err(|e| e.to_string()));
        added.map_err(|error| wrong(format!("in \"tools\": the tool {name:?}: {error}")))?;
    }
    add(&mut registry)?;
    let mut builder = Builder::new().registry(registry);
    if let Some(part) = config.policy {
        let mut policy = Policy::default();
        set!(
            policy,
            allow_network = part.allow_network,
            require_sandbox = part.require_sandbox,
            require_stateful_sandbox = part.require_stateful_sandbox,
        );
        builder = builder.policy(policy);
    }
    if let Some(part) = config.tool_server {
        let mut server = ToolServerConfig::new(part.url);
        set!(server, concurrency = part.concurrency);
        server.token = part.token;
        server.ca_pem = part.ca_pem.map(String::into_bytes);
        builder = builder.tool_server(server);
    }
    macro_rules! call {
        ($($method:ident($value:expr)),* $(,)?) => {
            $(if let Some(value) = $value { builder = builder.$method(value); })*
        };
    }
    let duration = |seconds: Option<Seconds>| seconds.map(|seconds| seconds.0);
    call!(
        batch_policy(config.batch_policy.map(|policy| match policy {
            Batching::Adaptive => BatchPolicy::Adaptive,
            Batching::Window => BatchPolicy::Window,
        })),
        batch_window(duration(config.batch_window_s)),
        max_batch_size(config.max_batch_size),
        queue_capacity(config.queue_capacity),
        queue_timeout(duration(config.queue_timeout_s)),
        acquire_timeout(duration(config.acquire_timeout_s)),
        idle_limit(duration(config.idle_limit_s).map(Some)),
        answer_grace(duration(config.answer_grace_s)),
        reset_timeout(duration(config.reset_timeout_s)),
        close_timeout(duration(config.close_timeout_s)),
        on_lost_workspace(config.on_lost_workspace.map(|what| match what {
            OnLost::Refuse => LostWorkspace::Refuse,
            OnLost::StartEmpty => LostWorkspace::StartEmpty,
        })),
        io_threads(config.io_threads),
        handler_threads(config.handler_threads),
    );
    // Last: what is wrong with the rest is known without starting anything.
    builder.check().map_err(Fault::from)?;
    match (config.local, config.fleet) {
        (Some(_), Some(_)) => Err(wrong("give \"local\" or \"fleet\", not both".to_owned())),
        (Some(local), None) => local.start(builder),
        (None, Some(fleet)) => Ok((fleet.connect(builder)?, Started::default())),
        (None, None) => Ok((builder, Started::default())),
    }
}

/// What is known of the backend, for `te_describe`.
#[derive(Default)]
pub(super) struct Started {
    /// The backend's kind; `None` without one.
    pub(super) backend: Option<&'static str>,
    /// Facts about it.
    pub(super) facts: JsonObject,
}

impl Local {
    #[cfg(target_os = "linux")]
    fn start(self, builder: Builder) -> Result<(Builder, Started), Fault> {
        use super::status::te_status::TE_START_FAILED;
        use crate::backend::local::{LocalBackend, LocalConfig};

        let mut config = LocalConfig::default();
        set!(
            config,
            slots = self.slots,
            data_dir = self.data_dir.map(Some),
            max_output_chars = self.max_output_chars,
            max_output_file_bytes = self.max_output_file_bytes,
            adopt_orphans = self.adopt_orphans,
            max_file_bytes = self.max_file_bytes,
            warm_slots = self.warm_slots,
            seccomp = self.seccomp,
        );
        let limits = &mut config.limits;
        set!(
            limits,
            processes = self.limits.processes,
            memory_bytes = self.limits.memory_bytes,
            cpu = self.limits.cpu,
            open_files = self.limits.open_files,
            file_bytes = self.limits.file_bytes,
            workspace_bytes = self.limits.workspace_bytes,
        );
        let backend =
            LocalBackend::start(config).map_err(|error| Fault::of(TE_START_FAILED, &error))?;
        let facts = JsonObject::from_iter([
            ("isolated".to_owned(), backend.not_isolated_because().is_none().into()),
            ("not_isolated_because".to_owned(), backend.not_isolated_because().into()),
            ("keeps_sandboxes".to_owned(), backend.keeps_sandboxes().into()),
            ("not_filtered_because".to_owned(), backend.not_filtered_because().into()),
            ("limits".to_owned(), serde_json::json!(backend.limits())),
        ]);
        Ok((builder.backend(backend), Started { backend: Some("local"), facts }))
    }

    #[cfg(not(target_os = "linux"))]
    fn start(self, _builder: Builder) -> Result<(Builder, Started), Fault> {
        let unsupported = super::status::te_status::TE_UNSUPPORTED;
        Err(Fault::new(unsupported, "the embedded sandbox, \"local\", needs Linux"))
    }
}

impl Fleet {
    fn connect(self, builder: Builder) -> Result<Builder, Fault> {
        let mut config = FleetConfig::new(self.urls);
        set!(
            config,
            unreachable_timeout = self.unreachable_timeout_s.map(|seconds| seconds.0),
            start_timeout = self.start_timeout_s.map(|seconds| seconds.0),
        );
        config.token = self.token;
        config.ca_pem = self.ca_pem.map(String::into_bytes);
        let fleet = crate::backend::fleet::FleetBackend::new(config)
            .map_err(|error| Fault::of(TE_INVALID_CONFIG, &error))?;
        Ok(builder.backend(fleet))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn refused(json: &str) -> Fault {
        match builder(json, |_| Ok(())) {
            Ok(_) => panic!("accepted: {json}"),
            Err(fault) => fault,
        }
    }

    #[test]
    fn everything_may_be_given_or_nothing() {
        assert!(builder("{}", |_| Ok(())).is_ok());
        let all = json!({
            "fleet": {"urls": ["http://localhost:1"], "token": "t", "unreachable_timeout_s": 3,
                "start_timeout_s": 0.5},
            "tool_server": {"url": "http://localhost:2", "token": "t", "concurrency": 3},
            "policy": {"allow_network": false, "require_sandbox": true,
                "require_stateful_sandbox": true},
            "tools": {"builtin": false, "external": [{"name": "search", "description": "d",
                "parameters": {"q": {"type": "string"}}, "required": ["q"]}]},
            "batch_policy": "window", "batch_window_s": 0.25, "max_batch_size": 3,
            "queue_capacity": 4, "queue_timeout_s": 5, "acquire_timeout_s": 6, "answer_grace_s": 7,
            "idle_limit_s": 1.5, "reset_timeout_s": 8, "close_timeout_s": 9, "on_lost_workspace": "start_empty",
            "io_threads": 2, "handler_threads": 3,
        });
        let built = builder(&all.to_string(), |registry| {
            assert!(registry.names().eq(["search"]));
            Ok(())
        });
        let (builder, _) = built.unwrap_or_else(|fault| panic!("{}", fault.message));
        assert!(!builder.policy.allow_network && builder.policy.require_sandbox);
        let limits = builder.limits();
        assert_eq!(limits.batch.policy, BatchPolicy::Window);
        assert_eq!(limits.batch.window, Duration::from_millis(250));
        assert_eq!(limits.on_lost, LostWorkspace::StartEmpty);
        assert_eq!(limits.external, [3, 3]);
        assert_eq!(limits.idle_limit, Some(Duration::from_millis(1500)));
        assert_eq!((builder.queue_capacity, builder.io_threads), (4, 2));
        assert_eq!(builder.close_timeout, Duration::from_secs(9));
    }

    #[test]
    fn limits_have_their_defaults_and_null_is_none() {
        let json = r#"{"limits": {"processes": 99, "memory_bytes": null, "cpu": 1.5}}"#;
        let local: Local = serde_json::from_str(json).unwrap();
        assert_eq!(local.limits.processes, Some(Some(99)));
        assert_eq!(local.limits.memory_bytes, Some(None));
        assert_eq!(local.limits.cpu, Some(Some(1.5)));
        assert_eq!(local.limits.open_files, None);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_name_and_place() {
        for (json, status, words) in [
            ("", TE_INVALID_JSON, "EOF"),
            ("{", TE_INVALID_JSON, "EOF"),
            ("[]", TE_INVALID_CONFIG, "expected an object"),
            (r#"{"local": []}"#, TE_INVALID_CONFIG, "in \"local\": invalid type: an array"),
            (r#"{"tools": {"external": [["x"]]}}"#, TE_INVALID_CONFIG, "an external tool: invalid"),
            (r#"{"slots": 3}"#, TE_INVALID_CONFIG, "`slots`"),
            (r#"{"local": {"slot": 3}}"#, TE_INVALID_CONFIG, "in \"local\": unknown field `slot`"),
            (r#"{"local": {"slots": "3"}}"#, TE_INVALID_CONFIG, "in \"local\": invalid type"),
            (r#"{"local": {"limits": {"x": 3}}}"#, TE_INVALID_CONFIG, "unknown field `x`"),
            (
                r#"{"local": {"limits": {"cpu": "3"}}}"#,
                TE_INVALID_CONFIG,
                "in \"local\": invalid type",
            ),
            (r#"{"fleet": {}}"#, TE_INVALID_CONFIG, "in \"fleet\": missing field `urls`"),
            (r#"{"fleet": {"urls": []}}"#, TE_INVALID_CONFIG, "at least one"),
            (r#"{"fleet": {"urls": ["x"]}, "local": {}}"#, TE_INVALID_CONFIG, "not both"),
            (r#"{"batch_window_s": -1}"#, TE_INVALID_CONFIG, "from 0 to"),
            (r#"{"batch_window_s": 1e9}"#, TE_INVALID_CONFIG, "from 0 to"),
            (r#"{"batch_window_s": "1"}"#, TE_INVALID_CONFIG, "a number of seconds"),
            (r#"{"batch_policy": "now"}"#, TE_INVALID_CONFIG, "`adaptive` or `window`"),
            (r#"{"io_threads": 0}"#, TE_INVALID_CONFIG, "io_threads is 0; it must be from 1"),
            (r#"{"tools": {"external": [{"name": ""}]}}"#, TE_INVALID_CONFIG, "must not be empty"),
            (
                r#"{"tools": {"external": [{"name": "a", "required": ["b"]}]}}"#,
                TE_INVALID_CONFIG,
                "\"required\" names \"b\"",
            ),
            (r#"{"tool_server": {"url": 3}}"#, TE_INVALID_CONFIG, "in \"tool_server\""),
        ] {
            let fault = refused(json);
            assert_eq!(fault.status, status, "{json}: {}", fault.message);
            assert!(fault.message.contains(words), "{json}: {}", fault.message);
        }
    }
}
