//! What Slurm is asked, and what it says: command lines, and the reading of what they print. Pure.
//!
//! The command lines are the same in all versions of Slurm; sources: `srun(1)`, `squeue(1)`,
//! `scancel(1)`, `scontrol(1)`.

use std::ffi::OsString;
use std::time::Duration;

use crate::config::SlurmConfig;

/// What the name of every job and step of ours begins with.
pub(super) const JOB_NAME: &str = "tool-executor";
/// The variable that gives servers their token.
pub(super) const TOKEN_VARIABLE: &str = "TOOL_EXECUTOR_SANDBOX_TOKEN";
/// What says on which job and step a server runs, before the server itself.
const SAY_STEP: &str = r#"echo "step $SLURM_JOB_ID.$SLURM_STEP_ID"; exec "$@""#;
/// How long a server lives that no executor uses: nothing is left of one whose executor is gone.
const UNUSED_LIMIT: &str = "120";

/// A line that a server's standard output begins with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// It runs, as this job and step.
    Step(String),
    /// It listens at this URL, with so many slots.
    Listens(String, usize),
    /// Something else.
    Other,
}

/// Reads a line.
pub(super) fn line(text: &str) -> Line {
    let mut words = text.split_whitespace();
    match (words.next(), words.next(), words.next(), words.next(), words.next()) {
        (Some("step"), Some(step), None, ..) if is_step(step) => Line::Step(step.to_owned()),
        (Some("tool-executor:"), Some("sandbox"), Some("listening"), Some("on"), Some(url))
            if url.starts_with("http://") || url.starts_with("https://") =>
        {
            let slots = words.next().and_then(|word| word.trim_start_matches('(').parse().ok());
            Line::Listens(url.trim_end_matches('/').to_owned(), slots.unwrap_or(1))
        }
        _ => Line::Other,
    }
}

/// Whether it is a job and a step of it: what is passed on to `scancel` is nothing else.
fn is_step(text: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.split_once('.').is_some_and(|(job, step)| is_number(job) && is_number(step))
}

/// The arguments of `srun` that start a server called `name`: on this node of the allocation, or as
/// a job of its own.
pub(super) fn srun(config: &SlurmConfig, node: Option<&str>, name: &str) -> Vec<OsString> {
    let mut argv: Vec<OsString> =
        ["--nodes=1", "--ntasks=1", "--input=none", "--export=ALL", "--kill-on-bad-exit=1"]
            .map(OsString::from)
            .to_vec();
    let option = |name: &str, value: &str| OsString::from(format!("--{name}={value}"));
    argv.push(option("job-name", name));
    if let Some(node) = node {
        argv.push("--overlap".into());
        argv.push(option("nodelist", node));
    }
    if let Some(jobs) = config.jobs.as_ref().filter(|_| node.is_none()) {
        for (name, value) in
            [("partition", &jobs.partition), ("account", &jobs.account), ("time", &jobs.time)]
        {
            argv.extend(value.as_ref().map(|value| option(name, value)));
        }
        argv.extend(jobs.arguments.iter().map(OsString::from));
    }
    argv.extend(["sh", "-c", SAY_STEP, "sh"].map(OsString::from));
    argv.push(config.program.clone().into());
    let serve = ["sandbox", "--host", "0.0.0.0", "--port", "0", "--exit-when-unused", UNUSED_LIMIT];
    argv.extend(serve.map(OsString::from));
    if let Some(slots) = config.slots_per_server {
        argv.extend([OsString::from("--slots"), slots.to_string().into()]);
    }
    argv.extend(config.allow_unisolated.then(|| OsString::from("--allow-unisolated")));
    argv.extend(config.server_arguments.iter().map(OsString::from));
    argv
}

/// The arguments of `squeue` that tell of these jobs.
pub(super) fn squeue(jobs: &[&str]) -> Vec<OsString> {
    let list = format!("--jobs={}", jobs.join(","));
    let shape = "--format=%i|%T|%r|%L";
    ["--noheader", "--states=all", &list, shape].map(OsString::from).to_vec()
}

