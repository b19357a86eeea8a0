//! The tools that a model may call, by name.
//!
//! A user fills a [`ToolRegistry`] before the executor starts; the executor looks every call up in
//! it. It knows where a tool runs, and does not run it.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use thiserror::Error;

use super::python_json::{self, NonAscii};
use super::{Handler, JsonObject, ToolContext, ToolReply, ToolSchema, builtin};

/// Other names of built-in tools.
const ALIASES: [(&str, &str); 1] = [("bash_stateful", "terminal_stateful")];

/// The tools that a model may call, in the order in which they were registered.
///
/// Defaults to [`builtin`](Self::builtin): the tools that run in a sandbox.
///
/// ```
/// use tool_executor::{ToolRegistry, ToolSchema};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut registry = ToolRegistry::builtin();
///
/// // A tool in this process.
/// let add = ToolSchema::new("add", "Add two numbers.")
///     .with_required("a", "number", "The one.")
///     .with_required("b", "number", "The other.");
/// registry.register_fn(add, |_context, arguments| {
///     let number = |name: &str| arguments[name].as_f64().ok_or("not a number");
///     Ok((number("a")? + number("b")?).to_string())
/// })?;
///
/// // A tool that a ToolServer runs.
/// let search = ToolSchema::new("web_search", "Search the web.")
///     .with_required("query", "string", "What to look for.");
/// registry.register_external(search)?;
///
/// assert!(registry.names().any(|name| name == "add"));
/// println!("{}", registry.prompt_description());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ToolRegistry {
    tools: Vec<RegisteredTool>,
    /// Where in `tools` a name is.
    places: HashMap<String, usize>,
}

/// A tool of a [`ToolRegistry`].
#[derive(Debug, Clone)]
pub struct RegisteredTool {
    /// What it is called and what it takes.
    pub schema: ToolSchema,
    /// Where it runs.
    pub kind: ToolKind,
}

/// Where a tool runs.
#[derive(Debug, Clone)]
pub enum ToolKind {
    /// In the sandbox of the trajectory.
    Sandbox {
        /// The sandbox's name for it: a model's `terminal` is a sandbox's `bash`.
        sent_as: &'static str,
    },
    /// On the ToolServer.
    ToolServer,
    /// In this process.
    InProcess(Handler),
}

impl ToolRegistry {
    /// A registry without tools.
    pub fn empty() -> Self {
        Self { tools: Vec::new(), places: HashMap::new() }
    }

    /// A registry of the tools that run in a sandbox: `terminal`, `bash`, `read_file`,
    /// `write_file`, `terminal_stateful`, `tmux`. `bash_stateful`, which is the sandbox's name for
    /// `terminal_stateful`, is accepted for it, unless a tool of that name is registered: it is in
    /// no prompt and not among the [`names`](Self::names), and what tells of such a call – error
    /// texts, statistics – calls the tool as the model did.
    pub fn builtin() -> Self {
        let mut registry = Self::empty();
        for (schema, sent_as) in builtin::all() {
            registry.push(schema, ToolKind::Sandbox { sent_as });
        }
        registry
    }

    /// The same where a call may take so long: the built-in tools tell models of it. An executor's
    /// [`registry`](crate::ToolExecutor::registry) says what holds there by itself,
    /// [`ExecutorConfig::max_timeout`](crate::config::ExecutorConfig::max_timeout); this is for
    /// prompts that are made before one starts.
    #[must_use]
    pub fn with_longest_timeout(mut self, longest: Duration) -> Self {
        for tool in &mut self.tools {
            if let ToolKind::Sandbox { .. } = tool.kind {
                builtin::tell_longest_timeout(&mut tool.schema, longest);
            }
        }
        self
    }

    /// Adds a tool that a ToolServer runs.
    ///
    /// # Errors
    /// See [`RegisterError`]; the registry is then as it was.
    pub fn register_external(&mut self, mut schema: ToolSchema) -> Result<(), RegisterError> {
        self.check_name(&schema.name)?;
        schema.external = true;
        self.push(schema, ToolKind::ToolServer);
        Ok(())
    }

