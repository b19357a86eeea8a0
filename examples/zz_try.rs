use tool_executor::backend::local::{LocalBackend, LocalConfig};
use tool_executor::{ToolCall, ToolExecutor};
fn main() {
    let b = LocalBackend::start(LocalConfig::with_slots(1)).unwrap();
    println!("warm {}", b.keeps_sandboxes());
    let e = ToolExecutor::builder().backend(b).start().unwrap();
    for c in std::env::args().skip(1) {
        let r = e.execute("t", ToolCall::bash(c), None);
        println!("{:?}\n{}\n{}", r.outcome, r.output, r.error);
        println!("{:?}", r.metadata);
    }
}
