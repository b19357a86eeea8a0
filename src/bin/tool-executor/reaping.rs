//! `tool-executor reap`: what runs have left in a scheduler, and its removal.

use tool_executor::Interrupt;
use tool_executor::backend::slurm::{RunState, StartedServer, remove_servers, started_servers};

use crate::args::ReapArgs;
use crate::console::{end_of_printing, fail, init_log, print};
use crate::exit_code::ExitCode;
use crate::setup::chain;
use crate::signals::Signals;
use crate::starting::start;

/// Lists what runs have started, and removes what is left of those that are over, if it is to.
pub(crate) fn reap(args: &ReapArgs) -> ExitCode {
    init_log(None, false, std::io::stderr());
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return fail(ExitCode::NotStarted, &format!("no signal handler: {error}")),
    };
    let (removes, runs) = (args.remove, args.run.clone());
    let found = start(signals.arrivals(), move |interrupt| find(removes, &runs, interrupt));
    let (servers, removed) = match found {
        Ok(found) => found,
        Err(code) => return code,
    };
    let text = match args.json {
        true => format!("{}\n", serde_json::json!({"servers": servers, "removed": removed})),
        false => table(&servers, &removed),
    };
    end_of_printing(print(&text))
}

/// The servers of these runs, or of all, and the ids of those that were removed.
fn find(
    removes: bool,
    runs: &[String],
    interrupt: &Interrupt,
) -> Result<(Vec<StartedServer>, Vec<String>), String> {
    let mut servers = started_servers(interrupt).map_err(|error| chain(&error))?;
    if let Some(run) = runs.iter().find(|run| !servers.iter().any(|server| server.run == **run)) {
        return Err(format!("no server is of the run {run}: see the list without --run"));
    }
    servers.retain(|server| runs.is_empty() || runs.contains(&server.run));
    if !removes {
        return Ok((servers, Vec::new()));
    }
    let chosen = chosen(&servers, !runs.is_empty())?;
    if !chosen.is_empty() {
        remove_servers(&chosen, interrupt).map_err(|error| chain(&error))?;
    }
    let removed = chosen.into_iter().map(|server| server.id).collect();
    Ok((servers, removed))
}

/// What of this is removed: of runs that were `named` all, else what is known to be left.
///
/// # Errors
/// A run that was named goes on.
fn chosen(servers: &[StartedServer], named: bool) -> Result<Vec<StartedServer>, String> {
    let running = servers.iter().find(|server| server.run_state == RunState::Running);
    if let Some(server) = running.filter(|_| named) {
        return Err(format!(
            "the run {} goes on: it is process {} of this host; end that, and its servers end",
            server.run, server.pid
        ));
    }
    let is_left = |server: &&StartedServer| named || matches!(server.run_state, RunState::Over);
    Ok(servers.iter().filter(is_left).cloned().collect())
}

/// The list, for people.
fn table(servers: &[StartedServer], removed: &[String]) -> String {
    if servers.is_empty() {
        return "Slurm has no sandbox server of yours\n".to_owned();
    }
    let head = ["SERVER", "JOB", "NODE", "TIME", "RUN IS", "RUN"].map(str::to_owned);
    let row = |server: &StartedServer| {
        let run_state = match removed.contains(&server.id) {
            true => "removed".to_owned(),
            false => server.run_state.to_string(),
        };
        let node = if server.node.is_empty() { "-" } else { &server.node };
        let StartedServer { id, job_state, time, run, .. } = server;
        [id, job_state, node, time, &run_state, run].map(str::to_owned)
    };
    let rows: Vec<[String; 6]> = std::iter::once(head).chain(servers.iter().map(row)).collect();
    let widths: [usize; 6] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    let left = servers
        .iter()
        .filter(|server| server.run_state == RunState::Over && !removed.contains(&server.id));
    if left.count() > 0 {
        text.push_str("--remove removes those whose run is over\n");
    }
    text
}
