//! This machine's slots before Slurm's.

use std::sync::Arc;

use tool_executor::backend::Several;
use tool_executor::backend::local::LocalBackend;
use tool_executor::config::LocalConfig;

use super::*;

#[test]
fn slurm_is_asked_for_servers_by_what_spills_and_not_before() {
    if !has_slurm("slurm::spill::slurm_is_asked_for_servers_by_what_spills_and_not_before") {
        return;
    }
    nodes_are_idle();
    let (idle, after) = (Duration::from_secs(3), Duration::from_secs(2));
    let config = config().with_jobs(jobs()).with_min_servers(0).with_max_servers(Some(2));
    let slurm = SlurmBackend::new(config.with_idle_timeout(idle)).unwrap();
    let local = LocalBackend::start(LocalConfig::new(1)).unwrap();
    let both = Several::new().with("here", local).unwrap();
    let both = both.with_shared("slurm", after, Arc::new(slurm)).unwrap();
    let executor = ToolExecutor::builder().backend(both).start().unwrap();
    let container = |id: &str| {
        let result = executor.execute(id, bash("echo >> n; wc -l < n"));
        assert_eq!(result.outcome, Outcome::Ok, "{}", result.error);
        (result.output, result.metadata["container"].as_str().unwrap().to_owned())
    };
    assert_eq!(container("a"), ("1".to_owned(), "here/local".to_owned()));
    // Shorter than what it waits before it spills: Slurm is not even asked.
    let waits = executor.submit("b", bash("true")).unwrap();
    executor.release("a").unwrap();
    assert_eq!(waits.wait().metadata["container"], "here/local");
    assert!(running().is_empty(), "{:?}", running());
    // What waits for longer has a server started, and is put there.
    let began = Instant::now();
    let (count, there) = container("c");
    assert!(began.elapsed() >= after && count == "1");
    assert!(there.starts_with("slurm/http://"), "{there}");
    assert_eq!(running().len(), 1);
    let stats = executor.stats();
    let told: Vec<_> = stats.backends.iter().map(|one| (&*one.name, one.slots)).collect();
    assert_eq!(told, [("here", 1), ("slurm", 2)]);
    // It stays there, and the server goes when it is not needed any more.
    executor.release("b").unwrap();
    assert_eq!(container("c"), ("2".to_owned(), there));
    executor.release("c").unwrap();
    until(|| running().is_empty());
    assert_eq!(container("d"), ("1".to_owned(), "here/local".to_owned()));
    assert!(executor.close().all_threads_ended);
}
