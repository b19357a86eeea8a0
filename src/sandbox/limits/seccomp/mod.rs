//! The system call filter of sandboxes (`seccomp(2)`).
//!
//! A filter takes away what no tool needs and an attacker could use: against the kernel, against
//! the sandbox's first process, which has the same user, and against the host's terminal. `rules`
//! says what that is; here the finished program is kept, for the sandbox's first process to load.
//! It holds for everything that runs in the sandbox, for ever, that process included.
//!
//! The filter is no wall of its own: what a sandbox may see is decided by its namespaces.

#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"),
    target_pointer_width = "64"
))]
mod rules;

/// A filter that is ready to be loaded.
#[derive(Debug)]
pub(crate) struct Filter(Vec<u8>);

impl Filter {
    /// Builds the filter for this machine.
    ///
    /// # Errors
    /// Where there is none for its architecture: as one line for people.
    pub(crate) fn new() -> Result<Self, String> {
        program().map(Self)
    }

    /// The program as the kernel takes it.
    pub(in crate::sandbox) fn program(&self) -> &[u8] {
        &self.0
    }
}

/// The program as bytes.
#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"),
    target_pointer_width = "64"
))]
fn program() -> Result<Vec<u8>, String> {
    let program = rules::program().map_err(|error| format!("it cannot be built: {error}"))?;
    // The kernel's `struct sock_filter`, in this machine's byte order.
    let bytes = program.iter().flat_map(|step| {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&step.code.to_ne_bytes());
        bytes[2] = step.jt;
        bytes[3] = step.jf;
        bytes[4..].copy_from_slice(&step.k.to_ne_bytes());
        bytes
    });
    Ok(bytes.collect())
}

#[cfg(not(all(
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"),
    target_pointer_width = "64"
)))]
fn program() -> Result<Vec<u8>, String> {
    Err(format!("there is none for {}", std::env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_whole_instructions_and_fits_beside_a_plan() {
        let filter = Filter::new().unwrap();
        let length = filter.program().len();
        assert!(length > 100 && length.is_multiple_of(8) && length < 16 * 1024, "{length}");
    }
}