    /// Adds a tool that is a closure of the user's.
    ///
    /// The executor calls it on a thread for such tools, for several trajectories at once, with
    /// arguments that fit the schema. `Ok` is the tool's output; `Err` is one line that says why it
    /// failed, which the model is shown. A panic ends that call with an error and nothing else.
    ///
    /// # Errors
    /// See [`RegisterError`]; the registry is then as it was.
    pub fn register_fn<F>(
        &mut self,
        mut schema: ToolSchema,
        function: F,
    ) -> Result<(), RegisterError>
    where
        F: Fn(&ToolContext, &JsonObject) -> Result<String, String> + Send + Sync + 'static,
    {
        self.check_name(&schema.name)?;
        schema.external = false;
        self.push(schema, ToolKind::InProcess(Handler::new(function)));
        Ok(())
    }

    /// Adds a tool that is a closure of the user's and may answer after it has returned, from any
    /// thread, by its [`ToolReply`]. So a call that waits for something else takes no thread.
    ///
    /// As many calls as the executor's
    /// [`queue_capacity`](crate::config::ExecutorConfig::queue_capacity) – or 256, if that is more
    /// – may be unanswered; others wait. For the rest see
    /// [`register_fn`](Self::register_fn).
    ///
    /// # Errors
    /// See [`RegisterError`]; the registry is then as it was.
    pub fn register_deferred<F>(
        &mut self,
        mut schema: ToolSchema,
        function: F,
    ) -> Result<(), RegisterError>
    where
        F: Fn(&ToolContext, &JsonObject, ToolReply) + Send + Sync + 'static,
    {
        self.check_name(&schema.name)?;
        schema.external = false;
        self.push(schema, ToolKind::InProcess(Handler::deferred(function)));
        Ok(())
    }

    /// The tool of this name.
    pub fn get(&self, name: &str) -> Option<&RegisteredTool> {
        let place = self.places.get(name).or_else(|| self.builtin_of(name));
        place.map(|&place| &self.tools[place])
    }

    /// Where in `tools` the built-in tool is that has this other name.
    fn builtin_of(&self, alias: &str) -> Option<&usize> {
        let (_, name) = ALIASES.iter().find(|(other, _)| *other == alias)?;
        let place = self.places.get(*name)?;
        // Not a tool of the user's that took the name in a registry without built-in ones.
        matches!(self.tools[*place].kind, ToolKind::Sandbox { .. }).then_some(place)
    }

    /// The names of all tools, in the order of their registration.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.schemas().map(|schema| schema.name.as_str())
    }

    /// The schemas of all tools, in the order of their registration.
    pub fn schemas(&self) -> impl Iterator<Item = &ToolSchema> {
        self.tools.iter().map(|tool| &tool.schema)
    }

    /// All tools as prose for a prompt, with a blank line between them; see
    /// [`ToolSchema::to_prompt_description`].
    pub fn prompt_description(&self) -> String {
        self.schemas().map(ToolSchema::to_prompt_description).collect::<Vec<_>>().join("\n\n")
    }

    /// All tools as the JSON list that Hermes models expect in their system prompt, on one line:
    /// `[{"name": …, "description": …, "parameters": {…}, "required": null}, …]`.
    pub fn prompt_tool_definitions_json(&self) -> String {
        let definition = |schema: &ToolSchema| {
            json!({
                "name": schema.name,
                "description": schema.description,
                "parameters": schema.parameters_schema(),
                "required": null,
            })
        };
        let definitions: Vec<Value> = self.schemas().map(definition).collect();
        python_json::to_string(&Value::Array(definitions), NonAscii::Keep)
    }

    fn check_name(&self, name: &str) -> Result<(), RegisterError> {
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(RegisterError::InvalidName(name.to_owned()));
        }
        if self.places.contains_key(name) {
            return Err(RegisterError::DuplicateName(name.to_owned()));
        }
        Ok(())
    }

    fn push(&mut self, schema: ToolSchema, kind: ToolKind) {
        self.places.insert(schema.name.clone(), self.tools.len());
        self.tools.push(RegisteredTool { schema, kind });
    }
}

impl Default for ToolRegistry {
    fn default() -> Self {
        Self::builtin()
    }
}

