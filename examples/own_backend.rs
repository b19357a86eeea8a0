//! Bring your own sandboxes: a backend whose slots are nothing but maps in memory.
//!
//! `cargo run --example own_backend`

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::json;
use tool_executor::backend::{Backend, Container, Execution, ExecutionId, ResetReply, SlotRef};
use tool_executor::{BackendError, Interrupt, Outcome, ToolCall, ToolExecutor, ToolResult};

/// A container's address, and the index of a slot in it.
type SlotKey = (Arc<str>, usize);
/// By name.
type Files = HashMap<String, String>;

/// Two containers of two slots each; a slot's files live in a map.
struct InMemory {
    files: Mutex<HashMap<SlotKey, Files>>,
    running: &'static Mutex<HashSet<ExecutionId>>,
}

impl Backend for InMemory {
    fn start(&self, _interrupt: &Interrupt) -> Result<Vec<Container>, BackendError> {
        Ok(vec![Container::numbered("memory-a", 2), Container::numbered("memory-b", 2)])
    }

    fn execute(&self, _addr: &str, batch: Vec<Execution>) {
        for execution in batch {
            match execution.tool {
                // What is slow must not be waited for here: answer it from somewhere else, later.
                "bash" => self.sleep(execution),
                // What is quick may be answered at once.
                _ => {
                    let result = self.file(&execution);
                    execution.reply.send(result);
                }
            }
        }
    }

    fn reset(&self, slot: &SlotRef, reply: ResetReply) {
        self.files.lock().unwrap().remove(&(slot.addr.clone(), slot.index));
        reply.send(Ok(()));
    }

    fn cancel(&self, id: ExecutionId) {
        self.running.lock().unwrap().remove(&id);
    }
}

impl InMemory {
    fn file(&self, execution: &Execution) -> ToolResult {
        let text = |key: &str| execution.arguments[key].as_str().unwrap_or_default().to_owned();
        let mut files = self.files.lock().unwrap();
        let slot = files.entry((execution.slot.addr.clone(), execution.slot.index)).or_default();
        match execution.tool {
            "write_file" => {
                slot.insert(text("path"), text("content"));
                ToolResult::ok(format!("wrote {}", text("path")))
            }
            "read_file" => match slot.get(&text("path")) {
                Some(content) => ToolResult::ok(content),
                None => ToolResult::failure(Outcome::ToolError, "File not found"),
            },
            other => ToolResult::failure(Outcome::UnknownTool, format!("Unknown tool: {other}")),
        }
    }

    /// The only command it knows: sleeps until its time is up or it is cancelled.
    fn sleep(&self, execution: Execution) {
        let running = self.running;
        running.lock().unwrap().insert(execution.id);
        thread::spawn(move || {
            let ticks = execution.timeout.as_millis() / 10;
            for _ in 0..ticks {
                let cancelled = !running.lock().unwrap().contains(&execution.id);
                // A cancellation may be there before the call was noted as running.
                if cancelled || execution.reply.is_cancelled() {
                    let result = ToolResult::failure(Outcome::Cancelled, "woken up");
                    return execution.reply.send(result);
                }
                thread::sleep(Duration::from_millis(10));
            }
            running.lock().unwrap().remove(&execution.id);
            execution.reply.send(ToolResult::failure(Outcome::Timeout, "slept too long"));
        });
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let running: &'static Mutex<HashSet<ExecutionId>> = Box::leak(Box::default());
    let backend = InMemory { files: Mutex::default(), running };
    let executor = ToolExecutor::builder().backend(backend).start()?;

    let write = json!({"path": "note", "content": "hello"});
    executor.execute("agent-1", ToolCall::new("write_file", write));
    let read = ToolCall::new("read_file", json!({"path": "note"}));
    let mine = executor.execute("agent-1", read.clone());
    let others = executor.execute("agent-2", read);
    println!("agent-1 reads {:?}, agent-2 gets {:?}", mine.output, others.error);
    assert_eq!((&*mine.output, &*others.error), ("hello", "File not found"));

    let sleeping = executor.submit("agent-3", ToolCall::bash("sleep"))?;
    sleeping.cancel();
    let result = sleeping.wait();
    println!("agent-3: {} ({})", result.error, result.outcome);
    assert_eq!(result.outcome, Outcome::Cancelled);

    executor.release("agent-1")?;
    println!("{:?}", executor.stats().slots);
    Ok(())
}
