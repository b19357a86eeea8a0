//! The C header is what the sources say.
//!
//! `TOOL_EXECUTOR_WRITE_HEADER=1 cargo test --test header` writes it anew.
#![cfg(feature = "capi")]

use std::path::Path;

/// The modules, in the order in which a reader wants their functions.
const MODULES: [&str; 11] = [
    "version", "status", "text", "log", "tool", "executor", "result", "begin", "call", "queue",
    "snapshot",
];
const LAST: [&str; 2] = ["artifact", "put"];

fn generated(root: &Path) -> String {
    let mut config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let [major, minor, patch] =
        [0, 1, 2].map(|part| version.split(['.', '-', '+']).nth(part).unwrap());
    config.after_includes = Some(format!(
        "\n/** The version of this header; that of the library is te_version(). */\n\
         #define TE_VERSION \"{version}\"\n\
         #define TE_VERSION_MAJOR {major}\n\
         #define TE_VERSION_MINOR {minor}\n\
         #define TE_VERSION_PATCH {patch}"
    ));
    let mut builder = cbindgen::Builder::new().with_config(config);
    for module in MODULES.iter().chain(&LAST) {
        builder = builder.with_src(root.join(format!("src/ffi/{module}.rs")));
    }
    let mut header = Vec::new();
    builder.generate().expect("the sources parse").write(&mut header);
    String::from_utf8(header).unwrap()
}

#[test]
fn the_committed_header_is_the_generated_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("include/tool_executor.h");
    let new = generated(root);
    if std::env::var_os("TOOL_EXECUTOR_WRITE_HEADER").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &new).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(new.lines()).position(|(old, new)| old != new);
    assert!(
        committed == new,
        "include/tool_executor.h is out of date (line {:?}): \
         TOOL_EXECUTOR_WRITE_HEADER=1 cargo test --test header",
        differs.map(|line| line + 1)
    );
}

#[test]
fn the_header_declares_what_the_sources_export_and_nothing_else() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let header = generated(root);
    let mut functions = 0;
    for entry in std::fs::read_dir(root.join("src/ffi")).unwrap() {
        let source = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let mut lines = source.lines();
        while let Some(line) = lines.next() {
            if line != "#[unsafe(no_mangle)]" {
                continue;
            }
            let line = lines.next().unwrap();
            let name = line.split("fn ").nth(1).unwrap().split('(').next().unwrap();
            assert!(name.starts_with("te_"), "{name}");
            assert!(header.contains(&format!("{name}(")), "{name} is not in the header");
            functions += 1;
        }
    }
    assert!(functions > 30, "{functions}");
}
