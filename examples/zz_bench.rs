use std::process::{Command, Stdio};
use std::time::Instant;
use tool_executor::backend::local::{LocalBackend, LocalConfig};
use tool_executor::{ToolCall, ToolExecutor};
fn main() {
    let b = LocalBackend::start(LocalConfig::with_slots(1)).unwrap();
    let e = ToolExecutor::builder().backend(b).start().unwrap();
    let mut f = vec![];
    let mut w = vec![];
    let mut wall = vec![];
    let mut r = vec![];
    for _ in 0..500 {
        let t = Instant::now();
        Command::new("/bin/bash")
            .args(["-c", "true"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap();
        f.push(t.elapsed());
        let t = Instant::now();
        let x = e.execute("t", ToolCall::bash("true"), None);
        w.push(t.elapsed());
        wall.push(x.metadata["wall_s"].as_f64().unwrap());
        let t = Instant::now();
        e.execute("t", ToolCall::new("read_file", serde_json::json!({"path":"nope"})), None);
        r.push(t.elapsed());
    }
    f.sort();
    w.sort();
    r.sort();
    wall.sort_by(|a, b| a.total_cmp(b));
    println!(
        "floor {:?} warm {:?} ratio {:.3} wall {:.1}us readfile {:?}",
        f[250],
        w[250],
        w[250].as_secs_f64() / f[250].as_secs_f64(),
        wall[250] * 1e6,
        r[250]
    );
}
