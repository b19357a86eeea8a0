//! What executor and ToolServer say to each other: section 7 of the reference protocol.

use super::null_as_default;
use crate::tool::{JsonObject, ToolSchema};
use serde::{Deserialize, Serialize};

/// The body of `POST /execute`.
#[derive(Debug, Serialize)]
pub(crate) struct ExecuteRequest<'a> {
    pub(crate) trajectory_id: &'a str,
    pub(crate) tool: Tool<'a>,
    /// Seconds.
    pub(crate) timeout_s: f64,
    /// The slot that the trajectory holds, if it does.
    pub(crate) slot_id: Option<&'a str>,
    /// The address of that slot's container.
    pub(crate) container_addr: Option<&'a str>,
}

/// The call in an [`ExecuteRequest`].
#[derive(Debug, Serialize)]
pub(crate) struct Tool<'a> {
    pub(crate) name: &'a str,
    pub(crate) arguments: &'a JsonObject,
    pub(crate) uniq_id: &'a str,
}

/// The answer to `POST /execute`. The id is not read: the caller's own is what counts.
#[derive(Debug, Deserialize)]
pub(crate) struct ExecuteResponse {
    /// The one field without a default: an answer that lacks it is no answer.
    pub(crate) success: bool,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) output: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) error: String,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) metadata: JsonObject,
}

/// The answer to `GET /tools`.
#[derive(Debug, Deserialize)]
pub(crate) struct ToolsResponse {
    tools: Vec<ToolEntry>,
}

#[derive(Debug, Deserialize)]
struct ToolEntry {
    function: Function,
}

#[derive(Debug, Deserialize)]
struct Function {
    name: String,
    #[serde(default, deserialize_with = "null_as_default")]
    description: String,
    #[serde(default, deserialize_with = "null_as_default")]
    parameters: Parameters,
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    #[serde(default, deserialize_with = "null_as_default")]
    properties: JsonObject,
    #[serde(default, deserialize_with = "null_as_default")]
    required: Vec<String>,
}

impl ToolsResponse {
    /// The tools' schemas, in the server's order.
    pub(crate) fn into_schemas(self) -> impl Iterator<Item = ToolSchema> {
        self.tools.into_iter().map(|ToolEntry { function }| {
            let mut schema = ToolSchema::new(function.name, function.description);
            schema.parameters = function.parameters.properties;
            schema.required = function.parameters.required;
            schema.external = true;
            schema
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn a_request_has_the_protocols_fields() {
        let arguments = JsonObject::from_iter([("q".to_owned(), json!("x"))]);
        let request = ExecuteRequest {
            trajectory_id: "t",
            tool: Tool { name: "search", arguments: &arguments, uniq_id: "u" },
            timeout_s: 30.0,
            slot_id: None,
            container_addr: Some("local"),
        };
        assert_eq!(
            serde_json::to_string(&request).unwrap(),
            r#"{"trajectory_id":"t","tool":{"name":"search","arguments":{"q":"x"},"uniq_id":"u"},"timeout_s":30.0,"slot_id":null,"container_addr":"local"}"#
        );
    }

    #[test]
    fn an_answer_may_lack_everything_but_success() {
        let read = |value: Value| serde_json::from_value::<ExecuteResponse>(value);
        let bare = read(json!({"success": true})).unwrap();
        assert_eq!((bare.success, &*bare.output, &*bare.error), (true, "", ""));
        let nulls =
            json!({"success": false, "output": null, "error": null, "metadata": null, "new": 1});
        assert!(!read(nulls).unwrap().success);
        for wrong in [json!({}), json!({"output": "x"}), json!([]), json!({"success": "yes"})] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tools_are_read_as_schemas() {
        let answer = json!({"tools": [
            {"type": "function", "function": {"name": "search", "description": "Finds.",
             "parameters": {"type": "object", "properties": {"q": {"type": "string"}},
                            "required": ["q"]}}},
            {"function": {"name": "bare", "parameters": null}},
        ]});
        let tools: ToolsResponse = serde_json::from_value(answer).unwrap();
        let schemas: Vec<_> = tools.into_schemas().collect();
        assert_eq!((&*schemas[0].name, &*schemas[0].description), ("search", "Finds."));
        assert_eq!(schemas[0].required, ["q"]);
        assert!(schemas[0].parameters.contains_key("q") && schemas[0].external);
        assert_eq!(schemas[1].name, "bare");
    }
}
