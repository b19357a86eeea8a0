//! The commands beside each other, and what is refused. Nothing here depends on the variables of
//! the process that runs the tests; `tests/cli.rs` and `tests/serve.rs` set some for the program.

use clap::{Arg, Command as Definition};
use tool_executor::config::{
    BackgroundProcesses, Bind, ExecutorConfig, OutputOrder, Policy, UnknownArguments,
};

use super::*;

const COMMANDS: [&str; 3] = ["replay", "serve", "sandbox"];

/// Every flag, its variable, and which of the commands has it: `r`eplay, `s`erve, sandbo`x`.
///
/// `replay` has no `--acquire-timeout-s`, because more trajectories than slots is what
/// `--concurrency` asks for, and no `--idle-limit-s`, because it releases what it is done with.
/// `sandbox` has none of the flags about calls: its clients say these.
const TABLE: [(&str, &str, &str); 87] = [
    ("acquire-timeout-s", "TOOL_EXECUTOR_ACQUIRE_TIMEOUT_S", "s"),
    ("advertise", "TOOL_EXECUTOR_ADVERTISE", "sx"),
    ("allow-host", "TOOL_EXECUTOR_ALLOW_HOST", "rsx"),
    ("allow-network", "TOOL_EXECUTOR_ALLOW_NETWORK", "rs"),
    ("allow-unisolated", "TOOL_EXECUTOR_ALLOW_UNISOLATED", "rsx"),
    ("background", "TOOL_EXECUTOR_BACKGROUND", "rs"),
    ("batch-window-ms", "TOOL_EXECUTOR_BATCH_WINDOW_MS", "rs"),
    ("bind", "TOOL_EXECUTOR_BIND", "rsx"),
    ("bind-rw", "TOOL_EXECUTOR_BIND_RW", "rsx"),
    ("ca-bundle", "TOOL_EXECUTOR_CA_BUNDLE", "rsx"),
    ("compare", "", "r"),
    ("concurrency", "", "r"),
    ("data-dir", "TOOL_EXECUTOR_DATA_DIR", "rsx"),
    ("device", "TOOL_EXECUTOR_DEVICE", "rsx"),
    ("drain-grace-s", "TOOL_EXECUTOR_DRAIN_GRACE_S", "x"),
    ("env", "TOOL_EXECUTOR_ENV", "rsx"),
    ("env-file", "TOOL_EXECUTOR_ENV_FILE", "rsx"),
    ("exit-when-unused", "TOOL_EXECUTOR_EXIT_WHEN_UNUSED", "x"),
    ("format", "", "r"),
    ("grace-s", "TOOL_EXECUTOR_GRACE_S", "rsx"),
    ("host", "TOOL_EXECUTOR_LISTEN_HOST", "sx"),
    ("idle-limit-s", "TOOL_EXECUTOR_IDLE_LIMIT_S", "s"),
    ("image", "TOOL_EXECUTOR_IMAGE", "rsx"),
    ("image-platform", "TOOL_EXECUTOR_IMAGE_PLATFORM", "rsx"),
    ("image-pull", "TOOL_EXECUTOR_IMAGE_PULL", "rsx"),
    ("image-pull-parallel", "TOOL_EXECUTOR_IMAGE_PULL_PARALLEL", "rsx"),
    ("image-pull-retries", "TOOL_EXECUTOR_IMAGE_PULL_RETRIES", "rsx"),
    ("image-pull-timeout-s", "TOOL_EXECUTOR_IMAGE_PULL_TIMEOUT_S", "rsx"),
    ("image-refresh-s", "TOOL_EXECUTOR_IMAGE_REFRESH_S", "rsx"),
    ("image-store-size", "TOOL_EXECUTOR_IMAGE_STORE_SIZE", "rsx"),
    ("keep-workspaces", "", "r"),
    ("lease-s", "TOOL_EXECUTOR_LEASE_S", "x"),
    ("limit", "", "r"),
    ("limit-cpu", "TOOL_EXECUTOR_LIMIT_CPU", "rsx"),
    ("limit-file-size", "TOOL_EXECUTOR_LIMIT_FILE_SIZE", "rsx"),
    ("limit-files", "TOOL_EXECUTOR_LIMIT_FILES", "rsx"),
    ("limit-memory", "TOOL_EXECUTOR_LIMIT_MEMORY", "rsx"),
    ("limit-open-files", "TOOL_EXECUTOR_LIMIT_OPEN_FILES", "rsx"),
    ("limit-processes", "TOOL_EXECUTOR_LIMIT_PROCESSES", "rsx"),
    ("limit-workspace", "TOOL_EXECUTOR_LIMIT_WORKSPACE", "rsx"),
    ("local-slots", "TOOL_EXECUTOR_LOCAL_SLOTS", "rs"),
    ("log", "TOOL_EXECUTOR_LOG", "rsx"),
    ("log-egress", "TOOL_EXECUTOR_LOG_EGRESS", "rsx"),
    ("max-batch-size", "TOOL_EXECUTOR_MAX_BATCH_SIZE", "rs"),
    ("max-file-size", "TOOL_EXECUTOR_MAX_FILE_SIZE", "rsx"),
    ("max-timeout-s", "TOOL_EXECUTOR_MAX_TIMEOUT_S", "rs"),
    ("network", "TOOL_EXECUTOR_NETWORK", "rsx"),
    ("no-auth", "TOOL_EXECUTOR_NO_AUTH", "sx"),
    ("no-network", "", "rs"),
    ("no-seccomp", "TOOL_EXECUTOR_NO_SECCOMP", "rsx"),
    ("out", "", "r"),
    ("output-order", "TOOL_EXECUTOR_OUTPUT_ORDER", "rs"),
    ("path-prepend", "TOOL_EXECUTOR_PATH_PREPEND", "rsx"),
    ("port", "TOOL_EXECUTOR_LISTEN_PORT", "sx"),
    ("quiet", "", "r"),
    ("registry-auth-file", "TOOL_EXECUTOR_REGISTRY_AUTH_FILE", "rsx"),
    ("registry-cert-dir", "TOOL_EXECUTOR_REGISTRY_CERT_DIR", "rsx"),
    ("registry-plain-http", "TOOL_EXECUTOR_REGISTRY_PLAIN_HTTP", "rsx"),
    ("repeat", "", "r"),
    ("require-sandbox", "", "rsx"),
    ("sandbox-ca", "TOOL_EXECUTOR_SANDBOX_CA", "rs"),
    ("sandbox-file", "TOOL_EXECUTOR_SANDBOX_FILE", "rs"),
    ("sandbox-name", "TOOL_EXECUTOR_SANDBOX_NAME", "rs"),
    ("sandbox-slots", "TOOL_EXECUTOR_SANDBOX_SLOTS", "rs"),
    ("sandbox-start-timeout-s", "TOOL_EXECUTOR_SANDBOX_START_TIMEOUT_S", "rs"),
    ("sandbox-token", "TOOL_EXECUTOR_SANDBOX_TOKEN", "rsx"),
    ("sandbox-unreachable-timeout-s", "TOOL_EXECUTOR_SANDBOX_UNREACHABLE_TIMEOUT_S", "rs"),
    ("sandbox-url", "TOOL_EXECUTOR_SANDBOX_URL", "rs"),
    ("share-setup", "", "r"),
    ("slots", "TOOL_EXECUTOR_SLOTS", "rsx"),
    ("slurm", "TOOL_EXECUTOR_SLURM", "rs"),
    ("slurm-argument", "", "rs"),
    ("slurm-slots", "TOOL_EXECUTOR_SLURM_SLOTS", "rs"),
    ("slurm-submit", "TOOL_EXECUTOR_SLURM_SUBMIT", "rs"),
    ("spec", "", "r"),
    ("spill-after-s", "TOOL_EXECUTOR_SPILL_AFTER_S", "rs"),
    ("summary-json", "", "r"),
    ("timeout-s", "TOOL_EXECUTOR_TIMEOUT_S", "rs"),
    ("tls-cert", "TOOL_EXECUTOR_TLS_CERT", "sx"),
    ("tls-key", "TOOL_EXECUTOR_TLS_KEY", "sx"),
    ("token", "TOOL_EXECUTOR_TOKEN", "s"),
    ("tool-server-ca", "TOOL_EXECUTOR_TOOL_SERVER_CA", "rs"),
    ("tool-server-token", "TOOL_EXECUTOR_TOOL_SERVER_TOKEN", "rs"),
    ("tool-server-url", "TOOL_EXECUTOR_TOOL_SERVER_URL", "rs"),
    ("unknown-arguments", "TOOL_EXECUTOR_UNKNOWN_ARGUMENTS", "rs"),
    ("unreadable-calls", "", "r"),
    ("user-ids", "TOOL_EXECUTOR_USER_IDS", "rsx"),
];

