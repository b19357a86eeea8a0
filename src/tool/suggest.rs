//! Which tool a model may have meant by a name that no tool has, and which argument by one that the
//! tool does not have.
//!
//! A model that was trained with other tools calls them by those names: so the common names of
//! shells, file tools and their arguments are known here. Other names are compared with those there
//! are. The cost is bounded whatever the name is, since the model chooses it.

/// How many names are suggested at most.
const MOST: usize = 3;
/// The longest name that is looked at, in characters.
const LONGEST: usize = 64;

/// Names that other agents' tools have, and which of ours do the same, the likeliest first.
const TOOLS: Common<'_> = &[
    (
        &[
            "cmd",
            "command",
            "container_exec",
            "exec",
            "exec_command",
            "execute",
            "execute_bash",
            "execute_command",
            "execute_shell",
            "local_shell",
            "run",
            "run_bash",
            "run_cmd",
            "run_command",
            "run_in_terminal",
            "run_shell",
            "run_shell_command",
            "run_terminal_cmd",
            "run_terminal_command",
            "sh",
            "shell",
            "shell_command",
            "shell_exec",
        ],
        &["bash", "terminal"],
    ),
    (
        &["bash_session", "interactive_bash", "persistent_shell", "shell_session", "stateful_bash"],
        &["terminal_stateful"],
    ),
    (
        &[
            "cat",
            "file_read",
            "get_file_contents",
            "open",
            "open_file",
            "read",
            "read_text_file",
            "view",
            "view_file",
        ],
        &["read_file"],
    ),
    (
        &[
            "create_file",
            "edit",
            "edit_file",
            "file_write",
            "save_file",
            "write",
            "write_text_file",
            "write_to_file",
        ],
        &["write_file"],
    ),
];

/// Names that arguments of other agents' tools have, and which of ours mean the same.
const ARGUMENTS: Common<'_> = &[
    (
        &["bash_command", "cmd", "code", "command_line", "commandline", "script", "shell_command"],
        &["command"],
    ),
    (&["args", "arguments", "command_args"], &["argv"]),
    (&["cwd", "dir", "directory", "work_dir", "working_dir", "working_directory"], &["workdir"]),
    (&["input", "std_in", "stdin_text"], &["stdin"]),
    (&["env_vars", "environment", "environment_variables", "envs", "variables"], &["env"]),
    (
        &["max_time", "time_limit", "timeout_s", "timeout_sec", "timeout_secs", "timeout_seconds"],
        &["timeout"],
    ),
    (&["file", "file_name", "file_path", "filename", "filepath", "target_file"], &["path"]),
    (&["body", "contents", "data", "file_text", "new_content", "text"], &["content"]),
    (&["key", "keystrokes"], &["keys"]),
];

/// Names that are common elsewhere, each with those that mean the same here.
type Common<'a> = &'a [(&'a [&'a str], &'a [&'a str])];

/// Those of the tools `names` that may have been meant by `name`, see [`suggest_from`].
pub(super) fn suggest<'a>(name: &str, names: &[&'a str]) -> Vec<&'a str> {
    suggest_from(TOOLS, name, names)
}

/// Those of a tool's arguments `names` that may have been meant by `name`, see [`suggest_from`].
pub(super) fn suggest_argument<'a>(name: &str, names: &[&'a str]) -> Vec<&'a str> {
    suggest_from(ARGUMENTS, name, names)
}

