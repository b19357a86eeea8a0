//! Compares what the program writes with what `docs/results.md` says of it.

use serde_json::Value;

/// The fields of a table: path, type.
fn table(title: &str) -> Vec<(String, String)> {
    let text = include_str!("../../../../docs/results.md");
    let section = text.split("\n## ").find(|section| section.lines().next() == Some(title));
    let section = section.unwrap_or_else(|| panic!("docs/results.md has no section {title:?}"));
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.map(|row| {
        let mut cells = row.split(" | ");
        let path = cells.next().unwrap().trim_end_matches('`').to_owned();
        (path, cells.next().unwrap().to_owned())
    });
    cells.collect()
}

/// Fails unless `value` has just the fields of the table, in its order and of its types. A field
/// with rows for what is in it is looked into.
pub(super) fn check(title: &str, value: &Value) {
    let table = table(title);
    let mut found = Vec::new();
    collect("", value, &table, &mut found);
    let documented: Vec<&str> = table.iter().map(|(path, _)| &**path).collect();
    assert_eq!(found, documented, "{title}");
}

fn collect(prefix: &str, value: &Value, table: &[(String, String)], found: &mut Vec<String>) {
    for (key, value) in value.as_object().unwrap() {
        let path = format!("{prefix}{key}");
        let documented = table.iter().find(|(row, _)| *row == path);
        let (_, types) = documented.unwrap_or_else(|| panic!("{path} is not documented"));
        let is = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        let fits = types.split(" or ").any(|one| one == is || one == "any");
        assert!(fits, "{path} is a {is}, and documented as {types}");
        found.push(path.clone());
        let inner = format!("{path}.");
        if table.iter().any(|(row, _)| row.starts_with(&inner)) && value.is_object() {
            collect(&inner, value, table, found);
        }
    }
}