/// The definition as it is where no variable is set.
fn without_variables() -> Definition {
    Cli::command().mut_subcommands(|command| command.mut_args(|arg| arg.env(Resettable::Reset)))
}

fn parse_line(line: &str) -> Result<Command, String> {
    let line = ["tool-executor"].into_iter().chain(line.split_whitespace()).map(OsString::from);
    match parse_from(without_variables(), line, &[]) {
        Ok(parsed) => {
            assert_eq!(parsed.warnings, Vec::<String>::new());
            Ok(parsed.cli.command)
        }
        Err(error) => Err(error.to_string()),
    }
}

fn replay(flags: &str) -> Result<ReplayArgs, String> {
    match parse_line(&format!("replay in.jsonl {flags}"))? {
        Command::Replay(args) => Ok(args),
        other => panic!("not a replay: {other:?}"),
    }
}

fn flags(program: &Definition, command: &str) -> Vec<Arg> {
    let command = program.find_subcommand(command).unwrap();
    let flags = command.get_arguments().filter(|arg| arg.get_long().is_some());
    flags.filter(|arg| !arg.is_global_set()).cloned().collect()
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_flag_is_in_the_table_with_its_variable_and_its_commands() {
    let program = Cli::command();
    let mut found: Vec<(String, String, String)> = Vec::new();
    for (command, letter) in COMMANDS.into_iter().zip(["r", "s", "x"]) {
        for arg in flags(&program, command) {
            let name = arg.get_long().unwrap();
            let variable = arg.get_env().map_or("", |name| name.to_str().unwrap());
            match found.iter_mut().find(|(known, _, _)| known == name) {
                Some((_, _, commands)) => commands.push_str(letter),
                None => found.push((name.to_owned(), variable.to_owned(), letter.to_owned())),
            }
        }
    }
    found.sort();
    let found: Vec<_> = found.iter().map(|(a, b, c)| (&**a, &**b, &**c)).collect();
    assert_eq!(found, TABLE);
    for (flag, variable, _) in TABLE {
        let derived = format!("TOOL_EXECUTOR_{}", flag.replace('-', "_").to_uppercase());
        let is_listening = matches!(flag, "host" | "port");
        assert!(variable.is_empty() || is_listening || variable == derived, "{flag} {variable}");
    }
}

#[test]
fn a_flag_that_two_commands_have_is_the_same_in_both() {
    let program = Cli::command();
    let facts = |arg: &Arg| {
        let default: Vec<_> = match arg.get_long() {
            // The reference's ports.
            Some("port") => Vec::new(),
            _ => arg.get_default_values().to_vec(),
        };
        format!(
            "{:?} {:?} {:?} {default:?} {:?} {:?} hidden {} secret {}",
            arg.get_help().map(ToString::to_string),
            arg.get_long_help().map(ToString::to_string),
            arg.get_env(),
            arg.get_value_names(),
            arg.get_action(),
            arg.is_hide_set(),
            arg.is_hide_env_values_set(),
        )
    };
    let mut shared = 0;
    for (place, one) in COMMANDS.into_iter().enumerate() {
        for other in &COMMANDS[place + 1..] {
            for arg in flags(&program, one) {
                let others = flags(&program, other);
                let Some(same) = others.iter().find(|same| same.get_long() == arg.get_long())
                else {
                    continue;
                };
                shared += 1;
                assert_eq!(facts(&arg), facts(same), "{one} and {other}");
            }
        }
    }
    assert!(shared > 40, "{shared}");
}

#[test]
fn a_secret_is_not_shown_by_the_help() {
    let program = Cli::command();
    for command in COMMANDS {
        for arg in flags(&program, command) {
            let name = arg.get_long().unwrap_or_default();
            let is_secret = name.ends_with("token") || name == "env";
            assert_eq!(arg.is_hide_env_values_set(), is_secret, "{name}");
        }
    }
}

#[test]
fn defaults() {
    let args = replay("").unwrap();
    assert!(args.slots.count() >= 10);
    assert_eq!((args.concurrency, args.repeat), (None, 1));
    assert_eq!((args.format, args.unreadable_calls), (Format::Auto, UnreadableCalls::Answer));
    // What the command line does not say is as it is in the library.
    assert_eq!(args.calls.config(&args.network), ExecutorConfig::default());
    assert_eq!(args.run.grace_s, Duration::from_secs(5));
    assert!(args.calls.allow_network(&args.network));
    assert_eq!(args.network.network, None);
    assert_eq!((groups::default_slots(1), groups::default_slots(16)), (10, 32));
    let Command::Serve(args) = parse_line("serve").unwrap() else { panic!() };
    assert_eq!((args.listen.port, args.acquire_timeout_s), (9001, Duration::from_secs(600)));
    assert_eq!(args.idle_limit_s, Duration::from_secs(1800));
    let Command::Sandbox(args) = parse_line("sandbox").unwrap() else { panic!() };
    assert_eq!(args.listen.port, 8080);
}

#[test]
fn flags_are_read() {
    let args = replay("--slots 3 --concurrency 500").unwrap();
    assert_eq!((args.slots.count(), args.concurrency), (3, Some(500)));
    let args = replay("--limit-memory 1G --limit-workspace none --limit-cpu 1.5").unwrap();
    assert_eq!(args.limits.limit_memory, Some(Limit(Some(1 << 30))));
    assert_eq!(args.limits.limit_workspace, Some(Limit(None)));
    assert_eq!(args.limits.limit_cpu, Some(Limit(Some(1.5))));
    for no in ["--no-network", "--allow-network=false", "--allow-network no", "--network none"] {
        let args = replay(no).unwrap();
        assert!(!args.calls.allow_network(&args.network), "{no}");
    }
    let args = replay("--network proxy --allow-host a.b,10.0.0.0/8:80 --allow-host *").unwrap();
    let hosts: Vec<_> = args.network.allow_host.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["a.b", "10.0.0.0/8:80", "*"]);
    assert!(args.calls.allow_network(&args.network));
    let config = replay("--timeout-s 1.5 --batch-window-ms 0 --max-batch-size 7").unwrap();
    let expected = ExecutorConfig::default()
        .with_default_timeout(Duration::from_millis(1500))
        .with_batch_window(Duration::ZERO)
        .with_max_batch_size(7);
    assert_eq!(config.calls.config(&config.network), expected);
    let args =
        replay("--bind /a,/b:/c --bind-rw d --path-prepend /x:/y --device /dev/kvm").unwrap();
    let provided = args.slots.provided;
    let binds = [Bind::read_only("/a"), Bind::read_only("/b").with_place("/c")];
    assert_eq!(provided.bind, binds);
    assert_eq!(provided.bind_rw, [Bind::read_only("d")]);
    assert_eq!(provided.path_prepend, [PathBuf::from("/x"), "/y".into()]);
    assert_eq!(provided.device, [PathBuf::from("/dev/kvm")]);
    let args = replay("--env A=b=c,d --env B").unwrap();
    let env: Vec<_> = args.slots.provided.env.into_iter().flat_map(|Several(env)| env).collect();
    assert_eq!(env, [("A".to_owned(), Some("b=c,d".to_owned())), ("B".to_owned(), None)]);
    let args =
        replay("--unknown-arguments ignore --output-order interleaved --background keep").unwrap();
    let policy = Policy::default()
        .with_unknown_arguments(UnknownArguments::Ignore)
        .with_output_order(OutputOrder::Interleaved)
        .with_background(BackgroundProcesses::Keep);
    assert_eq!(args.calls.config(&args.network).policy, policy);
    assert_eq!(replay("--max-file-size 2M").unwrap().slots.max_file_size, Some(2 << 20));
    let args = replay("--format Qwen3-Coder --unreadable-calls skip").unwrap();
    assert_eq!((args.format, args.unreadable_calls), (Format::Qwen3Coder, UnreadableCalls::Skip));
    let args = replay("--sandbox-url http://a,http://b --sandbox-url http://c").unwrap();
    assert_eq!(args.fleet.sandbox_url, ["http://a", "http://b", "http://c"]);
    for flag in ["--token", "--sandbox-token"] {
        let Command::Sandbox(args) = parse_line(&format!("sandbox {flag} t")).unwrap() else {
            panic!()
        };
        assert_eq!(args.token.sandbox_token, Some("t".into()));
    }
}

