//! Compiles the first process of sandboxes (`src/sandbox/init/program.rs`) to a static program,
//! which the library carries: whoever has this crate has all that is needed.
//!
//! Where that cannot be done (another system or processor, no linker that makes static programs)
//! the file is empty, and there are no sandboxes.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

const SOURCE: &str = "src/sandbox/init/program.rs";

/// The processors that it has an `arch` for.
const PROCESSORS: [&str; 2] = ["x86_64", "aarch64"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/sandbox/init");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    println!("cargo::rerun-if-env-changed=TOOL_EXECUTOR_SONAME");
    let variable = |name: &str| env::var(name).unwrap_or_default();
    let program = Path::new(&variable("OUT_DIR")).join("tool-init");
    let system = (variable("CARGO_CFG_TARGET_OS"), variable("CARGO_CFG_TARGET_ARCH"));
    // The C library is never unloaded: threads that have used it end later, and would then run
    // destructors of thread-local variables, of the standard library's too, that are not there any
    // more.
    if system.0 == "linux" {
        println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
        // For `packaging/install-c`, which makes the links that this name needs; a library in
        // `target` has none, and programs find it by the name of its file.
        let soname = variable("TOOL_EXECUTOR_SONAME");
        if !soname.is_empty() {
            println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,{soname}");
        }
    }
    let possible = system.0 == "linux" && PROCESSORS.contains(&system.1.as_str());
    if possible && compile(&program).is_none() {
        println!("cargo::warning=cannot make a static program: commands cannot be isolated");
    }
    if !program.exists() {
        fs::write(&program, "").expect("OUT_DIR can be written to");
    }
}

/// `None` if the compiler or the linker fails; what they say is on their standard error.
fn compile(program: &Path) -> Option<()> {
    let _ = fs::remove_file(program);
    let mut rustc = Command::new(env::var_os("RUSTC")?);
    rustc.args(["--edition=2024", "--crate-name=tool_init", "--crate-type=bin", SOURCE]);
    rustc.args(["--target", &env::var("TARGET").ok()?]);
    for option in [
        "panic=abort",
        "opt-level=s",
        "lto=fat",
        "codegen-units=1",
        "strip=symbols",
        "relocation-model=static",
        "target-feature=+crt-static",
        "link-arg=-nostdlib",
        "link-arg=-nostartfiles",
        "link-arg=-static",
        "link-arg=-Wl,--build-id=none,-z,noexecstack",
    ] {
        rustc.args(["-C", option]);
    }
    if let Some(linker) = env::var_os("RUSTC_LINKER") {
        rustc.arg("-C").arg({
            let mut option = std::ffi::OsString::from("linker=");
            option.push(linker);
            option
        });
    }
    let status = rustc.arg("-o").arg(program).status().ok()?;
    status.success().then_some(())
}
