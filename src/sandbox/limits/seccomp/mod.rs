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

/// What a filter is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FilterKind {
    /// Commands with the host's files, which are of one user.
    Host,
    /// Commands with an image's files, which may be of many: what belongs to another user inside is
    /// nothing to those outside.
    Image,
    /// The same where all users are one: what gives files and processes to others has no effect,
    /// and is said to have worked, so that programs that install others go on.
    ImageWithOneId,
}

/// A filter that is ready to be loaded.
#[derive(Debug)]
pub(crate) struct Filter(Vec<u8>);

impl Filter {
    /// Builds the filter for this machine.
    ///
    /// # Errors
    /// Where there is none for its architecture: as one line for people.
    pub(crate) fn new(kind: FilterKind) -> Result<Self, String> {
        program(kind).map(Self)
    }

    /// Builds that of each kind.
    ///
    /// # Errors
    /// As of [`new`](Self::new).
    pub(crate) fn all() -> Result<Filters, String> {
        Ok(Filters {
            of_host: Self::new(FilterKind::Host)?,
            of_image: Self::new(FilterKind::Image)?,
            of_image_with_one_id: Self::new(FilterKind::ImageWithOneId)?,
        })
    }

    /// The program as the kernel takes it.
    pub(in crate::sandbox) fn program(&self) -> &[u8] {
        &self.0
    }
}

/// The filters of all kinds.
#[derive(Debug)]
pub(crate) struct Filters {
    of_host: Filter,
    of_image: Filter,
    of_image_with_one_id: Filter,
}

impl Filters {
    /// That of this kind.
    pub(in crate::sandbox) fn of(&self, kind: FilterKind) -> &Filter {
        match kind {
            FilterKind::Host => &self.of_host,
            FilterKind::Image => &self.of_image,
            FilterKind::ImageWithOneId => &self.of_image_with_one_id,
        }
    }
}

/// The program as bytes.
#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64"),
    target_pointer_width = "64"
))]
fn program(kind: FilterKind) -> Result<Vec<u8>, String> {
    let program = rules::program(kind).map_err(|error| format!("it cannot be built: {error}"))?;
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
fn program(_kind: FilterKind) -> Result<Vec<u8>, String> {
    Err(format!("there is none for {}", std::env::consts::ARCH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_whole_instructions_and_fits_beside_a_plan() {
        for kind in [FilterKind::Host, FilterKind::Image, FilterKind::ImageWithOneId] {
            let filter = Filter::new(kind).unwrap();
            let length = filter.program().len();
            assert!(length > 100 && length.is_multiple_of(8) && length < 16 * 1024, "{length}");
        }
    }
}
