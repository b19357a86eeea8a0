//! The tools that every sandbox has, as the model is told of them.
//!
//! Only parameters that a model may use are here. What the configuration decides (network,
//! sandboxing) and what a sandbox does not support (`terminal`'s background processes) is not
//! offered; a call that asks for it is dealt with at the executor's door.

use std::time::Duration;

use serde_json::{Value, json};

use super::{MAX_TIMEOUT, OutputOrder, ToolSchema};

/// A tool's schema, and the name that it has in the sandbox.
pub(super) type Builtin = (ToolSchema, &'static str);

/// The tools of every sandbox, in the order in which a model is told of them.
pub(super) fn all() -> [Builtin; 6] {
    [
        (command_tool("terminal"), "bash"),
        (command_tool("bash"), "bash"),
        (read_file(), "read_file"),
        (write_file(), "write_file"),
        (terminal_stateful(), "bash_stateful"),
        (tmux(), "tmux"),
    ]
}

/// Whether one of [`all`] has this name. Makes no schema.
pub(super) fn is_name(name: &str) -> bool {
    const NAMES: [&str; 6] =
        ["terminal", "bash", "read_file", "write_file", "terminal_stateful", "tmux"];
    NAMES.contains(&name)
}

/// What a model is told of `timeout`, where a call may take so long.
fn timeout(longest: Duration) -> String {
    let longest = longest.as_secs_f64();
    format!(
        "Seconds after which the command is killed, from 1 to {longest}. Give more than the \
         default for a long build or test run."
    )
}

/// Has the schema of a built-in tool say how long a call may take.
pub(super) fn tell_longest_timeout(schema: &mut ToolSchema, longest: Duration) {
    let described = schema.parameters.get_mut("timeout").and_then(|one| one.get_mut("description"));
    if let Some(description) = described {
        *description = timeout(longest).into();
    }
}

fn command_tool(name: &str) -> ToolSchema {
    ToolSchema::new(
        name,
        "Run a shell command in the workspace and get what it prints. Every call starts a new \
         shell in /workspace: files stay from call to call; the working directory, variables and \
         background processes do not. There is no keyboard input and no screen: use flags that \
         answer prompts (such as -y), and commands that do not page. Very long output loses its \
         middle.",
    )
    .with_optional(
        "command",
        "string",
        "The command line or script, as for bash -c. Give this or argv.",
    )
    .with_optional("timeout", "number", &timeout(MAX_TIMEOUT))
    .with_parameter(
        "argv",
        json!({
            "type": "array",
            "items": {"type": "string"},
            "description": "In place of command: a program and its arguments, which no shell reads.",
        }),
    )
    .with_optional("workdir", "string", "Where to run it, /workspace unless given.")
    .with_optional("stdin", "string", "What it reads from its standard input, nothing unless given.")
    .with_parameter(
        "env",
        json!({
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Environment variables for it, beside the usual ones.",
        }),
    )
    .with_parameter("output_order", output_order())
}

fn output_order() -> Value {
    let names: Vec<_> = OutputOrder::ALL.iter().map(|order| order.as_str()).collect();
    json!({
        "type": "string",
        "enum": names,
        "description": "separate: standard error after standard output; interleaved: both as they \
            were written.",
    })
}

fn read_file() -> ToolSchema {
    ToolSchema::new(
        "read_file",
        "Read a text file of the workspace. A large one is refused, with the limit; for a part of \
         it use a shell command such as sed -n '100,200p'.",
    )
    .with_required("path", "string", PATH)
}

fn write_file() -> ToolSchema {
    ToolSchema::new(
        "write_file",
        "Write a text file in the workspace. Missing parent directories are made; a file that is \
         there is replaced, or added to.",
    )
    .with_required("path", "string", PATH)
    .with_required("content", "string", "The whole new content of the file, or what is added.")
    .with_optional("append", "boolean", "Add the content to the end of a file that is there.")
}

const PATH: &str = "The file's path, relative to /workspace or beginning with it.";

fn terminal_stateful() -> ToolSchema {
    ToolSchema::new(
        "terminal_stateful",
        "Run a shell command in a shell that stays open between calls, and get what it prints. The \
         working directory, variables, functions and background jobs stay from call to call. There \
         is no keyboard input and no screen; for programs that need them use tmux.",
    )
    .with_required("command", "string", "The command line or script, typed into the open shell.")
    .with_optional("timeout", "number", &timeout(MAX_TIMEOUT))
    .with_parameter("output_order", output_order())
    .with_optional(
        "session",
        "string",
        "The name of the shell, of letters, digits, _ and -, if there is to be more than one: each \
         name is a shell of its own, up to 8. Running exit ends one.",
    )
}

fn tmux() -> ToolSchema {
    ToolSchema::new(
        "tmux",
        "Use a terminal with a keyboard and a screen, for programs that need them: editors, \
         pagers, debuggers, interactive prompts. Send keys, then capture the screen to see what \
         they did.",
    )
    .with_parameter(
        "action",
        json!({
            "type": "string",
            "enum": ["start", "send_keys", "capture", "stream", "stop"],
            "description": "What to do: start the terminal (the other actions but stop do so \
                too), send_keys to type, capture to get the screen (the default), stream to get \
                what was printed since the last stream, as an asciicast, stop to end the terminal \
                and all that runs in it.",
        }),
    )
    .with_parameter(
        "keys",
        json!({
            "type": ["string", "array"],
            "items": {"type": "string"},
            "description": "send_keys: what to type, as one string or a list of them. A string \
                that is a tmux key name, spelled exactly so (Enter, Escape, Tab, BSpace, C-c, M-x, \
                Up, PageDown, F1), is that key; any other is typed as it is, and nothing is added: \
                end a command with Enter.",
        }),
    )
    .with_optional(
        "block",
        "boolean",
        "send_keys: wait until the command that was typed has ended and the shell waits for the \
         next one. A full-screen program or a prompt of another program is waited for until it \
         ends.",
    )
    .with_optional("min_wait_s", "number", "send_keys: seconds to wait after typing, at least.")
    .with_optional(
        "max_wait_s",
        "number",
        "send_keys with block: seconds to wait at most; the command goes on then. Never longer \
         than the call may take.",
    )
    .with_optional("capture_entire", "boolean", "capture: with the lines that scrolled away.")
    .with_optional("reset", "boolean", "stream: from the beginning.")
    .with_optional("max_bytes", "integer", "stream: bytes to get at most, from 1 to 200000.")
    .with_optional("pane_width", "integer", "start: columns of the screen, from 20 to 500.")
    .with_optional("pane_height", "integer", "start: lines of the screen, from 10 to 200.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_is_known_by_its_name() {
        assert!(all().iter().all(|(schema, _)| is_name(&schema.name)));
        assert!(!is_name("bash_stateful") && !is_name(""));
    }
}
