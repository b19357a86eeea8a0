//! What a grader's command finds: a directory of its own as its home and for temporary files, and
//! variables that none of those has set whom it judges. Pure.
//!
//! Its files, and the directory, are in `isolation::layout`; the descriptor for its verdict is
//! given to it by `init`.

use std::path::Path;

use super::init::VERDICT_FD;
use super::isolation::GRADER;
use super::shell;
use crate::grade::{GradeSpec, VERDICT_FD_VARIABLE};

/// The script that runs a grader's command.
pub(crate) fn script(spec: &GradeSpec) -> String {
    let verdict = VERDICT_FD.to_string();
    let own = [("HOME", GRADER), ("TMPDIR", GRADER), (VERDICT_FD_VARIABLE, &*verdict)];
    let given = spec.env.iter().map(|(name, value)| (&**name, &**value));
    let script = shell::script_with(own.into_iter().chain(given), &spec.command);
    shell::script_in(Path::new(&spec.files_at), &script)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grader_begins_in_its_files_with_variables_that_are_its_own() {
        let env = [("A".to_owned(), "it's".to_owned())].into();
        let spec = GradeSpec::new("python3 x.py").with_env(env);
        let expected = "cd -- '/grade' || exit; export HOME='/run/grader' TMPDIR='/run/grader' \
                        TOOL_EXECUTOR_VERDICT_FD='6' A='it'\\''s'; python3 x.py";
        assert_eq!(script(&spec), expected);
    }
}