#[test]
fn values_outside_their_limits_are_refused_with_the_flags_name() {
    for (flag, value) in [
        ("--slots", "0"),
        ("--slots", "many"),
        ("--concurrency", "0"),
        ("--repeat", "0"),
        ("--repeat", "4294967296"),
        ("--limit", "0"),
        ("--max-batch-size", "0"),
        ("--batch-window-ms", "60001"),
        ("--timeout-s", "0.5"),
        ("--timeout-s", "86401"),
        ("--timeout-s", "NaN"),
        ("--allow-network", "maybe"),
        ("--network", "bridge"),
        ("--allow-host", "http://a"),
        ("--limit-memory", "1K"),
        ("--limit-cpu", "0"),
        ("--bind", "/a:b"),
        ("--bind-rw", "/a:/b:ro"),
        ("--sandbox-url", "a:8080"),
        ("--grace-s", "3601"),
        ("--log", "loud"),
        ("--format", "yaml"),
        ("--unreadable-calls", "ignore"),
        ("--unknown-arguments", "answer"),
        ("--output-order", "mixed"),
        ("--background", "forever"),
        ("--max-file-size", "0"),
        ("--max-file-size", "none"),
    ] {
        let error = replay(&format!("{flag} {value}")).expect_err(flag);
        let said = format!("invalid value '{value}' for '{flag} ");
        assert!(error.contains(&said) && error.contains("must be"), "{error}");
    }
    for value in ["A-B=s3cret", "=s3cret", "1A=s3cret"] {
        let error = replay(&format!("--env {value}")).expect_err(value);
        let said = "invalid value for '--env <NAME[=VALUE]>': it must be NAME or NAME=VALUE";
        assert!(error.contains(said) && !error.contains("s3cret"), "{error}");
    }
    assert!(parse_line("serve --port 65536").unwrap_err().contains("a port from 0 to 65535"));
    assert!(parse_line("serve --host example.org").unwrap_err().contains("an IP address"));
    assert!(replay("--out -").unwrap_err().contains("standard output has the summary"));
}