/// The arguments of `squeue` that list this user's jobs.
pub(super) fn all_jobs() -> Vec<OsString> {
    ["--me", "--noheader", "--format=%i|%T|%N|%M|%j"].map(OsString::from).to_vec()
}

/// The arguments of `squeue` that list the steps of this user's jobs.
pub(super) fn all_steps() -> Vec<OsString> {
    ["--me", "--steps", "--noheader", "--format=%i|STEP|%N|%M|%j"].map(OsString::from).to_vec()
}

/// A job or a step, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) id: String,
    pub(super) state: String,
    pub(super) node: String,
    pub(super) time: String,
    pub(super) name: String,
}

/// Reads a list of jobs or steps; lines that make no sense are left out.
pub(super) fn listed(printed: &str) -> Vec<Listed> {
    let is_id = |id: &str| !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit());
    let listed = |line: &str| {
        // The name is anything.
        let mut parts = line.trim().splitn(5, '|').map(str::to_owned);
        let mut next = || parts.next();
        let listed =
            Listed { id: next()?, state: next()?, node: next()?, time: next()?, name: next()? };
        (is_id(&listed.id) || is_step(&listed.id)).then_some(listed)
    };
    printed.lines().filter_map(listed).collect()
}

/// What `squeue` says of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) id: String,
    /// Such as `RUNNING`.
    pub(super) state: String,
    /// Why it waits, or `None`.
    pub(super) reason: String,
    /// How long it may still run; `None` without an end.
    pub(super) left: Option<Duration>,
}

/// Reads what `squeue` has printed; lines that make no sense are left out.
pub(super) fn jobs(printed: &str) -> Vec<Job> {
    let job = |line: &str| {
        let mut parts = line.trim().split('|');
        let (id, state) = (parts.next()?, parts.next()?);
        let (reason, left) = (parts.next()?, parts.next()?);
        let is_id = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit());
        (is_id && parts.next().is_none()).then(|| Job {
            id: id.to_owned(),
            state: state.to_owned(),
            reason: reason.to_owned(),
            left: time_left(left),
        })
    };
    printed.lines().filter_map(job).collect()
}

/// A time as Slurm writes it: `[days-][hours:]minutes:seconds`, or a word.
fn time_left(text: &str) -> Option<Duration> {
    let (days, clock) = text.split_once('-').unwrap_or(("0", text));
    let days: u64 = days.parse().ok()?;
    let parts: Vec<u64> = clock.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let (hours, minutes, seconds) = match parts[..] {
        [minutes, seconds] => (0, minutes, seconds),
        [hours, minutes, seconds] => (hours, minutes, seconds),
        _ => return None,
    };
    let seconds = days
        .checked_mul(86_400)?
        .checked_add(hours.checked_mul(3600)?)?
        .checked_add(minutes.checked_mul(60)?)?
        .checked_add(seconds)?;
    Some(Duration::from_secs(seconds))
}

/// The names of nodes in what `scontrol show hostnames` has printed.
pub(super) fn nodes(printed: &str) -> Vec<String> {
    let is_name = |name: &&str| {
        !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
    };
    printed.lines().map(str::trim).filter(is_name).map(str::to_owned).collect()
}

/// The last thing that a program said, as one short line.
pub(super) fn last_words(printed: &str) -> String {
    let line = printed.lines().rev().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or("it said nothing").chars().take(300).collect()
}

