//! Variables that commands are given.

/// What says who and where a command is has one answer, which the engine gives.
const OURS: [&str; 5] = ["HOME", "USER", "LOGNAME", "PWD", "SHELL"];

/// What is wrong with a variable that commands are to have, if something is.
pub(crate) fn variable_problem(name: &str, value: Option<&str>) -> Option<String> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let begins_well = name.bytes().next().is_some_and(|first| !first.is_ascii_digit());
    if !begins_well || !name.bytes().all(is_part) {
        return Some(format!(
            "{name:?} is no name of a variable; it must be letters, digits and `_`, and begin with \
             no digit"
        ));
    }
    if OURS.contains(&name) {
        return Some(format!(
            "the variable {name} cannot be set: it says who and where a command is"
        ));
    }
    value
        .is_some_and(|value| value.contains('\0'))
        .then(|| format!("the value of {name} has a NUL, which no variable can have"))
}
