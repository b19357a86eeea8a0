//! Jobs that Slurm puts back into its queue.

use std::io::{BufRead as _, BufReader};

use serde_json::json;

use super::*;

/// What is asked of a server, and what it answers; `None` while it does not.
fn call(port: u16, id: &str) -> Option<String> {
    let body = json!({"trajectory_id": id, "tool": {"name": "bash", "uniq_id": "u",
        "arguments": {"command": "echo >> n; wc -l < n"}}});
    TcpStream::connect(("127.0.0.1", port)).ok()?;
    let mut client = Client::connect(([127, 0, 0, 1], port).into());
    let answer = client.ask("POST", "/execute", &[], body.to_string().as_bytes());
    Some(answer.json()["output"].as_str().unwrap_or_default().to_owned())
}

/// The port in the last line of a file that says that a server listens.
fn listening(file: &Path, lines: usize) -> Option<u16> {
    let text = fs::File::open(file).ok()?;
    let lines_there: Vec<_> = BufReader::new(text).lines().map_while(Result::ok).collect();
    let said: Vec<_> = lines_there.iter().filter(|line| line.contains("listening")).collect();
    let line = said.get(lines - 1)?;
    let words = line.split(['/', ' ']);
    words.filter_map(|word| word.rsplit_once(':')).find_map(|(_, port)| port.parse().ok())
}

/// A job that ends with the test, also where that fails.
struct Cancels(String);

impl Drop for Cancels {
    fn drop(&mut self) {
        run("scancel", &["--full", "--signal=KILL", &self.0]);
    }
}

/// A server of Slurm's is a job that cannot begin anew: who tries is refused, and it runs on.
#[test]
fn a_servers_job_cannot_be_requeued_and_runs_on() {
    if !has_slurm("slurm::requeue::a_servers_job_cannot_be_requeued_and_runs_on") {
        return;
    }
    nodes_are_idle();
    let executor = start(config().with_jobs(jobs())).unwrap();
    assert_eq!(executor.execute("a", bash("echo mine > f")).outcome, Outcome::Ok);
    let before = running();
    let job = before[0].split(' ').next().unwrap().to_owned();
    assert!(!run("scontrol", &["requeue", &job]).status.success());
    assert_eq!(executor.execute("a", bash("cat f")).output, "mine");
    assert_eq!(running(), before);
    assert!(executor.close().all_threads_ended);
    until(|| running().is_empty());
}

/// A batch job that Slurm requeues has the executor in it: it ends with its servers, and when the
/// job begins anew there is another, with servers of its own.
#[test]
fn a_batch_job_that_is_requeued_leaves_nothing_and_begins_anew() {
    if !has_slurm("slurm::requeue::a_batch_job_that_is_requeued_leaves_nothing_and_begins_anew") {
        return;
    }
    nodes_are_idle();
    let directory = tempfile::tempdir().unwrap();
    let (script, said) = (directory.path().join("job"), directory.path().join("said"));
    let text = format!(
        "#!/bin/sh\nexec {PROGRAM} serve --port 0 --no-auth --slurm --slurm-slots 1 >> {} 2>> {}\n",
        said.display(),
        directory.path().join("errors").display(),
    );
    fs::write(&script, text).unwrap();
    let script = script.display().to_string();
    let job =
        printed("sbatch", &["--parsable", "--requeue", "--nodes=3", "-o", "/dev/null", &script]);
    let _ends = Cancels(job.clone());
    let steps = || {
        let printed = printed("squeue", &["-h", "-s", "-j", &job, "-o", "%i %j"]);
        let ours = printed.lines().filter(|line| line.contains("tool-executor:"));
        ours.map(str::to_owned).collect::<Vec<_>>()
    };
    let errors = || fs::read_to_string(directory.path().join("errors")).unwrap_or_default();
    until_within(2 * PATIENCE, || listening(&said, 1).is_some());
    let first = listening(&said, 1).unwrap();
    assert_eq!(call(first, "a").as_deref(), Some("1"), "{}", errors());
    assert_eq!(call(first, "a").as_deref(), Some("2"));
    until(|| steps().len() == 3);

    let requeued = run("scontrol", &["requeue", &job]);
    assert!(requeued.status.success(), "{requeued:?}");
    // The executor and its servers are gone.
    until_within(2 * PATIENCE, || TcpStream::connect(("127.0.0.1", first)).is_err());
    until_within(2 * PATIENCE, || steps().is_empty());
    // Slurm lets a requeued job wait for two minutes, unless it is told otherwise.
    let now = ["update", &format!("JobId={job}"), "StartTime=now"];
    until_within(4 * PATIENCE, || {
        // Refused as soon as it has started.
        run("scontrol", &now);
        listening(&said, 2).is_some()
    });
    let second = listening(&said, 2).unwrap();
    until_within(2 * PATIENCE, || TcpStream::connect(("127.0.0.1", second)).is_ok());
    // Nothing of the first run is in it.
    assert_eq!(call(second, "a").as_deref(), Some("1"), "{}", errors());
    until(|| steps().len() == 3);
    run("scancel", &[&job]);
    until_within(2 * PATIENCE, || steps().is_empty());
    until_within(2 * PATIENCE, || TcpStream::connect(("127.0.0.1", second)).is_err());
}