#[test]
fn a_flag_that_cannot_apply_is_refused_with_the_reason() {
    let url = "--sandbox-url http://a";
    for flag in [
        "--slots 2",
        "--data-dir /x",
        "--image dir:/x",
        "--max-file-size 1M",
        "--limit-memory 1G",
        "--limit-processes none",
        "--limit-cpu 1",
        "--limit-open-files 100",
        "--limit-file-size 1G",
        "--limit-workspace 1G",
        "--limit-files 1000",
        "--no-seccomp",
        "--allow-host a.b",
        "--ca-bundle f",
        "--log-egress",
        "--bind /opt",
        "--bind-rw /opt",
        "--env A=b",
        "--env-file /x",
        "--path-prepend /x",
        "--device /dev/kvm",
    ] {
        let name = flag.split(' ').next().unwrap();
        let why =
            format!("error: {name} has no effect: --sandbox-url names sandbox servers, which");
        for command in ["replay in.jsonl", "serve"] {
            let error = parse_line(&format!("{command} {url} {flag}")).unwrap_err();
            assert!(error.contains(&why), "{error}");
            assert!(parse_line(&format!("{command} {flag}")).is_ok(), "{flag}");
        }
    }
    for (line, why) in [
        ("serve --sandbox-token t", "--sandbox-token has no effect: no --sandbox-url"),
        ("replay x --sandbox-ca f", "--sandbox-ca has no effect: no --sandbox-url"),
        ("serve --tool-server-token t", "--tool-server-token has no effect: no --tool-server-url"),
        ("replay x --tool-server-ca f", "--tool-server-ca has no effect: no --tool-server-url"),
        ("serve --sandbox-url http://a --network host", "--network has no effect: --sandbox-url"),
        ("replay x --network host --allow-host a", "--allow-host has no effect: --network host"),
        ("sandbox --network none --log-egress", "--log-egress has no effect: --network none"),
        ("replay x --network host --no-network", "--network has no effect: --no-network"),
        ("serve --network proxy --allow-network no", "--network has no effect: --allow-network"),
        ("serve --network none --allow-network yes", "--network has no effect: --allow-network"),
        ("serve --no-auth --token t", "--no-auth has no effect: --token gives a token"),
        ("sandbox --no-auth --token t", "--no-auth has no effect: --sandbox-token gives a token"),
        (
            "replay x --no-network --allow-network true",
            "--no-network has no effect: --allow-network",
        ),
        ("sandbox --require-sandbox --allow-unisolated", "--require-sandbox has no effect: "),
        ("serve --local-slots 2", "--local-slots has no effect: all slots are this machine's"),
        ("serve --spill-after-s 2", "--spill-after-s has no effect: all slots are this machine's"),
        ("serve --slurm --spill-after-s 2", "--spill-after-s has no effect: there is one kind"),
        ("serve --slurm --local-slots 2 --slots 3", "--slots has no effect: --local-slots says"),
        ("serve --slurm --sandbox-slots 2", "--sandbox-slots has no effect: --slurm has Slurm"),
        ("serve --sandbox-url http://a --slurm-slots 2", "--slurm-slots has no effect: Slurm"),
    ] {
        let error = parse_line(line).unwrap_err();
        assert!(error.contains(why), "{line}: {error}");
    }
    for line in [
        "--local-slots 2 --spill-after-s 1.5 --limit-memory 1G --network host",
        "--slurm --spill-after-s 3 --sandbox-slots 4",
        "--slurm-submit partition=p --local-slots 2 --slurm-slots 4",
    ] {
        assert!(replay(&format!("{url} {line}")).is_ok(), "{line}");
    }
    let several = replay("--slurm --sandbox-url http://a --local-slots 2").unwrap().fleet.what();
    assert_eq!(several, "2 slots and 1 sandbox servers and sandbox servers of Slurm's");
    assert!(replay(&format!("{url} --network none")).is_ok());
    assert!(replay("--network none --no-network").is_ok());
    assert!(replay(&format!("{url} --keep-workspaces /x --sandbox-token t")).is_ok());
}