/// Why a tool could not be registered.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// A tool of this name is there already.
    #[error("a tool named {0:?} is registered already")]
    DuplicateName(String),
    /// The name is empty, or holds white space or control characters.
    #[error(
        "{0:?} cannot be a tool's name: it must not be empty nor hold white space or control \
         characters"
    )]
    InvalidName(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_tools_are_registered_in_the_order_of_the_reference() {
        let registry = ToolRegistry::default();
        let sent_as = |name: &str| match registry.get(name).unwrap().kind {
            ToolKind::Sandbox { sent_as } => sent_as,
            ref other => panic!("{name} runs in {other:?}"),
        };
        let tools: Vec<_> = registry.names().map(|name| (name, sent_as(name))).collect();
        assert_eq!(
            tools,
            [
                ("terminal", "bash"),
                ("bash", "bash"),
                ("read_file", "read_file"),
                ("write_file", "write_file"),
                ("terminal_stateful", "bash_stateful"),
                ("tmux", "tmux"),
            ]
        );
        assert!(registry.schemas().all(|schema| !schema.external));
        assert!(registry.names().all(|name| name != "bash_stateful"));
    }

    #[test]
    fn models_are_told_how_long_a_call_may_take() {
        let told = |registry: &ToolRegistry, name: &str| {
            let schema = &registry.get(name).unwrap().schema;
            schema.parameters["timeout"]["description"].as_str().unwrap().to_owned()
        };
        let mut registry = ToolRegistry::builtin();
        let own = ToolSchema::new("own", "").with_optional("timeout", "number", "its own");
        registry.register_external(own).unwrap();
        assert!(told(&registry, "bash").contains("from 1 to 600."));
        let registry = registry.with_longest_timeout(Duration::from_secs(7200));
        for name in ["bash", "terminal", "terminal_stateful"] {
            assert!(told(&registry, name).contains("from 1 to 7200."), "{name}");
        }
        assert_eq!(told(&registry, "own"), "its own");
    }

    #[test]
    fn an_alias_is_a_builtin_tools_and_gives_way_to_a_tool_of_that_name() {
        let mut registry = ToolRegistry::builtin();
        assert_eq!(registry.get("bash_stateful").unwrap().schema.name, "terminal_stateful");
        registry.register_external(ToolSchema::new("bash_stateful", "")).unwrap();
        assert!(matches!(registry.get("bash_stateful").unwrap().kind, ToolKind::ToolServer));
        let mut empty = ToolRegistry::empty();
        empty.register_external(ToolSchema::new("terminal_stateful", "")).unwrap();
        assert!(empty.get("bash_stateful").is_none());
    }

    #[test]
    fn the_users_tools_follow_in_the_order_of_registration() {
        let mut registry = ToolRegistry::empty();
        registry.register_external(ToolSchema::new("z", "")).unwrap();
        registry.register_fn(ToolSchema::new("a", ""), |_, _| Ok(String::new())).unwrap();
        assert!(registry.names().eq(["z", "a"]));
        assert!(matches!(registry.get("z").unwrap().kind, ToolKind::ToolServer));
        assert!(matches!(registry.get("a").unwrap().kind, ToolKind::InProcess(_)));
        assert!(registry.schemas().map(|schema| schema.external).eq([true, false]));
    }

    #[test]
    fn a_name_that_is_taken_or_no_name_is_refused_and_changes_nothing() {
        let mut registry = ToolRegistry::builtin();
        let taken = registry.register_external(ToolSchema::new("bash", ""));
        assert_eq!(taken, Err(RegisterError::DuplicateName("bash".to_owned())));
        for name in ["", " ", "a b", "a\n", "a\0"] {
            let refused = registry.register_fn(ToolSchema::new(name, ""), |_, _| Ok(String::new()));
            assert_eq!(refused, Err(RegisterError::InvalidName(name.to_owned())));
        }
        assert_eq!(registry.names().count(), 6);
        assert!(matches!(registry.get("bash").unwrap().kind, ToolKind::Sandbox { .. }));
    }

    #[test]
    fn prompts_hold_all_tools_in_the_forms_of_the_reference() {
        let mut registry = ToolRegistry::empty();
        assert_eq!(registry.prompt_description(), "");
        assert_eq!(registry.prompt_tool_definitions_json(), "[]");

        let one = ToolSchema::new("é", "d").with_required("k", "string", "x");
        registry.register_external(one).unwrap();
        registry.register_external(ToolSchema::new("b", "")).unwrap();
        assert_eq!(
            registry.prompt_description(),
            "**é**: d\nParameters:\n  - k (string) (required): x\n\n\
             **b**: \nParameters:\n  (no parameters)"
        );
        assert_eq!(
            registry.prompt_tool_definitions_json(),
            r#"[{"name": "é", "description": "d", "parameters": {"type": "object", "properties": {"k": {"type": "string", "description": "x"}}, "required": ["k"]}, "required": null}, {"name": "b", "description": "", "parameters": {"type": "object", "properties": {}, "required": []}, "required": null}]"#
        );
    }
}
