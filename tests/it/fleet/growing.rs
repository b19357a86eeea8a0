//! Servers that come and go while the executor runs.

use super::loss::Process;
use super::sharing::count;
use super::*;
use crate::fakes::until;

/// The servers as they are told of: where, in which state, and how many of their slots are held.
fn lanes(executor: &ToolExecutor) -> Vec<(String, &'static str, usize)> {
    let lanes = executor.stats().lanes;
    lanes.into_iter().map(|lane| (lane.addr, lane.state, lane.held)).collect()
}

/// In which container a call ran.
fn container(result: &ToolResult) -> String {
    assert_eq!(result.outcome, Outcome::Ok, "{result:?}");
    result.metadata["container"].as_str().unwrap().to_owned()
}

#[test]
fn a_server_that_is_added_is_used_and_one_that_is_not_wanted_goes_when_its_trajectories_have_ended()
{
    let (first, second) = (server(1), server(2));
    let (first_url, second_url) = (url(&first), url(&second));
    let executor = executor(fleet([first_url.clone()]));
    assert_eq!(container(&executor.execute("a", count())), first_url);
    // What waits for a slot gets one of the new server's.
    let waits = executor.submit("b", count()).unwrap();
    executor.use_containers(&[first_url.clone(), second_url.clone()]).unwrap();
    assert_eq!(container(&waits.wait()), second_url);
    // The first is to go: who is there finishes, and nobody else is put there.
    executor.use_containers(std::slice::from_ref(&second_url)).unwrap();
    until(|| lanes(&executor)[0] == (first_url.clone(), "draining", 1));
    assert_eq!(executor.execute("a", count()).output, "2");
    assert_eq!(container(&executor.execute("c", count())), second_url);
    executor.release("a").unwrap();
    until(|| lanes(&executor) == [(second_url.clone(), "up", 2)]);
    let stats = executor.stats();
    assert_eq!((stats.slots.total, stats.slots.elsewhere, stats.containers.up), (2, 0, 1));
    // The server has given its slot to whoever comes next.
    let other = self::executor(fleet([first_url.clone()]));
    assert_eq!(other.execute("x", count()).output, "1");
    assert!(other.close().all_threads_ended);
    // It comes back, emptied.
    executor.use_containers(&[first_url.clone(), second_url]).unwrap();
    let back = executor.execute("d", count());
    assert_eq!((container(&back), &*back.output), (first_url, "1"));
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_server_that_is_wanted_again_before_it_has_gone_stays() {
    let (first, second) = (server(1), server(1));
    let (first_url, second_url) = (url(&first), url(&second));
    let executor = executor(fleet([first_url.clone(), second_url.clone()]));
    let both = [first_url.clone(), second_url.clone()];
    for id in ["a", "b"] {
        assert_eq!(executor.execute(id, count()).output, "1");
    }
    executor.use_containers(&both[1..]).unwrap();
    until(|| executor.stats().containers.draining == 1);
    executor.use_containers(&both).unwrap();
    until(|| executor.stats().containers.up == 2);
    for id in ["a", "b"] {
        assert_eq!(executor.execute(id, count()).output, "2");
        executor.release(id).unwrap();
    }
    for id in ["c", "d"] {
        assert_eq!(executor.execute(id, count()).output, "1");
    }
    assert!(executor.close().all_threads_ended);
}

#[test]
fn what_makes_no_sense_changes_nothing() {
    let server = server(1);
    let url = url(&server);
    let executor = executor(fleet([url.clone()]));
    for (urls, why) in [
        (vec!["ftp://a"], "ftp://a"),
        (vec!["http://a:1", "http://a:1/"], "there twice"),
        (vec![""], ""),
    ] {
        let urls: Vec<_> = urls.into_iter().map(str::to_owned).collect();
        let error = executor.use_containers(&urls).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
    assert_eq!(executor.execute("a", count()).output, "1");
    assert_eq!(lanes(&executor), [(url, "up", 1)]);
    let local = LocalBackend::start(LocalConfig::new(1)).unwrap();
    let local = ToolExecutor::builder().backend(local).start().unwrap();
    let error = local.use_containers(&["http://a:1".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("cannot be changed"), "{error}");
}

#[test]
fn the_last_server_may_go_and_calls_wait_for_the_next() {
    let first = server(1);
    let executor = executor(fleet([url(&first)]));
    executor.use_containers(&[]).unwrap();
    until(|| lanes(&executor).is_empty());
    let waits = executor.submit("a", count()).unwrap();
    let second = server(1);
    executor.use_containers(&[url(&second)]).unwrap();
    assert_eq!(container(&waits.wait()), url(&second));
    assert!(executor.close().all_threads_ended);
}

#[test]
fn a_server_that_hangs_is_forgotten_when_it_is_given_up_and_one_that_never_answers_at_once() {
    let mut process = Process::start(0, 1);
    let good = server(1);
    let bad = process.url.clone();
    let executor = executor(fleet([bad.clone()]));
    assert_eq!(executor.execute("a", count()).output, "1");
    // Nothing listens there.
    let nowhere = "http://127.0.0.1:1".to_owned();
    executor.use_containers(&[bad.clone(), url(&good), nowhere]).unwrap();
    assert_eq!(container(&executor.execute("b", count())), url(&good));
    process.kill();
    executor.use_containers(&[url(&good)]).unwrap();
    until(|| lanes(&executor) == [(url(&good), "up", 1)]);
    let lost = executor.execute("a", count());
    assert_eq!((lost.outcome, lost.may_have_executed), (Outcome::SandboxLost, false));
    assert!(executor.close().all_threads_ended);
}

#[test]
fn the_servers_of_a_file_are_used_as_it_changes() {
    let (first, second) = (server(1), server(1));
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("servers");
    let write = |text: String| std::fs::write(&path, text).unwrap();
    write("# none yet\n".to_owned());
    let mut config = fleet([]);
    config.servers_file = Some(path.clone());
    let executor = executor(config);
    let waits = executor.submit("a", count()).unwrap();
    write(format!("{}\n", url(&first)));
    assert_eq!(container(&waits.wait()), url(&first));
    write(format!("{}\n{} # more\n", url(&first), url(&second)));
    assert_eq!(container(&executor.execute("b", count())), url(&second));
    // What cannot be read changes nothing.
    write("rubbish\n".to_owned());
    assert_eq!(executor.execute("a", count()).output, "2");
    let error = executor.use_containers(&[]).unwrap_err().to_string();
    assert!(error.contains("change that"), "{error}");
    write(format!("{}\n", url(&second)));
    until(|| executor.stats().containers.draining == 1);
    executor.release("a").unwrap();
    until(|| lanes(&executor) == [(url(&second), "up", 1)]);
    assert!(executor.close().all_threads_ended);

    let mut config = fleet([]);
    config.servers_file = Some(directory.path().join("missing"));
    let missing = ToolExecutor::builder().backend(FleetBackend::new(config).unwrap()).start();
    let Err(StartError::Backend(error)) = missing else { panic!("there is no such file") };
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn every_address_of_a_name_is_a_server() {
    let server = server(1);
    let mut config = fleet([]);
    config.servers_name = Some(url(&server).trim_start_matches("http://").to_owned());
    let executor = executor(config);
    assert_eq!(container(&executor.execute("a", count())), url(&server));
}