#[test]
fn variables_that_no_command_has_are_told_and_those_of_others_are_not() {
    let names = [
        "TOOL_EXECUTOR_SLOT",
        "TOOL_EXECUTOR_SLOTS",
        "TOOL_EXECUTOR_JOB_ID",
        "TOOL_EXECUTOR_LIBRARY",
        "TOOL_EXECUTOR_PORT",
        "TOOL_EXECUTOR_PORT_9001_TCP_ADDR",
        "TOOL_EXECUTOR_SERVICE_HOST",
        "TOOL_EXECUTOR_SANDBOX_SERVICE_PORT_HTTP",
        "TOOL_EXECUTOR_SANDBOX_PORT",
        "TOOL_EXECUTOR_IMPORTANT",
        "PATH",
    ];
    let warnings = applies::without_meaning(&names.map(OsString::from), &Cli::command());
    let of = |start: &str| warnings.iter().filter(|text| text.starts_with(start)).count();
    assert_eq!(of("TOOL_EXECUTOR_SLOT has no effect: there is no such variable"), 1);
    assert_eq!(of("TOOL_EXECUTOR_IMPORTANT has no effect: there is no such variable"), 1);
    assert_eq!(of("TOOL_EXECUTOR_JOB_ID has no effect: slots are this machine's"), 1);
    assert_eq!(warnings.len(), 3, "{warnings:?}");

    let network = [OsString::from("TOOL_EXECUTOR_ALLOW_NETWORK")];
    for (command, warnings) in [("sandbox", 1), ("serve", 0), ("man", 0)] {
        let line = ["tool-executor", command].map(OsString::from);
        let parsed = parse_from(without_variables(), line, &network).unwrap();
        let of_network = |text: &&String| text.contains("has no effect: the executors that use");
        assert_eq!(parsed.warnings.iter().filter(of_network).count(), warnings, "{command}");
    }
}

#[test]
fn the_help_of_replay_names_every_format() {
    let formats = flags(&without_variables(), "replay");
    let format = formats.into_iter().find(|arg| arg.get_id() == "format").unwrap();
    let help = format.get_long_help().unwrap().to_string();
    for format in Format::ALL {
        let words = help.split(|c: char| !c.is_alphanumeric() && c != '-');
        assert!(words.into_iter().any(|word| word == format.as_str()), "{format}: {help}");
    }
}

#[test]
fn the_help_of_replay_names_every_field_of_a_result() {
    let text = include_str!("../../../../docs/results.md");
    let section = text.split("\n## ").find(|section| section.starts_with("A line of `--out`"));
    let fields = section.unwrap().lines().filter_map(|line| line.strip_prefix("| `"));
    let fields = fields.map(|row| row.split('`').next().unwrap());
    for field in fields.filter(|field| !field.contains('.')) {
        assert!(RESULTS_HELP.contains(field), "{field}");
    }
}
