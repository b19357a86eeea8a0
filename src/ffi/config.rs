//! The configuration in JSON: [`ExecutorConfig`], as it is. Documented for users in
//! `te_executor_new`.

use serde_json::json;

use super::status::Fault;
use super::status::te_status::{TE_INVALID_CONFIG, TE_INVALID_JSON};
use super::text::{object, on_a_stack};
use crate::backend::Capabilities;
use crate::config::{ExecutorConfig, leave_out_nulls};
use crate::executor::{Builder, ToolExecutor};
use crate::tool::{JsonObject, ToolRegistry};

/// The builder that a configuration describes, with these tools added, and the kind of its
/// backend.
///
/// # Errors
/// It is not JSON, has an unknown key, or a value that makes no sense; or a tool cannot be added.
pub(super) fn builder(
    json: &str,
    add: impl FnOnce(&mut ToolRegistry) -> Result<(), Fault>,
) -> Result<(Builder, Option<&'static str>), Fault> {
    let wrong = |text: String| Fault::new(TE_INVALID_CONFIG, text);
    let config: ExecutorConfig = on_a_stack(json, || {
        let config = object(json).and_then(|mut config: JsonObject| {
            leave_out_nulls(&mut config);
            serde_json::from_value(config.into())
        });
        config.map_err(|error| {
            let status = if error.is_data() { TE_INVALID_CONFIG } else { TE_INVALID_JSON };
            Fault::new(status, format!("the configuration: {error}"))
        })
    })?;
    config.check().map_err(|error| wrong(error.to_string()))?;
    let mut registry = config.tools.registry().map_err(|error| wrong(error.to_string()))?;
    add(&mut registry)?;
    let backend = match (&config.local, &config.fleet, &config.slurm) {
        (Some(_), ..) => Some("local"),
        (None, Some(_), _) => Some("fleet"),
        (None, None, Some(_)) => Some("slurm"),
        (None, None, None) => (!config.backends.is_empty()).then_some("several"),
    };
    Ok((ToolExecutor::builder().config(config).registry(registry), backend))
}

/// What `te_describe` says of the backend.
pub(super) fn facts(capabilities: &Capabilities) -> JsonObject {
    let not_isolated_because = capabilities.isolation.not_isolated_because();
    JsonObject::from_iter([
        ("isolated".to_owned(), not_isolated_because.is_none().into()),
        ("not_isolated_because".to_owned(), not_isolated_because.into()),
        ("isolation_level".to_owned(), json!(capabilities.isolation_level)),
        ("weakened_because".to_owned(), json!(capabilities.weakened_because)),
        ("keeps_sandboxes".to_owned(), capabilities.warm_slots.into()),
        ("network".to_owned(), json!(capabilities.network)),
        ("not_filtered_because".to_owned(), capabilities.not_filtered_because.as_deref().into()),
        ("no_images_because".to_owned(), capabilities.no_images_because.as_deref().into()),
        ("image_ids".to_owned(), json!(capabilities.image_ids)),
        ("limits".to_owned(), json!(capabilities.limits)),
        ("spec_fields".to_owned(), json!(capabilities.spec)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> Fault {
        match builder(json, |_| Ok(())) {
            Ok(_) => panic!("accepted: {json}"),
            Err(fault) => fault,
        }
    }

    #[test]
    fn the_kind_of_the_backend_is_known() {
        for (json, kind) in [
            ("{}", None),
            (r#"{"backends": null, "local": null}"#, None),
            (r#"{"local": {}}"#, Some("local")),
            (r#"{"fleet": {"urls": ["http://a:1"]}}"#, Some("fleet")),
            (r#"{"slurm": {}}"#, Some("slurm")),
            (
                r#"{"backends": [{"local": {}}, {"slurm": {}, "spill_after_s": 3}]}"#,
                Some("several"),
            ),
        ] {
            let Ok((_, found)) = builder(json, |_| Ok(())) else { panic!("refused: {json}") };
            assert_eq!(found, kind, "{json}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_name_and_place() {
        for (json, status, words) in [
            ("", TE_INVALID_JSON, "EOF"),
            ("{", TE_INVALID_JSON, "EOF"),
            ("[]", TE_INVALID_CONFIG, "expected an object"),
            (r#"{"local": []}"#, TE_INVALID_CONFIG, "in \"local\": invalid type: an array"),
            (r#"{"tools": {"external": [3]}}"#, TE_INVALID_CONFIG, "in \"tools\": invalid type"),
            (r#"{"slots": 3}"#, TE_INVALID_CONFIG, "`slots`"),
            (r#"{"local": {"slot": 3}}"#, TE_INVALID_CONFIG, "in \"local\": unknown field `slot`"),
            (r#"{"local": {"slots": "3"}}"#, TE_INVALID_CONFIG, "in \"local\": invalid type"),
            (r#"{"local": {"limits": {"x": 3}}}"#, TE_INVALID_CONFIG, "unknown field `x`"),
            (
                r#"{"local": {"limits": {"cpu": "3"}}}"#,
                TE_INVALID_CONFIG,
                "in \"local\": invalid type",
            ),
            (r#"{"fleet": {}}"#, TE_INVALID_CONFIG, "in \"fleet\": a fleet needs the URL"),
            (r#"{"fleet": {"urls": []}}"#, TE_INVALID_CONFIG, "at least one"),
            (r#"{"fleet": {"urls": ["x"]}, "local": {}}"#, TE_INVALID_CONFIG, "give one of"),
            (r#"{"backends": [{}]}"#, TE_INVALID_CONFIG, "in \"backends\"[0]: give one of"),
            (r#"{"backends": [{"local": {"slot": 1}}]}"#, TE_INVALID_CONFIG, "`slot`"),
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