/// Those of `names` that may have been meant by `name`: at most three, the likeliest first. They
/// are
///
/// 1. what stands behind a prefix such as `functions.` or `tools/`, if it is one of them,
/// 2. those that do what is commonly called so,
/// 3. those that are as good as equal: by the fewest insertions, deletions, replacements and
///    transpositions of neighbours that make one of the other – two at most, one where either has
///    at most four characters, none where one has a single character –, then in their order.
///
/// Case does not matter, and `-`, ` ` and `.` are the same as `_`. A name of more than 64
/// characters is like no other.
fn suggest_from<'a>(common: Common<'_>, name: &str, names: &[&'a str]) -> Vec<&'a str> {
    let mut found: Vec<&str> = Vec::new();
    if name.chars().nth(LONGEST).is_some() {
        return found;
    }
    let mut add = |candidate| {
        if found.len() < MOST && !found.contains(&candidate) {
            found.push(candidate);
        }
    };
    let find = |wanted: &str| names.iter().copied().find(|there| *there == wanted);
    let bare = name.rsplit(['.', ':', '/']).next().unwrap_or(name);
    find(bare).into_iter().for_each(&mut add);
    let (whole, bare) = (folded(name), folded(bare));
    for (elsewhere, ours) in common {
        let is_it =
            |called: &Vec<char>| elsewhere.iter().any(|one| called.iter().copied().eq(one.chars()));
        if is_it(&whole) || is_it(&bare) {
            ours.iter().filter_map(|our| find(our)).for_each(&mut add);
        }
    }
    let mut close: Vec<(usize, &str)> = names
        .iter()
        .copied()
        .filter_map(|there| {
            let other = folded_within(there, whole.len() + 2)?;
            distance(&whole, &other, allowed(whole.len().min(other.len()))).map(|far| (far, there))
        })
        .collect();
    // Stable: those that are equally close stay in their order.
    close.sort_by_key(|(far, _)| *far);
    close.into_iter().map(|(_, there)| there).for_each(&mut add);
    found
}

/// How many edits names may be apart of which the shorter one has so many characters.
fn allowed(characters: usize) -> usize {
    match characters {
        0 | 1 => 0,
        2..=4 => 1,
        _ => 2,
    }
}

fn folded(name: &str) -> Vec<char> {
    let fold = |c: char| if matches!(c, '-' | ' ' | '.') { '_' } else { c.to_ascii_lowercase() };
    name.chars().map(fold).collect()
}

/// The same of a name of at most so many characters.
fn folded_within(name: &str, most: usize) -> Option<Vec<char>> {
    name.chars().nth(most).is_none().then(|| folded(name))
}

/// How many insertions, deletions, replacements and transpositions of neighbours make one of the
/// other, no character being edited twice; `None` if it takes more than `most`.
fn distance(a: &[char], b: &[char], most: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    // Rows of the usual table: the one before the last, the last, and this one.
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(x != y);
            let mut least = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                least = least.min(before[j - 1] + 1);
            }
            row.push(least);
        }
        if row.iter().min().is_some_and(|least| *least > most) {
            return None;
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().filter(|edits| *edits <= most)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 8] = [
        "terminal",
        "bash",
        "read_file",
        "write_file",
        "terminal_stateful",
        "tmux",
        "web_search",
        "web_serach",
    ];

    fn of(name: &str) -> Vec<&'static str> {
        suggest(name, &NAMES)
    }

    #[test]
    fn what_a_model_may_have_meant() {
        for (name, meant) in [
            ("shell", &["bash", "terminal"][..]),
            ("execute_bash", &["bash", "terminal"]),
            ("run_command", &["bash", "terminal"]),
            ("Run-Terminal-Cmd", &["bash", "terminal"]),
            ("functions.shell", &["bash", "terminal"]),
            ("container.exec", &["bash", "terminal"]),
            ("cat", &["read_file"]),
            ("create_file", &["write_file"]),
            ("Bash", &["bash"]),
            ("bsah", &["bash"]),
            ("functions.bash", &["bash"]),
            ("default_api:read_file", &["read_file"]),
            ("read-file", &["read_file"]),
            ("raed_fiel", &["read_file"]),
            ("readfile", &["read_file"]),
            ("web_search ", &["web_search", "web_serach"]),
            ("web_seach", &["web_search", "web_serach"]),
            ("nope", &[]),
            ("b", &[]),
            ("", &[]),
            ("ba", &[]),
        ] {
            assert_eq!(of(name), meant, "{name:?}");
        }
    }

    #[test]
    fn only_tools_that_there_are_are_suggested_and_three_at_most() {
        assert_eq!(suggest("shell", &["read_file"]), [""; 0]);
        assert_eq!(suggest("shell", &["terminal"]), ["terminal"]);
        let many = ["search1", "search2", "search3", "search4"];
        assert_eq!(suggest("search", &many), many[..3]);
        assert_eq!(suggest("search4", &["search_4", "search3", "search4x"]).len(), 3);
    }

    #[test]
    fn a_name_that_is_too_long_costs_nothing() {
        let long = "b".repeat(1_000_000);
        assert_eq!(of(&long), [""; 0]);
        assert_eq!(suggest("bash", &[&*long, "bash"]), ["bash"]);
        let most = "x".repeat(LONGEST);
        assert_eq!(suggest(&most, &[&*most]), [&most]);
        let names: Vec<String> = (0..1_000).map(|number| format!("{most}{number}")).collect();
        assert_eq!(
            suggest(&most, &names.iter().map(String::as_str).collect::<Vec<_>>()).len(),
            MOST
        );
    }

    /// By the definition, slowly.
    fn naive(a: &[char], b: &[char]) -> usize {
        match (a, b) {
            ([], rest) | (rest, []) => rest.len(),
            ([x, a_rest @ ..], [y, b_rest @ ..]) => {
                let mut least = naive(a_rest, b_rest) + usize::from(x != y);
                least = least.min(naive(a_rest, b) + 1).min(naive(a, b_rest) + 1);
                if let ([_, x2, a_rest @ ..], [_, y2, b_rest @ ..]) = (a, b)
                    && x == y2
                    && x2 == y
                {
                    least = least.min(naive(a_rest, b_rest) + 1);
                }
                least
            }
        }
    }

    proptest! {
        #[test]
        fn the_distance_is_that_of_its_definition(a in "[ab_]{0,6}", b in "[ab_]{0,6}", most in 0..4usize) {
            let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
            let expected = naive(&a, &b);
            prop_assert_eq!(distance(&a, &b, most), (expected <= most).then_some(expected));
        }
    }
}