/// Whether one of Slurm's programs has failed because the controller does not answer: what it says
/// then, in versions from 20 to 24 (`slurm_errno.c`, `srun`).
pub(super) fn is_controller_away(words: &str) -> bool {
    const SAID: [&str; 6] = [
        "unable to contact slurm controller",
        "unable to connect to slurmctld",
        "socket timed out on send/recv",
        "zero bytes were transmitted",
        "controller(s) not responding",
        "connection refused",
    ];
    let words = words.to_ascii_lowercase();
    SAID.iter().any(|said| words.contains(said))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SlurmJobs;
    use proptest::prelude::*;

    fn words(argv: Vec<OsString>) -> String {
        argv.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_server_is_started_on_a_node_or_as_a_job() {
        let config = SlurmConfig::default().with_slots_per_server(Some(4));
        let there = words(srun(&config, Some("n7"), "c"));
        assert!(there.contains("--overlap --nodelist=n7 sh -c"), "{there}");
        assert!(there.ends_with(
            "tool-executor sandbox --host 0.0.0.0 --port 0 --exit-when-unused 120 --slots 4"
        ));
        assert!(there.contains("--job-name=c "), "{there}");
        let mut jobs = SlurmJobs::default().with_partition("p").with_account("a").with_time("1:00");
        jobs.arguments.push("--exclusive".to_owned());
        let mut config = SlurmConfig::default().with_jobs(jobs);
        config.server_arguments = vec!["--limit-memory".to_owned(), "1G".to_owned()];
        let job = words(srun(&config, None, "run:7"));
        let expected = "--job-name=run:7 --partition=p --account=a --time=1:00 --exclusive sh -c";
        assert!(job.contains(expected), "{job}");
        assert!(job.ends_with("120 --limit-memory 1G"), "{job}");
    }

    #[test]
    fn the_lines_of_a_server_are_read() {
        assert_eq!(line("step 17.0"), Line::Step("17.0".to_owned()));
        let listens = "tool-executor: sandbox listening on http://n1:4242 (20 slots)";
        assert_eq!(line(listens), Line::Listens("http://n1:4242".to_owned(), 20));
        for other in [
            "",
            "step",
            "step 17",
            "step 1.0 x",
            "step $(reboot)",
            "step 1.batch",
            "listening on x",
        ] {
            assert_eq!(line(other), Line::Other, "{other}");
        }
    }

    #[test]
    fn jobs_and_their_times_are_read() {
        let printed = "17|RUNNING|None|1-02:03:04\n18|PENDING|Resources|UNLIMITED\nrubbish\n19|x|y\n\
            20|RUNNING|None|0:59\n21|RUNNING|None|INVALID\n";
        let found = jobs(printed);
        let left: Vec<_> =
            found.iter().map(|job| (&*job.id, job.left.map(|left| left.as_secs()))).collect();
        assert_eq!(left, [("17", Some(93_784)), ("18", None), ("20", Some(59)), ("21", None)]);
        assert_eq!((&*found[1].state, &*found[1].reason), ("PENDING", "Resources"));
        let printed = "17|RUNNING|n1|1:02|tool-executor:h:b:1:2:3\n17.0|STEP|n1|1:00|a|b\n\
            18|PENDING||0:00|x\n18.extern|STEP|n1|0|x\n-1|R|n|0|x\n19|R\n";
        let found = listed(printed);
        let found: Vec<_> = found.iter().map(|one| (&*one.id, &*one.node, &*one.name)).collect();
        let expected =
            [("17", "n1", "tool-executor:h:b:1:2:3"), ("17.0", "n1", "a|b"), ("18", "", "x")];
        assert_eq!(found, expected);
        assert_eq!(nodes("n1\nn2\n\nbad name\n"), ["n1", "n2"]);
        assert_eq!(
            last_words("a\nsrun: error: Invalid partition\n\n"),
            "srun: error: Invalid partition"
        );
    }

    #[test]
    fn a_controller_that_does_not_answer_is_known_by_what_programs_say() {
        for words in [
            "srun: error: Unable to allocate resources: Unable to contact slurm controller (connect failure)",
            "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
            "srun: error: Unable to confirm allocation for job 3: Socket timed out on send/recv operation",
            "srun: error: Unable to create step for job 3: Zero Bytes were transmitted or received",
        ] {
            assert!(is_controller_away(words), "{words}");
        }
        for words in [
            "it said nothing",
            "srun: error: Unable to allocate resources: Invalid partition name specified",
            "srun: error: n1: task 0: Killed",
        ] {
            assert!(!is_controller_away(words), "{words}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_printed_is_read(text in ".{0,300}") {
            let _ = (line(&text), jobs(&text), listed(&text), nodes(&text), last_words(&text), time_left(&text));
        }
    }
}
